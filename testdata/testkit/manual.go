package testkit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pages are the patterns of the manual's pages, below the module's root.
var pages = []string{
	"README.md", "cmd/*/*.md", "cmd/internal/doctor/*.md", "balancer/*.md", "encap/*.md", "routing/*.md",
}

// Page is a page of the manual.
type Page struct {
	Name string // path below the module's root, such as "cmd/director/README.md"
	Text string
}

// Root returns the directory of go.mod, above the directory of the test.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	t.Fatalf("no go.mod above this test: %v", err)
	return ""
}

// IsPage reports whether name, a path below the module's root, is a page of the manual.
func IsPage(name string) bool {
	for _, pattern := range pages {
		if ok, err := filepath.Match(pattern, name); ok && err == nil {
			return true
		}
	}
	return false
}

// Manual returns all pages of the manual.
func Manual(t testing.TB) (all []Page) {
	t.Helper()
	root := Root(t)
	for _, pattern := range pages {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, Page{strings.TrimPrefix(file, root+"/"), string(text)})
		}
	}
	if len(all) < len(pages)/2 {
		t.Fatalf("only %d pages", len(all))
	}
	return all
}

// ManualText returns the text of all pages of the manual, one behind the other.
func ManualText(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, p := range Manual(t) {
		b.WriteString("\n" + p.Text)
	}
	return b.String()
}

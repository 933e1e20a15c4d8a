// Command lint checks rules that go vet and staticcheck do not check: the width of lines, the length of functions,
// words that the project avoids, and the size of README.md. It prints each fault as file:line and exits with status 1
// if there is one.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Bounds.
const (
	goColumns       = 120 // of a line of Go, where a tab has four
	markdownColumns = 100 // of a line of Markdown outside tables and code
	functionLines   = 70  // of a function outside tests
	readmeLines     = 200
	readmeBytes     = 12 << 10
)

// avoided matches words that describe programs as persons. The user name "nobody", quoted, is allowed.
var avoided = regexp.MustCompile(`(?i)tells? whether|\b(?:nobody|somebody)\b`)

// user matches the name of the user.
var user = regexp.MustCompile("[\"`':]nobody[\"`':]|User=nobody|[uU]ser nobody|--client nobody|and group nobody")

func main() {
	faults, err := check(os.DirFS("."))
	if err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(1)
	}
	for _, f := range faults {
		fmt.Println(f)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// check returns the faults of all files, a line each.
func check(root fs.FS) (faults []string, err error) {
	err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && skipped(d.Name()):
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		switch filepath.Ext(path) {
		case ".go":
			faults = append(faults, checkGo(path, string(text))...)
		case ".md":
			faults = append(faults, checkMarkdown(path, string(text))...)
		}
		return nil
	})
	return faults, err
}

// skipped reports whether lint leaves a folder alone: a hidden one, except .ci, or test data.
func skipped(name string) bool {
	return strings.HasPrefix(name, ".") && name != ".ci" || name == "testdata"
}

// checkGo returns the faults of a file of Go.
func checkGo(path, text string) (faults []string) {
	for i, line := range strings.Split(text, "\n") {
		if n := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    ")); n > goColumns {
			faults = append(faults, fmt.Sprintf("%s:%d: %d columns: at most %d", path, i+1, n, goColumns))
		}
		if word := avoided.FindString(user.ReplaceAllString(line, "")); word != "" &&
			!strings.HasPrefix(path, "cmd/internal/lint/") {
			faults = append(faults, fmt.Sprintf("%s:%d: %q: name the program or the condition", path, i+1, word))
		}
	}
	if strings.HasSuffix(path, "_test.go") {
		return faults
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, text, parser.SkipObjectResolution)
	if err != nil {
		return append(faults, err.Error())
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		begin, end := set.Position(f.Pos()).Line, set.Position(f.End()).Line
		if n := end - begin + 1; n > functionLines {
			faults = append(faults, fmt.Sprintf("%s:%d: function %s has %d lines: at most %d", path, begin, f.Name.Name,
				n, functionLines))
		}
	}
	return faults
}

// checkMarkdown returns the faults of a page.
func checkMarkdown(path, text string) (faults []string) {
	lines, code := strings.Split(text, "\n"), false
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
		}
		n := utf8.RuneCountInString(line)
		if n > markdownColumns && !code && !strings.HasPrefix(strings.TrimSpace(line), "|") {
			faults = append(faults, fmt.Sprintf("%s:%d: %d columns: at most %d", path, i+1, n, markdownColumns))
		}
	}
	if path == "README.md" && (len(lines) > readmeLines+1 || len(text) > readmeBytes) {
		faults = append(faults, fmt.Sprintf("%s: %d lines, %d bytes: at most %d and %d", path, len(lines)-1, len(text),
			readmeLines, readmeBytes))
	}
	return faults
}

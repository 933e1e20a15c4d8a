package main

import (
	"strings"
	"testing"
	"testing/fstest"
)

// TestFaults has a file for each kind of fault.
func TestFaults(t *testing.T) {
	long := strings.Repeat("x", 102)
	word := "some" + "body"
	for name, c := range map[string]struct{ path, text, want string }{
		"clean":   {"a/a.go", "package a\n\n// F is short.\nfunc F() {}\n", ""},
		"wide":    {"a/a.go", "package a\n\n\t\t\t\t// " + long + "\n", "a/a.go:3: 121 columns"},
		"wide ok": {"a/a.go", "package a\n\n\t\t\t// " + long + "\n", ""},
		"word":    {"a/a.go", "package a\n\n// " + word + " reads it\n", "a/a.go:3: \"" + word + "\""},
		"user":    {"a/a.go", "package a\n\nvar user = \"nobody\"\n", ""},
		"function": {"a/a.go", "package a\n\nfunc f() {" + strings.Repeat("\n", 70) + "}\n",
			"function f has 71 lines"},
		"in a test": {"a/a_test.go", "package a\n\nfunc f() {" + strings.Repeat("\n", 70) + "}\n", ""},
		"page":      {"a/README.md", "# A\n\n" + long + "\n", "a/README.md:3: 102 columns"},
		"table":     {"a/README.md", "| " + long + " |\n", ""},
		"code":      {"a/README.md", "```\n" + long + "\n```\n", ""},
		"readme":    {"README.md", strings.Repeat("a\n", 201), "README.md: 201 lines"},
		"tools":     {".ci/tools/a.go", "package a\n\n// " + word + " reads it\n", ".ci/tools/a.go:3: "},
		"hidden":    {".git/a.go", "nonsense", ""},
		"testdata":  {"testdata/a.go", "nonsense " + long, ""},
	} {
		t.Run(name, func(t *testing.T) {
			faults, err := check(fstest.MapFS{c.path: {Data: []byte(c.text)}})
			got := strings.Join(faults, "\n")
			if c.want == "" {
				if got != "" || err != nil {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if !strings.Contains(got, c.want) || err != nil {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

package doctor

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestREADME compares the samples of README.md, and the findings in its tables, with the strings of this package.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	patterns := literals(t)
	known := func(quoted string) bool {
		for _, p := range patterns {
			if p.MatchString(quoted) {
				return true
			}
		}
		return false
	}
	compared := 0
	place := regexp.MustCompile(`^[^ :]+( [^ :]+)?: `)
	elsewhere := regexp.MustCompile("^#? ?(start|privileges|control|descriptors)\n") // texts of other packages
	for section := range strings.SplitSeq(string(text), "\n##") {
		if elsewhere.MatchString(section) {
			continue
		}
		for _, quoted := range quotes(section) {
			compared++
			if !known(quoted) && !known(place.ReplaceAllString(quoted, "")) && !strings.HasSuffix(quoted, " is 0") {
				t.Errorf("README.md has %q, and no finding has it", quoted)
			}
		}
	}
	if compared < 70 {
		t.Errorf("only %d texts of README.md are compared", compared)
	}
}

// quotes returns the texts of findings in README.md: the lines of its samples, and the column "It says" of its tables.
func quotes(text string) (all []string) {
	sample := regexp.MustCompile("(?ms)^```\n(.*?)^```$")
	for _, block := range sample.FindAllStringSubmatch(text, -1) {
		joined := strings.ReplaceAll(block[1], "\n      ", " ") // a wrapped line
		for line := range strings.Lines(joined) {
			fact, indented := strings.CutPrefix(strings.TrimRight(line, "\n"), indent)
			if _, possible := strings.CutPrefix(fact, "possible cause: "); possible {
				fact = strings.TrimPrefix(fact, "possible ")
			}
			for _, prefix := range []string{"cause: ", "note: ", "at ", "-> ", "on "} {
				if strings.HasPrefix(fact, prefix) && prefix != "cause: " && prefix != "note: " {
					indented = false // a place, or a command
				}
				fact = strings.TrimPrefix(fact, prefix)
			}
			if indented && fact != "…" {
				all = append(all, fact)
			}
		}
	}
	says := -1
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if !strings.HasPrefix(line, "|") {
			says = -1
			continue
		}
		for i, c := range cells {
			if s := strings.TrimSpace(c); s == "It says" || s == "It drops" || s == "Cause" {
				says = i
			}
		}
		if says < 0 || says >= len(cells) {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[says], -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// literals returns a pattern for each string of this package's sources, with any text for the verbs of fmt. Strings
// that + joins are one.
func literals(t *testing.T) (all []*regexp.Regexp) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	verb := regexp.MustCompile(`%(\[\d\])?[a-z]`)
	word := regexp.MustCompile(`[a-z]{2,}`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			s, ok := constant(e)
			if !ok {
				return true
			}
			fixed := verb.Split(s, -1)
			if len(word.FindAllString(strings.Join(fixed, " "), 2)) < 2 {
				return false
			}
			for i := range fixed {
				fixed[i] = regexp.QuoteMeta(fixed[i])
			}
			all = append(all, regexp.MustCompile("^"+strings.Join(fixed, ".+")+"$"))
			return false
		})
	}
	return all
}

// constant returns the string that e is, with "%s" for the parts of a sum that are not strings.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, e.Kind == token.STRING && err == nil
	case *ast.BinaryExpr:
		x, okX := constant(e.X)
		y, okY := constant(e.Y)
		if e.Op != token.ADD || !okX && !okY {
			return "", false
		}
		if !okX {
			x = "%s"
		}
		if !okY {
			y = "%s"
		}
		return x + y, true
	}
	return "", false
}

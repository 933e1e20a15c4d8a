package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// root is the source directory.
const root = "../../.."

// row matches the beginning of a table's row about a key.
var row = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|")

// TestPages makes all pages, and wants in each what its readers look for.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	if err := write(root, dir); err != nil {
		t.Fatal(err)
	}
	sections := map[string][]string{
		".8": {"NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "EXIT STATUS", "DROPS", "FILES", "SIGNALS", "EXAMPLES",
			"SEE ALSO"},
		".5": {"NAME", "SYNOPSIS", "DESCRIPTION", "FILES", "EXAMPLES", "SEE ALSO"},
	}
	for _, p := range programs() {
		name := p.command.Name()
		pages := map[string]string{}
		for _, file := range []string{name + ".8", name + ".toml.5"} {
			text, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			pages[file] = string(text)
			at := 0
			for _, s := range sections[filepath.Ext(file)] {
				i := strings.Index(pages[file][at:], "\n.SH "+s+"\n")
				if i < 0 {
					t.Fatalf("%s has no section %s in its place", file, s)
				}
				at += i
			}
			if m := regexp.MustCompile(`(?m)^.*(\]\(|\|---|%!|<no value>).*$`).FindString(pages[file]); m != "" {
				t.Errorf("%s has what no reader wants: %s", file, m)
			}
		}
		for _, c := range p.command.Commands() {
			if c.IsAvailableCommand() && !strings.Contains(pages[name+".8"], "\n.TP\n\\fB"+name+" "+c.Name()) {
				t.Errorf("%s.8 has no command %s", name, c.Name())
			}
		}
		readme, err := os.ReadFile(filepath.Join(root, "cmd", name, "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		reference, err := section(string(readme), p.config[0])
		if err != nil {
			t.Fatal(err)
		}
		keys := row.FindAllStringSubmatch(reference, -1)
		if len(keys) < 10 {
			t.Errorf("the page of %s has only %d keys", name, len(keys))
		}
		for _, key := range keys {
			if !strings.Contains(pages[name+".toml.5"], "\n.TP\n\\fB"+key[1]+"\\fR (") {
				t.Errorf("%s.toml.5 has no key %s", name, key[1])
			}
		}
	}
	t.Run("Groff", func(t *testing.T) { format(t, dir) })
}

// TestReadme keeps the README short: it is for readers who have five minutes.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) > 200 || len(text) > 12<<10 {
		t.Errorf("README.md has %d lines, %d bytes, want no more than 200 and 12 KB", len(lines), len(text))
	}
	for i, line := range lines {
		if n := utf8.RuneCountInString(line); n > 100 {
			t.Errorf("README.md:%d has %d columns, want no more than 100", i+1, n)
		}
	}
}

// format has groff format all pages in dir, and wants no warning.
func format(t *testing.T, dir string) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("SKIPPED: no groff here")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.[58]"))
	if err != nil || len(files) < 20 {
		t.Fatalf("pages: %q %v", files, err)
	}
	for _, file := range files {
		cmd := exec.Command("groff", "-Kutf8", "-man", "-Tutf8", "-ww", "-P-c", file)
		var warnings strings.Builder
		cmd.Stderr = &warnings
		if out, err := cmd.Output(); err != nil || warnings.Len() > 0 || len(out) == 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(file), err, warnings.String())
		}
	}
}

func TestSection(t *testing.T) {
	const page = "# A\n## B\none\n```\n# no heading\n```\n### C\ntwo\n## D\nthree\n"
	for heading, want := range map[string]string{
		"B": "one\n```\n# no heading\n```\n### C\ntwo\n", "C": "two\n", "D": "three\n",
	} {
		if got, err := section(page, heading); err != nil || got != want {
			t.Errorf("%s: %q %v, want %q", heading, got, err, want)
		}
	}
	if _, err := section(page, "no heading"); err == nil {
		t.Error("a line of a fenced block is a heading")
	}
}

func TestPlain(t *testing.T) {
	const keyTable = "| Key | Type | Default | Meaning |\n|---|---|---|---|\n" +
		"| `a` | string | `\"x\\|y\"` | An a. |\n| `b` | array | required | A b. |\n| `c` | URL | none | A c. |\n"
	for text, want := range map[string]string{
		keyTable: "`a` (string, default: `\"x|y\"`)\n: An a.\n\n`b` (array, required)\n: A b.\n\n" +
			"`c` (URL)\n: A c.\n\n",
		"| A | B |\n|---|---|\n| 0 | fine |\n":                          "0\n: fine\n\n",
		"| A | B | C |\n|---|---|---|\n| 0 | fine | |\n| 1 | x | y |\n": "0\n: *B*: fine\n\n1\n: *B*: x; *C*: y\n\n",
		"see [a\nb](#c), [x](y.md#z) and [z.md](../z.md).\n":            "see a\nb, x (cmd/p/y.md) and cmd/z.md.\n",
		"[TOML](https://toml.io/), [`[a]`](#a)\n":                       "TOML (https://toml.io/), `[a]`\n",
		"```\n| a | b |\n[x](y)\n```\n":                                 "```\n| a | b |\n[x](y)\n```\n",
	} {
		if got := plain(text, "cmd/p"); got != want {
			t.Errorf("%q:\n%q, want\n%q", text, got, want)
		}
	}
}

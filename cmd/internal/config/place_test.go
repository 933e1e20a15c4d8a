package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLocate: each key, element and table has its line, however it is written.
func TestLocate(t *testing.T) {
	root, _ := locate([]byte("\xef\xbb\xbf# comment [x]\r\n" + `a = """
two lines "" # no comment""""
b.c = '''
\'''
"quoted \"key\"" = [ # comment, with a comma
  1, "]", [2,
  3], # ]
  { d = 4, e.f = '}' },
]
[director]
tun = "vs0" # [x]
[service-list.x]
y = { }
[[service]]
name = "a"
  [service.check]
  type = "tcp"
  [[service.realserver]]
  address = 1979-05-27 07:32:00
  [[service.realserver]]

  weight = -1
[[service]]
realserver = [
  { address = 1,
    weight = 2 },
  { }
]
`))
	find := func(path ...any) (p *place) {
		p = root
		for _, step := range path {
			switch step := step.(type) {
			case string:
				p = p.key(step)
			case int:
				p = p.item(step)
			}
		}
		return p
	}
	for _, c := range []struct {
		line int
		path []any
	}{
		{2, []any{"a"}}, {4, []any{"b"}}, {4, []any{"b", "c"}}, {6, []any{`quoted "key"`}},
		{7, []any{`quoted "key"`, 0}}, {7, []any{`quoted "key"`, 2, 0}},
		{8, []any{`quoted "key"`, 2, 1}}, {9, []any{`quoted "key"`, 3, "d"}}, {9, []any{`quoted "key"`, 3, "e", "f"}},
		{11, []any{"director"}},
		{12, []any{"director", "tun"}}, {13, []any{"service-list", "x"}}, {14, []any{"service-list", "x", "y"}},
		{15, []any{"service"}}, {15, []any{"service", 0}},
		{16, []any{"service", 0, "name"}}, {17, []any{"service", 0, "check"}},
		{18, []any{"service", 0, "check", "type"}},
		{19, []any{"service", 0, "realserver", 0}}, {20, []any{"service", 0, "realserver", 0, "address"}},
		{21, []any{"service", 0, "realserver", 1}}, {23, []any{"service", 0, "realserver", 1, "weight"}},
		{24, []any{"service", 1}},
		{26, []any{"service", 1, "realserver", 0, "address"}}, {27, []any{"service", 1, "realserver", 0, "weight"}},
		{28, []any{"service", 1, "realserver", 1}},
	} {
		if p := find(c.path...); p == nil || p.line != c.line {
			t.Errorf("%v: %+v, want line %d", c.path, p, c.line)
		}
	}
}

// FuzzLocate: each key and element of a document that the TOML parser accepts has a place on an existing line.
func FuzzLocate(f *testing.F) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range []string{"a = \"\"\"x\\\"\"\"\"\"\"\nb.c.d = [[1], { 'e' = 2 }]\n",
		"[a.b]\n[a]\n[[a.c]]\n[a.c.d]\n[[a.c]]\n", "a.b = 1\r\na.'c d' = 07:32:00\n", "a = [[[]], [{}], # ]\n 1,]"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		lines := 1
		for _, c := range text {
			if c == '\n' {
				lines++
			}
		}
		if values, places, err := decode(text); err == nil {
			checkPlaces(t, "", values, places, lines)
		}
	})
}

func checkPlaces(t *testing.T, path string, value any, p *place, lines int) {
	if p == nil || p.line < 1 || p.line > lines {
		t.Fatalf("%s: %v is at %+v, of %d lines", path, value, p, lines)
	}
	switch v := value.(type) {
	case map[string]any:
		for name, below := range v {
			if quoteKey(name) == name { // of other keys the escapes differ from Go's
				checkPlaces(t, path+"."+name, below, p.key(name), lines)
			}
		}
	case []any:
		for i, below := range v {
			checkPlaces(t, fmt.Sprintf("%s[%d]", path, i), below, p.item(i), lines)
		}
	case []map[string]any:
		for i, below := range v {
			checkPlaces(t, fmt.Sprintf("%s[%d]", path, i), below, p.item(i), lines)
		}
	}
}

// TestManyLevels: a document that the TOML parser would need seconds for is refused before that.
func TestManyLevels(t *testing.T) {
	began := time.Now()
	for _, text := range []string{strings.Repeat("a.", 50_000) + "a = 1", "[[" + strings.Repeat("a . ", 50_000) + "a]]",
		"a = " + strings.Repeat("{a=", 900) + "1" + strings.Repeat("}", 900)} {
		if _, at, err := decode([]byte(text)); err == nil || at == nil {
			t.Errorf("%.20s…: no error", text)
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	deepest := "[[a.b]]\nc = [[[{ d.e.f = [[{ g = [[{ h.i = 1 }]] }]] }]]]\n" // 16 levels
	if _, _, err := decode([]byte(deepest)); err != nil {
		t.Error(err)
	}
}

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director"
	"vstun/encap/packet/drop"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReadmeConfigurations parses every configuration in the README.
func TestReadmeConfigurations(t *testing.T) {
	directors, realservers := 0, 0
	for i, part := range strings.Split(readme(t), "```toml\n") {
		if i == 0 {
			continue
		}
		block, _, _ := strings.Cut(part, "```")
		var err error
		if strings.Contains(block, "[realserver]") {
			realservers++
			_, err = config.ParseRealserver("README.md", []byte(block))
		} else {
			directors++
			_, err = config.ParseDirector("README.md", []byte(block),
				config.Features{Schedulers: balancer.Schedulers()})
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
	}
	if directors < 2 || realservers < 2 {
		t.Errorf("%d configurations of directors, %d of realservers", directors, realservers)
	}
}

// TestReadmeKeys wants every key that a configuration may have in the reference: it puts an unknown one into each
// table, and is told the known ones.
func TestReadmeKeys(t *testing.T) {
	header, inline := regexp.MustCompile(`(?m)^\s*\[.*\]$`), regexp.MustCompile(`(= \{) `)
	known, word := regexp.MustCompile(`(?m)unknown key: want (.*)$`), regexp.MustCompile(`[a-z0-9_]+`)
	for name, parse := range map[string]func([]byte) error{
		"director.toml": func(b []byte) error {
			_, err := config.ParseDirector("README.md", b, config.Features{Schedulers: balancer.Schedulers()})
			return err
		},
		"realserver.toml": func(b []byte) error {
			_, err := config.ParseRealserver("README.md", b)
			return err
		},
	} {
		_, block, _ := strings.Cut(readme(t), "\n`"+name+"`:\n\n```toml\n")
		block, _, _ = strings.Cut(block, "```")
		edited := inline.ReplaceAllString(header.ReplaceAllString(block, "$0\nxxxxxxxxxx = 1"), "$1 xxxxxxxxxx = 1, ")
		lists := known.FindAllStringSubmatch(fmt.Sprint(parse([]byte(edited))), -1)
		if want := strings.Count(edited, "xxxxxxxxxx"); want == 0 || len(lists) != want {
			t.Errorf("%s: keys of %d tables, want %d: %q", name, len(lists), want, lists)
		}
		for _, list := range lists {
			for _, key := range word.FindAllString(list[1], -1) {
				// A key, or a table of its own.
				if key != "or" && !regexp.MustCompile(`(?m)(^|[{,])\s*(`+key+`\s*=|\[+([a-z]+\.)?`+key+`\])`).MatchString(block) {
					t.Errorf("%s: key %s is not in the README's reference", name, key)
				}
			}
		}
	}
}

// TestReadmeIsComplete wants every reason of a drop, every scheduler and every command in the README's reference.
func TestReadmeIsComplete(t *testing.T) {
	text := readme(t)
	for d := drop.Accept + 1; d < drop.NumReasons; d++ {
		if !strings.Contains(text, "| `"+d.String()+"` |") {
			t.Errorf("drop reason %s is not in the README", d)
		}
	}
	for _, s := range balancer.Schedulers() {
		if !strings.Contains(text, s+" |") && !strings.Contains(text, s+" (default)") {
			t.Errorf("scheduler %s is not in the README", s)
		}
	}
	for _, c := range director.Command().Commands() {
		if !strings.Contains(text, "`director "+c.Name()) && !strings.Contains(text, "`"+c.Name()) {
			t.Errorf("command director %s is not in the README", c.Name())
		}
	}
	for _, c := range agent.Command().Commands() {
		if !strings.Contains(text, "`realserver "+c.Name()) && !strings.Contains(text, "`"+c.Name()) {
			t.Errorf("command realserver %s is not in the README", c.Name())
		}
	}
}

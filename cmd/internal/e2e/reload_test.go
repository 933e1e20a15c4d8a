package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/control"
)

// TestReloadCommand has `director reload` read files with faults, of which it names each and changes nothing, and good ones, of which it prints
// what is different.
func TestReloadCommand(t *testing.T) {
	t.Parallel()
	const good = `
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "wrr"
realserver = [ { address = "10.0.11.2" } ]
`
	s := newSite(t, 2, nil)
	s.startWritten(good)
	conn := s.dial("tcp", 80)
	mustAnswer(t, conn)
	for _, bad := range []struct {
		config string
		says   []string // a line each
	}{
		{strings.NewReplacer("wrr", "lottery", "= 80", "= 70000", "10.0.11.2", "10.0.11.256").Replace(good), []string{"lottery", "70000", "10.0.11.256"}},
		{good + "colour = \"red\"\n", []string{"colour"}},
		{"connections.max = 2000\n" + good, []string{"restart"}},
		{"[[service\n", []string{".toml:2:"}}, // no command finds the director's socket in such a file: it says so itself
		{"", []string{"service"}},
	} {
		s.director.configure(s.written(bad.config))
		got := s.ask("reload")
		lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
		if got.code != 1 || got.stdout != "" || len(lines) != len(bad.says) {
			t.Errorf("reload: exit status %d, %d lines; want 1 and %d:\n%s%s", got.code, len(lines), len(bad.says), got.stdout, got.stderr)
		}
		var answer control.Reload
		asJSON := s.ask("reload", "--json")
		if err := json.Unmarshal([]byte(asJSON.stdout), &answer); err != nil || asJSON.code != 1 || answer.Changes == nil || len(answer.Changes) != 0 || len(answer.Errors) != len(bad.says) {
			t.Errorf("reload --json: exit status %d, %v; want 1 and %d errors:\n%s", asJSON.code, err, len(bad.says), asJSON.stdout)
		}
		for _, word := range bad.says {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("reload does not speak of %q:\n%s", word, got.stderr)
			}
			if word != ".toml:2:" { // the log is written behind the answer
				eventually(t, "the log speaks of "+word, soon, func() bool { return strings.Contains(s.director.Output(), word) })
			}
		}
		if st := s.director.balance(); len(st.Services) != 1 || st.Services[0].Scheduler != "wrr" || st.Services[0].Ports[0] != "80" || len(st.Services[0].Realservers) != 1 {
			t.Errorf("the services changed: %+v", st.Services)
		}
		s.mustParrot(80, "web1")
		if server := mustAnswer(t, conn); server != "web1" {
			t.Errorf("the connection is answered by %s", server)
		}
	}

	if changes := s.reloadWritten(good); !slices.Equal(changes, []string{"nothing changed"}) {
		t.Errorf("a reload of the same file prints %q", changes)
	}
	changes := s.reloadWritten(`
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = [80, 443]
realserver = [ { address = "10.0.11.2", weight = 5, upper = 7 }, { address = "10.0.12.2" } ]
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
`)
	want := []string{
		`service "web": port 80 -> 80,443`,
		`service "web": scheduler wrr -> wlc`,
		`service "web": realserver 10.0.11.2: weight 1 -> 5`,
		`service "web": realserver 10.0.11.2: upper 0 -> 7`,
		`service "web": realserver 10.0.12.2: added: weight 1`,
		`service "dns": added: udp 198.51.100.80 port 53, scheduler wlc, 0 realservers`,
	}
	if !slices.Equal(changes, want) {
		t.Errorf("the reload prints\n%s\nwant\n%s", strings.Join(changes, "\n"), strings.Join(want, "\n"))
	}
	if changes := s.reloadWritten(good); !slices.Contains(changes, `service "dns": removed`) || !slices.Contains(changes, `service "web": realserver 10.0.12.2: removed`) {
		t.Errorf("the way back prints %q", changes)
	}
	if server := mustAnswer(t, conn); server != "web1" {
		t.Errorf("the connection is answered by %s", server)
	}
}

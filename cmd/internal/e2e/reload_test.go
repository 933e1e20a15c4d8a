package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestReloadCommand: `director reload` names each fault of a file and changes nothing. It prints the changes of a valid
// one.
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
	s.startWith(good)
	conn := s.dial("tcp", 80)
	mustAnswer(t, conn)
	for _, bad := range []struct {
		config string
		says   []string // a line each
	}{
		{strings.NewReplacer("wrr", "lottery", "= 80", "= 70000", "10.0.11.2", "10.0.11.256").Replace(good),
			[]string{"lottery", "70000", "10.0.11.256"}},
		{good + "colour = \"red\"\n", []string{"colour"}},
		{"connections.max = 2000\n" + good, []string{"restart"}},
		// the command does not find the director's socket in such a file, and reports the fault itself
		{"[[service\n", []string{".toml:2:"}},
		{"", []string{"service"}},
	} {
		s.director.configure(s.fileWith(bad.config))
		got := s.ask("reload")
		lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
		if got.code != 1 || got.stdout != "" || len(lines) != len(bad.says) {
			t.Errorf("reload: exit status %d, %d lines; want 1 and %d:\n%s%s", got.code, len(lines), len(bad.says),
				got.stdout, got.stderr)
		}
		var answer api.Reload
		asJSON := s.ask("reload", "--json")
		if err := json.Unmarshal([]byte(asJSON.stdout), &answer); err != nil || asJSON.code != 1 ||
			answer.Changes == nil || len(answer.Changes) != 0 || len(answer.Errors) != len(bad.says) {
			t.Errorf("reload --json: exit status %d, %v; want 1 and %d errors:\n%s", asJSON.code, err, len(bad.says),
				asJSON.stdout)
		}
		for _, word := range bad.says {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("reload does not speak of %q:\n%s", word, got.stderr)
			}
			if word != ".toml:2:" { // the log is written behind the answer
				testkit.Within(t, "the log speaks of "+word, soon,
					func() bool { return strings.Contains(s.director.Output(), word) })
			}
		}
		if st := s.director.balance(); len(st.Services) != 1 || st.Services[0].Scheduler != "wrr" ||
			st.Services[0].Ports[0] != "80" || len(st.Services[0].Realservers) != 1 {
			t.Errorf("the services changed: %+v", st.Services)
		}
		s.mustBeServedBy(80, "web1")
		if server := mustAnswer(t, conn); server != "web1" {
			t.Errorf("the connection is answered by %s", server)
		}
	}

	if changes := s.reloadWith(good); !slices.Equal(changes, []string{"nothing changed"}) {
		t.Errorf("a reload of the same file prints %q", changes)
	}
	changes := s.reloadWith(`
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
	if changes := s.reloadWith(good); !slices.Contains(changes, `service "dns": removed`) ||
		!slices.Contains(changes, `service "web": realserver 10.0.12.2: removed`) {
		t.Errorf("the reload back prints %q", changes)
	}
	if server := mustAnswer(t, conn); server != "web1" {
		t.Errorf("the connection is answered by %s", server)
	}
}

// TestReloadOfConnections: changed settings of connections apply to existing ones from their next packet on.
func TestReloadOfConnections(t *testing.T) {
	t.Parallel()
	const services = `
connections.keep = ""
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "sh"
realserver = [ { address = "10.0.11.2" } ]
`
	s := newSite(t, 1, nil)
	s.startWith("connections.timeouts.tcp = \"15m\"\n" + services)
	conn := s.dial("tcp", 80)
	mustAnswer(t, conn)
	expires := func() float64 {
		t.Helper()
		all := s.connections("--state", "ESTABLISHED")
		if len(all) != 1 {
			t.Fatalf("connections %+v, want one", all)
		}
		return all[0].Expires
	}
	changes := s.reloadWith("connections.timeouts.tcp = \"2m\"\n" + services)
	if !slices.Equal(changes, []string{"connections: timeouts: tcp 15m0s -> 2m0s"}) {
		t.Errorf("the reload prints %q", changes)
	}
	if e := expires(); e <= 120 {
		t.Errorf("before its next packet the connection ends in %v s", e)
	}
	mustAnswer(t, conn)
	// The last ACK may be on its way.
	testkit.Within(t, "the connection has its new timeout", soon, func() bool { return expires() <= 120 })

	// A director that does not know the connection drops its packets, until a reload lets it take the connection over.
	s.director.stop()
	s.director.configure(s.fileWith("director.no_connection = \"drop\"\n" + services))
	s.director.start()
	if err := conn.SetDeadline(time.Now().Add(6 * soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the director drops it", soon, func() bool {
		return s.director.balance().Drops["no_connection"] > 0
	})
	s.reloadWith("connections.sloppy_tcp = true\n" + services)
	b := make([]byte, 100)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "web1 hello\n" { // the client sends it again
		t.Errorf("got %q, %v", b[:n], err)
	}
	changes = s.reloadWith("connections.half_open_max = 5000\n" + services)
	if bound := s.director.balance().Connections.HalfOpenMax; bound != 5000 {
		t.Errorf("half_open_max is %d; the reload prints %q", bound, changes)
	}
}

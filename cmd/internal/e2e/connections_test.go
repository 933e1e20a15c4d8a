package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestConnectionsCommand lists connections, without and with each filter.
func TestConnectionsCommand(t *testing.T) {
	t.Parallel()
	second := netip.MustParseAddr("198.51.100.81")
	s := newSite(t, 2, nil)
	s.addVIP(second)
	s.addClients(netip.MustParsePrefix("10.200.0.0/16"))
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEchoAt(web, ":80")
		s.namedEchoAt(web, ":443")
		s.nameUDP(web, 53)
	}
	s.startDirectorWith(`
[[service]]
name = "web"
vip = ["198.51.100.80", "198.51.100.81"]
protocol = "tcp"
port = [80, 443]
scheduler = "rr"
persistence = {}
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2" } ]
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
realserver = [ { address = "10.0.12.2" } ]
`)
	// Each of four clients has a template and a connection to each of three virtual ports. One of them is closing.
	for i, client := range []string{"10.200.1.1", "10.200.1.2", "10.200.2.1", "10.200.2.2"} {
		for _, door := range []string{"198.51.100.80:80", "198.51.100.80:443", "198.51.100.81:80"} {
			c, _ := s.whoAnswers(anyPort(netip.MustParseAddr(client)), door)
			if i == 0 && door == "198.51.100.80:443" {
				c.Close()
			}
		}
	}
	askUDP(t, s.dial("udp4", 53))
	testkit.Within(t, "one connection is closing", soon,
		func() bool { return len(s.connections("--state", "FIN_WAIT")) == 1 })

	all := s.connections()
	if len(all) != 4+12+1 {
		t.Fatalf("%d lines, want 17: %+v", len(all), all)
	}
	for _, c := range []struct {
		filters string
		want    func(c api.Connection) bool
		count   int
	}{
		{"--client 10.200.1.1", func(c api.Connection) bool { return c.Client == "10.200.1.1" }, 4},
		{"--client 10.200.1.0/24", func(c api.Connection) bool { return strings.HasPrefix(c.Client, "10.200.1.") },
			8},
		{"--client 10.99.0.0/16", nil, 0},
		{"--vip 198.51.100.81", func(c api.Connection) bool { return c.VIP == "198.51.100.81" || c.Template },
			4 + 4},
		{"--vip 198.51.100.80:443", func(c api.Connection) bool {
			return c.VIP == "198.51.100.80" &&
				c.Port == 443 || c.Template
		}, 4 + 4},
		{"--vip 198.51.100.80:53", func(c api.Connection) bool { return c.Protocol == "udp" && c.Port == 53 }, 1},
		{"--realserver 10.0.11.2", func(c api.Connection) bool { return c.Realserver == "10.0.11.2" }, 8},
		{"--realserver 10.0.12.2", func(c api.Connection) bool { return c.Realserver == "10.0.12.2" }, 9},
		{"--service dns", func(c api.Connection) bool {
			return c.Service == "dns" && c.State == "UDP" && c.Client == s.Client.Addr.String()
		}, 1},
		{"--service web", func(c api.Connection) bool { return c.Service == "web" }, 16},
		{"--state ESTABLISHED", func(c api.Connection) bool {
			return c.State == "ESTABLISHED" && c.ClientPort > 0 &&
				c.Packets >= 3
		}, 11},
		{"--state template", func(c api.Connection) bool { return c.Template && c.ClientPort == 0 && c.Port == 0 },
			4},
		{"--state FIN_WAIT", func(c api.Connection) bool {
			return c.Client == "10.200.1.1" && c.Port == 443 &&
				c.Expires <= 120
		}, 1},
		{"--limit 5", func(api.Connection) bool { return true }, 5},
		{"--limit 0", func(api.Connection) bool { return true }, 17},
		{"--client 10.200.0.0/16 --vip 198.51.100.80 --state ESTABLISHED --realserver 10.0.11.2 " +
			"--service web --limit 3", func(c api.Connection) bool {
			return c.VIP == "198.51.100.80" && c.State == "ESTABLISHED" && c.Realserver == "10.0.11.2"
		}, 3},
	} {
		got := s.connections(strings.Fields(c.filters)...)
		if len(got) != c.count {
			t.Errorf("%s: %d lines, want %d: %+v", c.filters, len(got), c.count, got)
		}
		for _, line := range got {
			if !c.want(line) {
				t.Errorf("%s: it has %+v", c.filters, line)
			}
		}
	}
	text := s.ask("connections", "--service", "dns")
	if lines := strings.Split(text.stdout, "\n"); text.code != 0 || len(lines) != 3 || !strings.HasPrefix(lines[0],
		"pro ") ||
		!strings.Contains(lines[1], " UDP ") || !strings.HasSuffix(lines[1], " 198.51.100.80:53      10.0.12.2:53") {
		t.Errorf("as text: exit status %d, want a head and a line:\n%s%s", text.code, text.stdout, text.stderr)
	}
	for _, wrong := range []string{"--client nobody", "--vip :80", "--realserver web1", "--state OPEN", "--limit -1",
		"--service"} {
		if got := s.ask(append([]string{"connections"}, strings.Fields(wrong)...)...); got.code != 2 ||
			got.stdout != "" || got.stderr == "" {
			t.Errorf("%s: exit status %d, want 2 and an error: %s%s", wrong, got.code, got.stdout, got.stderr)
		}
	}
	for wrong, want := range map[string]string{
		"--service wbe":         `director: there is no service "wbe": did you mean web?`,
		"--service mail":        `director: there is no service "mail": there are dns, web`,
		"--vip 198.51.100.88":   `director: there is no VIP 198.51.100.88: did you mean 198.51.100.80?`,
		"--realserver 10.9.9.9": `director: there is no realserver 10.9.9.9: there are 10.0.11.2, 10.0.12.2`,
	} {
		for _, form := range []string{"--json", "--json=false"} {
			if got := s.ask(append([]string{"connections", form}, strings.Fields(wrong)...)...); got.code != 1 ||
				got.stdout != "" || got.stderr != want+"\n" {
				t.Errorf("%s: exit status %d, want 1 and %s: %s%s", wrong, got.code, want, got.stdout, got.stderr)
			}
		}
	}
}

// TestConnectionsIntoHead reads the first line of very many: the command ends at once, without an error.
func TestConnectionsIntoHead(t *testing.T) {
	t.Parallel()
	const flows = 20_000 // far more than any buffer on the way holds
	s := newRunningSite(t, 1, service{"udp", "53", "rr", []int{1}})
	client := s.rawSender(s.Client)
	random := udpPacket(t, s.Client.Addr, s.VIP, 0, 53, "?")
	for i := range flows {
		// source port, no checksum
		random[20], random[21], random[26], random[27] = byte((10_000+i)>>8), byte(10_000+i), 0, 0
		client.inject(random)
		if i%300 == 299 {
			testkit.Within(t, "the director has read the datagrams", soon,
				func() bool { return s.director.balance().In.Packets >= uint64(i)+1 })
		}
	}
	before := s.director.descriptors()
	for _, form := range []string{"", "--json"} {
		line := fmt.Sprintf("%s connections -c %s %s | head -1; echo ${PIPESTATUS[0]}", programPath("director"),
			s.director.config, form)
		got := run(t, s.Director, exec.Command("bash", "-c", line))
		lines := strings.Split(got.stdout, "\n")
		// 141: ended by SIGPIPE, as cat ends.
		if got.stderr != "" || len(lines) != 3 || lines[1] != "0" && lines[1] != "141" || !strings.HasPrefix(lines[0],
			"pro ") && !strings.HasPrefix(lines[0], "{") {
			t.Errorf("%s: it writes %q, and %q as an error; want one line, and to end quietly", form, got.stdout,
				got.stderr)
		}
	}
	testkit.Within(t, "the director has closed the connection that is not read", soon,
		func() bool { return s.director.descriptors() <= before })
	if n := len(s.connections()); n != flows {
		t.Errorf("%d connections, want %d", n, flows)
	}
}

// TestControlIsForItsOwner: user nobody may not use the control sockets, whatever the command is.
func TestControlIsForItsOwner(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	s.openDir()
	for _, p := range []*program{s.director, s.agents[0]} {
		commands := []string{"status", "profile"}
		if p == s.director {
			commands = append(commands, "connections", "reload", "set s1 10.0.11.2 --weight 0",
				"drain s1 10.0.11.2 --wait", "undrain s1 10.0.11.2", "top --once",
				"explain 192.0.2.7:4711 198.51.100.80:80", "capture -w -")
		}
		for _, command := range commands {
			cmd := exec.Command(programPath(p.name), append(strings.Fields(command), "-c", p.config)...)
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unprivileged,
				Gid: unprivileged}}
			if got := run(t, p.host, cmd); got.code != 1 || strings.Count(got.stderr, "\n") != 1 ||
				!strings.Contains(got.stderr, p.socket+": connect: permission denied") {
				t.Errorf("%s %s by user nobody: exit status %d, %s; want 1 and one line: permission denied",
					p.name, command, got.code, got.stderr)
			}
		}
		info, err := os.Stat(p.socket)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the socket of %s: %v, %v; want mode 0600", p, info.Mode(), err)
		}
	}
}

// openDir lets all users enter the site's directory.
func (s *site) openDir() {
	s.t.Helper()
	for dir := s.dir; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
}

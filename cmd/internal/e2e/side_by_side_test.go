package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestSideBySide: a director of nat and an agent for another director's VIP run on one host. Each works on while the
// other starts, stops or is killed, in either order; the host is the same before and after.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	s := newMethodSite(t, nat, false, 2, nil)
	web, second, insider := s.Webs[0], s.Webs[1], s.Insider
	own := netip.MustParseAddr("10.0.3.1") // the host's address there
	vip2 := netip.MustParseAddr("198.51.100.81")
	for _, h := range []*lab.Host{insider, web} {
		if err := h.Route(vip2, second.Addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := second.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	s.namedEchoAt(web, ":8080")
	s.namedEchoAt(s.Director, ":81")
	before := map[string]hostState{s.Director.Name: observe(t, s.Director)}

	other := newProgram(t, second, "director", filepath.Join(s.dir, "other.toml"), filepath.Join(s.dir, "other",
		"c.sock"))
	other.configure(fmt.Sprintf(`
director.control = %q
[[service]]
name = "other"
vip = %q
protocol = "tcp"
port = 81
realserver = [ { address = %q } ]
`, other.socket, vip2, own))
	other.start()
	director := s.prepare(s.Director, "director")
	director.configure(fmt.Sprintf(`
director.control = %q
[[service]]
name = "web"
vip = %q
protocol = "tcp"
port = 80
forward = "nat"
realserver = [ { address = %q, port = 8080 } ]
`, director.socket, s.VIP, web.Addr))
	agent := newProgram(t, s.Director, "realserver", filepath.Join(s.dir, "agent.toml"), filepath.Join(s.dir, "agent",
		"c.sock"))
	configure := func(tun string) {
		agent.configure(fmt.Sprintf("[realserver]\nvips = [%q]\ndirectors = [%q]\ncontrol = %q\n%s", vip2, second.Addr,
			agent.socket, tun))
	}
	ask := func(h *lab.Host, to netip.AddrPort, want string) {
		t.Helper()
		c := s.dialAt(h, anyPort(h.Addr), to)
		if got := mustAnswer(t, c); got != want {
			t.Errorf("%v: %s answers, want %s", to, got, want)
		}
		c.Close()
	}
	mustDirect := func() { t.Helper(); ask(s.Client, netip.AddrPortFrom(s.VIP, 80), web.Name) }
	mustTake := func() { t.Helper(); ask(insider, netip.AddrPortFrom(vip2, 81), s.Director.Name) }

	configure("") // the device is chosen
	director.start()
	agent.start()
	if tun := agent.intake().TUN; tun != "vs1" {
		t.Errorf("beside a director the agent's device is %s", tun)
	}
	mustDirect()
	mustTake()
	got := run(t, s.Director, reloadOf(agent))
	if got.code != 0 {
		t.Errorf("reload: %s%s", got.stdout, got.stderr)
	}
	agent.stop()
	mustDirect()
	agent.start()
	director.stop()
	mustTake()
	if got := run(t, s.Director, reloadOf(agent)); got.code != 0 {
		t.Errorf("reload without the director: %s%s", got.stdout, got.stderr)
	}
	director.start() // the other order
	mustDirect()
	mustTake()
	for _, killed := range []*program{agent, director} {
		killed.kill()
		if killed == agent {
			mustDirect()
		} else {
			mustTake()
		}
		killed.start()
		mustDirect()
		mustTake()
	}
	agent.stop()
	configure("tun = \"vs9\"\n")
	director.stop()
	agent.start()
	mustTake()
	director.start()
	mustDirect()
	mustTake()
	agent.stop()
	director.stop()
	testkit.Within(t, "the addresses are settled", soon, func() bool { return settled(t, s.Director) })
	mustBe(t, "after the end", before, map[string]hostState{s.Director.Name: observe(t, s.Director)})
}

func reloadOf(p *program) *exec.Cmd {
	return exec.Command(programPath(p.name), "reload", "-c", p.config)
}

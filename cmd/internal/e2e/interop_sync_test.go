package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// kernelPair is a kernel director and one of ours in a LAN, with the same services: TCP port 80, UDP port 53, and TCP
// port 443, which is persistent.
type kernelPair struct {
	*site
	ours *program
	flag string // of ipvsadm, for the forwarding method
}

// newKernelPair starts the kernel's sync daemon in a state, "master" or "backup", and our director.
func newKernelPair(t *testing.T, m method, ipv6 bool, state string) *kernelPair {
	t.Helper()
	needKernel(t)
	s := newSiteBy(t, dr, 3, nil)
	s.speak(ipv6)
	s.sources = append(s.sources, s.Webs[2].Addr)
	p := &kernelPair{site: s, flag: "-g"}
	agent := "encap = []"
	if m == tun {
		p.flag, agent = "-i", `encap = ["ipip"]`
	}
	for _, web := range s.Webs[:2] {
		s.startAgent(web, agent)
		s.namedEcho(web, 80)
		s.namedEcho(web, 443)
		s.echoUDP(web, 53)
	}
	if err := s.Director.Own(s.VIP); err != nil {
		t.Fatal(err)
	}
	var rules strings.Builder
	for port, service := range map[uint16]string{80: "-t %s", 443: "-t %s -p 300", 53: "-u %s"} {
		fmt.Fprintf(&rules, "-A "+service+" -s rr\n", s.at(port))
		for _, web := range s.Webs[:2] {
			fmt.Fprintf(&rules, "-a %s %s -r %s %s\n", service[:2], s.at(port), netip.AddrPortFrom(web.Addr, port),
				p.flag)
		}
	}
	s.command(s.Director, rules.String(), "ipvsadm", "-R")
	s.command(s.Director, "", "ipvsadm", "--start-daemon", state, "--mcast-interface", "eth0", "--syncid", "7")
	p.ours = s.prepare(s.Webs[2], "director")
	p.ours.configure(p.toml(m))
	p.ours.start()
	testkit.Within(t, "our director is ready", soon, func() bool { return p.ours.peers().Ready })
	return p
}

func (p *kernelPair) toml(m method) string {
	text := fmt.Sprintf("[director]\ncontrol = %q\nannounce = \"none\"\n[connections]\nmax = 10_000\n"+
		"[sync]\nmode = \"ipvs\"\ninterface = \"eth0\"\nid = 7\n", p.ours.socket)
	for _, s := range []struct {
		protocol, more string
		port           int
	}{{"tcp", "", 80}, {"udp", "", 53}, {"tcp", "persistence = { timeout = \"5m\" }", 443}} {
		text += fmt.Sprintf("[[service]]\nname = \"s%d\"\nvip = %q\nprotocol = %q\nport = %d\nscheduler = \"rr\"\n"+
			"forward = %q\n%s\nrealserver = [{ address = %q }, { address = %q }]\n", s.port, p.VIP, s.protocol, s.port,
			m, s.more, p.Webs[0].Addr, p.Webs[1].Addr)
	}
	return text
}

// switchTo lets the router send the VIP's packets to a director.
func (p *kernelPair) switchTo(h *lab.Host) {
	p.t.Helper()
	p.command(p.Router, fmt.Sprintf("route replace %s via %s\n", p.VIP, h.Addr), "ip", "-batch", "-")
}

// kernelRows returns the lines of `ipvsadm -Lnc` about connections.
func (p *kernelPair) kernelRows() []string {
	p.t.Helper()
	out := run(p.t, p.Director, exec.Command("ipvsadm", "-Lnc"))
	if out.code != 0 {
		p.t.Fatal(out.stderr)
	}
	lines := strings.Split(strings.TrimSpace(out.stdout), "\n")
	return lines[min(2, len(lines)):]
}

// traffic is connections of each kind, with their servers.
type traffic struct {
	conns      []net.Conn
	servers    []string
	persistent string
	datagrams  net.Conn
}

// begin makes connections through the director that the router leads to.
func (p *kernelPair) begin() (all traffic) {
	p.t.Helper()
	for range 10 {
		c, server := p.whoAnswers(anyPort(p.Client.Addr), p.at(80))
		all.conns, all.servers = append(all.conns, c), append(all.servers, server)
	}
	c, server := p.whoAnswers(anyPort(p.Client.Addr), p.at(443))
	all.conns, all.servers = append(all.conns, c), append(all.servers, server)
	all.persistent = server
	all.datagrams = p.dial("udp", 53)
	for range 4 {
		if err := exchange(all.datagrams, payload(64)); err != nil {
			p.t.Fatal(err)
		}
	}
	// The kernel counts a template's connections, too, and sends it with the third.
	for range 3 {
		if _, again := p.whoAnswers(anyPort(p.Client.Addr), p.at(443)); again != server {
			p.t.Fatalf("a persistent client gets to %s, then %s", server, again)
		}
	}
	return all
}

// mustGoOn wants every connection to be answered by the same server, and new persistent ones, too.
func (p *kernelPair) mustGoOn(all traffic) {
	p.t.Helper()
	for i, c := range all.conns {
		if got := mustAnswer(p.t, c); got != all.servers[i] {
			p.t.Errorf("connection %d is answered by %s, want %s", i, got, all.servers[i])
		}
	}
	for range 3 {
		if _, got := p.whoAnswers(anyPort(p.Client.Addr), p.at(443)); got != all.persistent {
			p.t.Errorf("the persistent client gets to %s, want %s", got, all.persistent)
		}
	}
	if err := exchange(all.datagrams, payload(64)); err != nil {
		p.t.Error(err)
	}
}

// byKernelMethod runs a test for each forwarding method and family.
func byKernelMethod(t *testing.T, test func(t *testing.T, m method, ipv6 bool)) {
	for _, m := range []method{tun, dr} {
		for _, ipv6 := range []bool{false, true} {
			name := string(m) + "-ipv4"
			if ipv6 {
				name = string(m) + "-ipv6"
			}
			t.Run(name, func(t *testing.T) { test(t, m, ipv6) })
		}
	}
}

// TestInteropSyncFromKernel: connections made at a kernel director survive at ours.
func TestInteropSyncFromKernel(t *testing.T) {
	byKernelMethod(t, func(t *testing.T, m method, ipv6 bool) {
		p := newKernelPair(t, m, ipv6, "master")
		p.switchTo(p.Director)
		all := p.begin()
		// 14 connections of TCP, one of UDP, and a template.
		testkit.Within(t, "our director has the connections", 3*soon, func() bool {
			rows := p.ours.rows()
			return len(rows) >= 16 && strings.Contains(strings.Join(rows, "\n"), "TEMPLATE")
		})
		p.switchTo(p.Webs[2])
		p.mustGoOn(all)
		s := p.ours.peers()
		if len(s.Refused) > 0 || len(s.Peers) != 1 || p.ours.balance().Resets != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestInteropSyncToKernel: connections made at our director survive at a kernel director, whose ipvsadm lists them.
func TestInteropSyncToKernel(t *testing.T) {
	byKernelMethod(t, func(t *testing.T, m method, ipv6 bool) {
		p := newKernelPair(t, m, ipv6, "backup")
		p.switchTo(p.Webs[2])
		all := p.begin()
		testkit.Within(t, "the kernel has the connections", 3*soon, func() bool { return len(p.kernelRows()) >= 16 })
		rows := strings.Join(p.kernelRows(), "\n")
		for _, c := range all.conns {
			from := netip.MustParseAddrPort(c.LocalAddr().String()).String()
			if !strings.Contains(rows, "ESTABLISHED "+from) {
				t.Errorf("%s is not listed:\n%s", from, rows)
			}
		}
		if !strings.Contains(rows, "UDP ") || !strings.Contains(rows, "ASSURED ") {
			t.Errorf("no datagrams or no template:\n%s", rows)
		}
		p.switchTo(p.Director)
		p.mustGoOn(all)
	})
}

package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/routing"
)

// natService is a service of VS/NAT with realservers, each an address or an address and port.
func natService(protocol, ports string, realservers ...string) config.Service {
	s := config.Service{Name: protocol + ports, Protocol: protocol, Forward: method.NAT}
	for _, p := range strings.Fields(ports) {
		r := balancer.EveryPort
		if n, _ := fmt.Sscanf(p, "%d-%d", &r.First, &r.Last); n == 1 {
			r.Last = r.First
		}
		s.Ports = append(s.Ports, r)
	}
	for _, at := range realservers {
		rs := config.RealserverRef{Forward: method.NAT, Weight: 1}
		if a, err := netip.ParseAddr(at); err == nil {
			rs.Address = a
		} else {
			id := netip.MustParseAddrPort(at)
			rs.Address, rs.Port = id.Addr(), id.Port()
		}
		s.VIPs = []netip.Addr{vip}
		if rs.Address.Is6() {
			s.VIPs = []netip.Addr{netip.MustParseAddr("2001:db8:100::80")}
		}
		s.Realservers = append(s.Realservers, rs)
	}
	return s
}

// natInputs are services behind eth1; own are addresses of this host.
func natInputs(own string, services ...config.Service) Inputs {
	in := Inputs{Config: &config.Director{TUN: "vs0", Table: 30325, Services: services}, Paths: Paths{},
		Rules: Rules{IPv4: true, IPv6: true}}
	for _, n := range NATServers(in.Config) {
		path := in.Paths[n.Address]
		if path.Link, path.MTU = "eth1", 1500; slices.Contains(strings.Fields(own), n.Address.String()) {
			path.Link, path.Local = "lo", true
		}
		in.Paths[n.Address] = path
	}
	return in
}

// aPacket is a packet as rules see it. Without a port it is a fragment, or ICMP.
type aPacket struct {
	in, from string
	protocol uint8
	port     uint16
}

const tcp, udp, sctp, icmp = packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoICMP

// table returns the table that the kernel looks up for p, 0 for the main table, and the number of rules that it tries.
func (p aPacket) table(rules []routing.Rule) (table, tried int) {
	rules = slices.Clone(rules)
	slices.SortStableFunc(rules, func(a, b routing.Rule) int { return a.Priority - b.Priority })
	from := netip.MustParseAddr(p.from)
	target := 0
	for _, r := range rules {
		if r.Priority < target || r.IPv6 != from.Is6() {
			continue
		}
		tried++
		ports := r.SrcPorts == routing.PortRange{} || p.port >= r.SrcPorts.First && p.port <= r.SrcPorts.Last
		switch {
		case r.In != "" && r.In != p.in, r.From.IsValid() && !r.From.Contains(from), !ports:
		case r.Protocol != 0 && r.Protocol != p.protocol:
		case r.Goto != 0:
			target = r.Goto
		case r.Table == 30325: // it has routes to VIPs only
		case r.Table != 0:
			return r.Table, tried
		}
	}
	return 0, tried
}

// TestNoRedirects: the kernel sends no ICMP redirects by the devices towards IPv4 servers, and only by those.
func TestNoRedirects(t *testing.T) {
	redirects := func(in Inputs) (all []string) {
		for _, s := range Machine(in).Sysctls {
			if strings.HasSuffix(s.Key, "/send_redirects") {
				all = append(all, strings.Split(s.Key, "/")[3]+"="+s.Value)
			}
		}
		return all
	}
	if got := redirects(natInputs("", natService("tcp", "80", "10.0.12.2"))); !slices.Equal(got,
		[]string{"all=0", "eth1=0"}) {
		t.Errorf("with a server behind eth1: %v", got)
	}
	if got := redirects(natInputs("127.0.0.1", natService("tcp", "80", "127.0.0.1"),
		natService("tcp", "443", "fd00::2"))); len(got) != 0 {
		t.Errorf("with servers on this host and over IPv6: %v", got)
	}
}

// TestTableHints: an error about a table names the key that chooses it.
func TestTableHints(t *testing.T) {
	s := Machine(natInputs("", natService("tcp", "80", "10.0.12.2")))
	for _, r := range s.Routes {
		if r.Table != 0 && !strings.Contains(s.Tables[r.Table], "set another table in [director]") {
			t.Errorf("of table %d: %q", r.Table, s.Tables[r.Table])
		}
	}
	if got := s.Tables[95861]; !strings.HasSuffix(got, "(this one is table = 30325 plus 65536)") {
		t.Errorf("of the table of replies: %q", got)
	}
}

// TestReplies: the replies of servers enter the TUN device, whatever their form, and other packets do not: those that
// were written back, those of other ports, and this host's own.
func TestReplies(t *testing.T) {
	in := natInputs("10.0.2.2 127.0.0.1 fd00::2",
		natService("tcp", "80", "10.0.12.2", "10.0.12.3:8080", "10.0.2.2", "127.0.0.1:8000"),
		natService("udp", "53", "10.0.12.4", "10.0.2.2"),
		natService("sctp", "2905-2910 65530-65535", "10.0.12.5"),
		natService("tcp", "443", "fd00::12:2", "fd00::2"), natService("tcp", "65535", "10.0.12.6"),
		natService("tcp", "0", "10.0.12.7"))
	s := Machine(in)
	const reply = 95861
	for _, c := range []struct {
		p    aPacket
		want int
	}{
		{aPacket{"eth1", "10.0.12.2", tcp, 80}, reply},
		{aPacket{"eth2", "10.0.12.2", tcp, 80}, reply}, // the way back may be another one
		{aPacket{"eth1", "10.0.12.2", tcp, 8080}, 0},
		{aPacket{"eth1", "10.0.12.3", tcp, 8080}, reply},
		{aPacket{"eth1", "10.0.12.3", tcp, 80}, 0},
		{aPacket{"eth1", "10.0.12.2", tcp, 0}, reply}, // fragments
		{aPacket{"eth1", "10.0.12.5", sctp, 0}, reply},
		{aPacket{"eth1", "10.0.12.4", udp, 0}, reply},
		{aPacket{"eth1", "10.0.12.4", tcp, 0}, 0},
		{aPacket{"eth1", "10.0.12.4", udp, 53}, reply},
		{aPacket{"eth1", "10.0.12.4", udp, 99}, 0}, // its own questions
		{aPacket{"eth1", "10.0.12.2", udp, 53}, 0},
		{aPacket{"eth1", "10.0.12.5", sctp, 2910}, reply},
		{aPacket{"eth1", "10.0.12.5", sctp, 65535}, reply},
		{aPacket{"eth1", "10.0.12.5", sctp, 2911}, 0},
		{aPacket{"eth1", "10.0.12.6", tcp, 65535}, reply},
		{aPacket{"eth1", "10.0.12.7", tcp, 9999}, reply}, // every port
		{aPacket{"eth1", "10.0.99.1", icmp, 0}, reply},   // of a router
		{aPacket{"eth0", "192.0.2.1", icmp, 0}, 0},
		{aPacket{"eth0", "192.0.2.1", tcp, 80}, 0},
		{aPacket{"eth0", "192.0.2.1", tcp, 0}, 0},
		{aPacket{"vs0", "10.0.12.2", tcp, 80}, 0},
		{aPacket{"vs0", "10.0.12.2", tcp, 0}, 0},
		{aPacket{"vs0", "10.0.99.1", icmp, 0}, 0},
		{aPacket{"lo", "10.0.12.2", tcp, 80}, 0}, // the source of a packet to the server is checked
		{aPacket{"lo", "10.0.2.2", tcp, 80}, reply},
		{aPacket{"lo", "10.0.2.2", tcp, 22}, 0},
		{aPacket{"lo", "10.0.2.2", udp, 53}, reply},
		{aPacket{"lo", "10.0.2.2", icmp, 0}, reply},
		{aPacket{"lo", "127.0.0.1", tcp, 8000}, reply},
		{aPacket{"vs0", "10.0.2.2", tcp, 80}, 0},
		{aPacket{"eth1", "fd00::12:2", tcp, 443}, reply},
		{aPacket{"eth1", "fd00::12:2", tcp, 0}, reply},
		{aPacket{"eth1", "fd00::99", packet.ProtoICMPv6, 0}, reply},
		{aPacket{"vs0", "fd00::12:2", tcp, 443}, 0},
		{aPacket{"lo", "fd00::2", tcp, 443}, reply},
	} {
		if got, _ := c.p.table(s.Rules); got != c.want {
			t.Errorf("%+v: table %d, want %d", c.p, got, c.want)
		}
	}
	values := map[string]string{}
	for _, c := range s.Sysctls {
		values[c.Key] = c.Value
	}
	if values["net/ipv4/conf/vs0/accept_local"] != "1" || values["net/ipv4/conf/vs0/route_localnet"] != "1" ||
		!slices.Equal(s.Loose, []string{"eth1", "vs0"}) || len(s.Addrs) != 1 {
		t.Errorf("sysctls %v, loose %v, addresses %v", values, s.Loose, s.Addrs)
	}
	want := map[routing.Route]bool{}
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		to := netip.MustParsePrefix(dst)
		want[routing.Route{Dst: to, Link: "vs0", MTU: 1500, Table: reply}] = true
		want[routing.Route{Dst: to, Blackhole: true, Metric: lastResort, Table: reply}] = true
	}
	got := map[routing.Route]bool{}
	for _, r := range s.Routes {
		if r.Table == reply {
			got[r] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("routes of replies: %+v, want %+v", got, want)
	}
	if own := in.OwnServers(); len(own) != 1 || own[0] != netip.MustParseAddr("10.0.2.2") {
		t.Errorf("own servers %v", own)
	}
}

// TestFewReplyRules: a service of one realserver needs few rules; without VS/NAT there is none.
func TestFewReplyRules(t *testing.T) {
	s := Machine(natInputs("", natService("tcp", "80", "10.0.12.2")))
	if len(s.Rules) != 7+1 { // one is for VIPs
		t.Errorf("%d rules: %+v", len(s.Rules), s.Rules)
	}
	for _, c := range s.Sysctls {
		if strings.Contains(c.Key, "accept_local") && !c.Cosmetic || strings.Contains(c.Key, "route_localnet") {
			t.Errorf("%+v without a server on this host", c)
		}
	}
	cfg := natInputs("", natService("tcp", "80", "10.0.12.2"))
	cfg.Config.Services[0].Realservers[0].Forward = method.TUN
	if s := Machine(cfg); len(s.Addrs) != 0 || len(s.Rules) != 1 || len(s.Loose) != 0 {
		t.Errorf("without VS/NAT: %+v", s)
	}
	none := natInputs("", natService("tcp", "80", "10.0.12.2"))
	none.Rules = Rules{}
	if s := Machine(none); len(s.Rules) != 0 {
		t.Errorf("without rules in the kernel: %+v", s)
	}
}

// TestManyReplyRules: a thousand realservers with 40 ports, in addresses without order, need few rules, and a packet
// tries few of them. Every reply still enters the TUN device.
func TestManyReplyRules(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var services []config.Service
	for port := range 40 {
		var addrs []string
		for range 25 {
			addrs = append(addrs, fmt.Sprintf("10.%d.%d.%d", r.IntN(2), r.IntN(256), 1+r.IntN(254)))
		}
		services = append(services, natService("tcp", fmt.Sprint(8000+port), addrs...))
	}
	in := natInputs("", services...)
	rules := Machine(in).Rules
	most := 0
	try := func(p aPacket, want int) {
		got, tried := p.table(rules)
		if got != want {
			t.Errorf("%+v: table %d, want %d", p, got, want)
		}
		most = max(most, tried)
	}
	for _, n := range NATServers(in.Config) {
		try(aPacket{"eth1", n.Address.String(), tcp, n.Ports.First}, 95861)
		try(aPacket{"eth1", n.Address.String(), tcp, 0}, 95861)
	}
	try(aPacket{"eth0", "192.0.2.1", tcp, 40000}, 0)
	try(aPacket{"eth0", "192.0.2.1", udp, 40000}, 0)
	try(aPacket{"vs0", "192.0.2.1", tcp, 40000}, 0)
	t.Logf("%d rules, %d tried at most", len(rules), most)
	if len(rules) > 1300 || most > 150 {
		t.Errorf("%d rules, and a packet tries up to %d", len(rules), most)
	}
	for _, r := range rules {
		if r.Priority > endPriority {
			t.Fatalf("%+v is behind the target of goto", r)
		}
	}
}

// TestPrefixes: adjacent addresses are one prefix; too many prefixes become larger ones.
func TestPrefixes(t *testing.T) {
	all := func(first string, n, step int) (list []netip.Addr) {
		for a := netip.MustParseAddr(first); len(list) < n; {
			list = append(list, a)
			for range step {
				a = a.Next()
			}
		}
		return list
	}
	for _, c := range []struct {
		addrs []netip.Addr
		want  string
	}{
		{all("10.0.12.2", 1, 1), "[10.0.12.2/32]"},
		{all("10.0.12.0", 1024, 1), "[10.0.12.0/22]"},
		{all("10.0.12.1", 3, 1), "[10.0.12.1/32 10.0.12.2/31]"},
		{all("fd00::", 1024, 1), "[fd00::/118]"},
		{all("10.0.0.0", 128, 2), "[10.0.0.0/24]"}, // every other address
	} {
		if got := fmt.Sprint(prefixes(c.addrs)); got != c.want {
			t.Errorf("%d addresses from %v: %s, want %s", len(c.addrs), c.addrs[0], got, c.want)
		}
	}
}

// TestRetiredNAT: a server that leaves the configuration keeps its rules while it is retired.
func TestRetiredNAT(t *testing.T) {
	in := natInputs("", natService("tcp", "80", "10.0.12.2", "10.0.12.3:8080"))
	less := natInputs("", natService("tcp", "80", "10.0.12.2"))
	is := in.Reconfigured(less.Config)
	gone := NATServer{netip.MustParseAddr("10.0.12.3"), tcp, config.PortRange{First: 8080, Last: 8080}}
	if !slices.Equal(is.RetiredNAT, []NATServer{gone}) {
		t.Fatalf("%v are retired", is.RetiredNAT)
	}
	p := aPacket{"eth1", "10.0.12.3", tcp, 8080}
	if got, _ := p.table(Machine(is).Rules); got != 95861 {
		t.Errorf("a reply of the retired server: table %d", got)
	}
	trimmed := is
	trimmed.RetiredNAT = nil
	if got, _ := p.table(Machine(trimmed).Rules); got != 0 || trimmed.SameMachine(&is) {
		t.Errorf("a reply of a server that is gone: table %d", got)
	}
	if back := is.Reconfigured(in.Config); len(back.RetiredNAT) != 0 {
		t.Errorf("%v are retired, and configured", back.RetiredNAT)
	}
	moved := is
	moved.Paths = Paths{gone.Address: {Link: "eth2", MTU: 1500}}
	if moved.SameMachine(&is) {
		t.Error("another device, and the same machine")
	}
}

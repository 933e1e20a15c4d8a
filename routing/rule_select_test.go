package routing

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/routing/query"
)

// gotoState has rules with every selector and action: replies of a web server go into vs0, except packets that come in
// by vs0.
func gotoState() State {
	s := State{
		Sysctls: []Sysctl{{Key: "net/ipv4/ip_forward", Value: "1"}, {Key: "net/ipv6/conf/all/forwarding", Value: "1"}},
		Links:   []Link{{Name: "vs0", Up: true}},
	}
	for _, server := range []string{"10.1.0.128/25", "fd00:1::7/128"} {
		from := netip.MustParsePrefix(server)
		six := from.Addr().Is6()
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if six {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		s.Routes = append(s.Routes, Route{Dst: everywhere, Link: "vs0", Table: 5082})
		s.Rules = append(s.Rules, Rule{IPv6: six, In: "vs0", Priority: 20},
			Rule{IPv6: six, In: "vs0", Goto: 20, Priority: 11}, Rule{IPv6: six, In: Loopback, Goto: 20, Priority: 11},
			Rule{IPv6: six, From: from, Protocol: unix.IPPROTO_TCP, SrcPorts: PortRange{80, 80}, Table: 5082,
				Priority: 12},
			Rule{IPv6: six, From: from, Protocol: unix.IPPROTO_SCTP, SrcPorts: PortRange{80, 89}, Table: 5082,
				Priority: 12},
			Rule{IPv6: six, In: "east", Protocol: unix.IPPROTO_ICMP, Table: 5082, Priority: 12})
	}
	return s
}

// TestRuleSelectors: each selector selects, a goto skips, and all rules are undone, also after a kill.
func TestRuleSelectors(t *testing.T) {
	newLocalHost(t)
	setSysctl(t, "net/ipv4/conf/vs0/rp_filter", "2")
	setSysctl(t, "net/ipv4/conf/east/rp_filter", "0")
	addAddr(t, "vs0", "127.118.0.1/32")
	before := machineState(t)
	m := open(t)
	must(t, m.Set(gotoState()))
	const tcp, udp, icmp = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP
	for _, c := range []struct {
		from, in string
		protocol uint8
		port     uint16
		want     string
	}{
		{"10.1.0.200", "east", tcp, 80, "vs0"},
		{"10.1.0.200", "east", tcp, 81, "west"},
		{"10.1.0.100", "east", tcp, 80, "west"},
		{"10.1.0.200", "vs0", tcp, 80, "west"}, // written back
		{"10.1.0.200", "east", udp, 80, "west"},
		{"10.1.0.100", "east", icmp, 0, "vs0"},
		{"10.1.0.100", "vs0", icmp, 0, "west"},
	} {
		got, _, _, err := query.LookupFlow(query.Flow{Src: netip.MustParseAddr(c.from), In: c.in,
			Dst: netip.MustParseAddr("10.2.0.77"), Protocol: c.protocol, SrcPort: c.port})
		if got != c.want || err != nil {
			t.Errorf("%+v: sent to %q, %v", c, got, err)
		}
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	up := machineState(t)
	for _, r := range gotoState().Rules {
		must(t, netlink.RuleDel(r.record().kernel()))
	}
	if n, err := m.passAgain(); n != len(gotoState().Rules) || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	sameState(t, up, machineState(t))
	j, err := readJournal(m.path)
	if err != nil || len(j.Did.Rules) != len(gotoState().Rules) {
		t.Errorf("the journal has %d rules, %v", len(j.Did.Rules), err)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestRulesOfOthers: an equal rule of another program stays when the Manager ends.
func TestRulesOfOthers(t *testing.T) {
	newLocalHost(t)
	for _, r := range gotoState().Rules[:4] {
		k := r.record().kernel()
		if k.Protocol = unix.RTPROT_STATIC; r.Goto == 0 && r.Table == 0 {
			k.Type = nop
		}
		must(t, netlink.RuleAdd(k))
	}
	before := machineState(t)
	m := open(t)
	must(t, m.Set(gotoState()))
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestManyRules: rules for thousands of realservers are set, checked and undone within a reload's time.
func TestManyRules(t *testing.T) {
	newLocalHost(t)
	s := gotoState()
	for a := netip.MustParseAddr("10.3.0.1"); len(s.Rules) < 3000; a = a.Next().Next() { // no two make a prefix
		s.Rules = append(s.Rules, Rule{From: kernel.HostPrefix(a), Protocol: unix.IPPROTO_TCP,
			SrcPorts: PortRange{80, 80}, Table: 5082, Priority: 12})
	}
	m := open(t)
	set := quickest(1, func() { must(t, m.Set(s)) })
	again := quickest(1, func() {
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Errorf("another pass made %d changes, %v", n, err)
		}
	})
	undone := quickest(1, func() { must(t, m.Close()) })
	t.Logf("%d rules set in %v, checked in %v, undone in %v", len(s.Rules), set, again, undone)
	if set > 5*time.Second || again > time.Second || undone > 5*time.Second {
		t.Error("too slow")
	}
}

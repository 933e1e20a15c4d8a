package routing

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

var (
	localVIP4, localClient4 = netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.1.0.7")
	localVIP6, localClient6 = netip.MustParseAddr("2001:db8:100::80"), netip.MustParseAddr("fd00:1::7")
)

// localState sends packets to VIPs of both families into vs0, and this host's own packets to them into vs1.
func localState() State {
	s := State{
		Sysctls: []Sysctl{{Key: "net/ipv4/ip_forward", Value: "1"}, {Key: "net/ipv6/conf/all/forwarding", Value: "1"}},
		Links:   []Link{{Name: "vs0", Up: true}, {Name: "vs1", Up: true}},
		Rules: []Rule{{In: Loopback, Table: 5081, Priority: 10},
			{IPv6: true, In: Loopback, Table: 5081, Priority: 10}},
	}
	for _, vip := range []netip.Addr{localVIP4, localVIP6} {
		s.Routes = append(s.Routes, Route{Dst: kernel.HostPrefix(vip), Link: "vs0"},
			Route{Dst: kernel.HostPrefix(vip), Link: "vs1", Table: 5081})
	}
	return s
}

// newLocalHost is newHost with IPv6 and a second TUN device.
func newLocalHost(t *testing.T) {
	t.Helper()
	newHost(t)
	// The kernel adds no address by itself later.
	for _, link := range []string{"default", "east", "west", "vs0"} {
		setSysctl(t, "net/ipv6/conf/"+link+"/addr_gen_mode", "1")
	}
	for _, key := range []string{"all/disable_ipv6", "default/disable_ipv6", "east/disable_ipv6",
		"lo/disable_ipv6", "vs0/disable_ipv6"} {
		setSysctl(t, "net/ipv6/conf/"+key, "0")
	}
	addAddr(t, "east", "fd00:1::1/64")
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs1"), Mode: netlink.TUNTAP_MODE_TUN}))
	testkit.Eventually(t, "the host has its IPv6 address", func() bool {
		hop, ok, err := query.Lookup(localClient6, netip.Addr{})
		return err == nil && ok && hop.Source == netip.MustParseAddr("fd00:1::1")
	})
}

// mustLead checks that this host's own packets to the VIPs take one device, and forwarded ones vs0.
func mustLead(t *testing.T, when, local string) {
	t.Helper()
	for vip, client := range map[netip.Addr]netip.Addr{localVIP4: localClient4, localVIP6: localClient6} {
		if hop, ok, err := query.Lookup(vip, netip.Addr{}); err != nil || !ok || hop.Link != local {
			t.Errorf("%s: what this host sends to %v goes to %+v, %v, %v; want %s", when, vip, hop, ok, err, local)
		}
		if hop, ok, err := query.LookupForwarded(vip, client, "east"); err != nil || !ok || hop.Link != "vs0" {
			t.Errorf("%s: what comes in for %v goes to %+v, %v, %v; want vs0", when, vip, hop, ok, err)
		}
	}
}

func TestRules(t *testing.T) {
	newLocalHost(t)
	// Another rule of that priority, and a later rule, as on hosts with several uplinks.
	for _, r := range []ruleRecord{{Priority: 10, From: netip.MustParseAddr("192.0.2.1"), Table: 77},
		{Priority: 100, From: netip.MustParseAddr("10.1.0.1"), Table: 78}} {
		rule := r.kernel()
		rule.Protocol = unix.RTPROT_STATIC
		must(t, netlink.RuleAdd(rule))
	}
	before := machineState(t)
	m := open(t)
	must(t, m.Set(localState()))
	mustLead(t, "set", "vs1")
	up := machineState(t)
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}

	for _, r := range localState().Rules {
		must(t, netlink.RuleDel(r.record().kernel()))
	}
	must(t, netlink.RouteDel(&netlink.Route{Dst: cidr("198.51.100.80/32"), Table: 5081, Scope: unix.RT_SCOPE_NOWHERE}))
	mustLead(t, "without rules", "vs0")
	if n, err := m.passAgain(); n != 3 || err != nil {
		t.Errorf("another pass made %d changes, %v; want 3", n, err)
	}
	mustLead(t, "after another pass", "vs1")
	sameState(t, up, machineState(t))

	less := localState()
	less.Rules, less.Routes = less.Rules[1:], less.Routes[2:]
	must(t, m.Set(less))
	if hop, ok, err := query.Lookup(localVIP4, netip.Addr{}); err != nil ||
		ok && (hop.Link == "vs0" || hop.Link == "vs1") {
		t.Errorf("a VIP that has left: %+v, %v, %v", hop, ok, err)
	}
	must(t, m.Set(localState()))
	mustLead(t, "set again", "vs1")
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestRulesTableOfOthers: another program's route in the table would apply to all packets that this host sends.
func TestRulesTableOfOthers(t *testing.T) {
	newLocalHost(t)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.0/24"), Type: unix.RTN_BLACKHOLE, Table: 5081,
		Protocol: unix.RTPROT_STATIC}))
	before := machineState(t)
	s := localState()
	for _, hint := range []string{"choose another", "set another key"} {
		err := open(t).Set(s)
		if err == nil || !strings.Contains(err.Error(), "routing table 5081 is in use: it has a route for "+
			"192.0.2.0/24; "+hint+", or empty it (ip route flush table 5081)") {
			t.Errorf("error %v", err)
		}
		sameState(t, before, machineState(t))
		s.Tables = map[int]string{5081: "set another key"}
	}
	// A route of another program for one of the State's own destinations has the hint, too.
	must(t, netlink.RouteAdd(&netlink.Route{Dst: kernel.IPNet(netip.PrefixFrom(localVIP4, 32)), Table: 5081,
		Type: unix.RTN_BLACKHOLE, Protocol: unix.RTPROT_STATIC}))
	if err := open(t).Set(s); err == nil || !strings.Contains(err.Error(), "remove it, or set another key") {
		t.Errorf("error %v", err)
	}
}

// TestRulesShared: two programs of this package may share a table, each with its own VIPs.
func TestRulesShared(t *testing.T) {
	newLocalHost(t)
	before := machineState(t)
	first, second := open(t), open(t)
	must(t, first.Set(localState()))
	other := localState()
	other.Links = nil
	other.Routes = []Route{{Dst: netip.MustParsePrefix("198.51.100.81/32"), Link: "vs1", Table: 5081}}
	must(t, second.Set(other))
	mustLead(t, "both", "vs1")
	must(t, first.Close())
	must(t, netlink.LinkSetUp(linkOf(t, "vs1")))
	if n, err := second.passAgain(); n == 0 || err != nil { // its rules and the device's route
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	if hop, ok, err := query.Lookup(netip.MustParseAddr("198.51.100.81"), netip.Addr{}); err != nil || !ok ||
		hop.Link != "vs1" {
		t.Errorf("the other's VIP: %+v, %v, %v", hop, ok, err)
	}
	must(t, second.Close())
	must(t, netlink.LinkSetDown(linkOf(t, "vs1")))
	sameState(t, before, machineState(t))
}

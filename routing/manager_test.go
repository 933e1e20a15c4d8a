package routing

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

func TestSetAndClose(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(fullState()))

	for key, want := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2",
		"net/ipv4/conf/vs0/rp_filter": "2",
	} {
		if got := sysctl(t, key); got != want {
			t.Errorf("sysctl %s = %s, want %s", key, got, want)
		}
	}
	vs0 := linkOf(t, "vs0")
	if a := vs0.Attrs(); a.MTU != 1480 || a.TxQLen != 3000 || !kernel.IsUp(vs0) {
		t.Errorf("vs0: mtu %d, txqueuelen %d, %s", a.MTU, a.TxQLen, a.Flags)
	}
	addrs, err := netlink.AddrList(vs0, unix.AF_INET)
	must(t, err)
	if len(addrs) != 1 || addrs[0].IPNet.String() != "198.51.100.80/32" || addrs[0].Scope != unix.RT_SCOPE_HOST {
		t.Errorf("addresses of vs0: %v", addrs)
	}
	if r := routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24"); r == nil || r.MTU != 1400 || r.Protocol != Protocol {
		t.Errorf("route: %v", r)
	}
	rules, err := netlink.RuleList(unix.AF_INET)
	must(t, err)
	for _, from := range fullState().Replies.From {
		if !slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return r.Priority == 1080 && r.Table == 5080 && kernel.PrefixOf(r.Src) == kernel.HostPrefix(from) &&
				r.Protocol == Protocol
		}) {
			t.Errorf("no rule from %s in %v", from, rules)
		}
	}
	if info, err := os.Stat(m.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("journal: %v, %v", info, err)
	}

	must(t, m.Close())
	sameState(t, before, machineState(t))
	for _, p := range []string{m.path, m.path + ".lock", m.path + ".new"} {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left behind (%v)", p, err)
		}
	}
	if err := m.Set(fullState()); !errors.Is(err, ErrClosed) {
		t.Errorf("Set after Close: %v", err)
	}
}

func TestSetTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	newHost(t)
	m := open(t)
	must(t, m.Set(fullState()))
	once := machineState(t)
	journal, err := os.Stat(m.path)
	must(t, err)
	testkit.Eventually(t, "the kernel has noticed that vs0 has no carrier", func() bool {
		return linkOf(t, "vs0").Attrs().OperState == netlink.OperDown
	})
	sub, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV4_RULE)
	must(t, err)
	defer sub.Close()
	must(t, sub.SetReceiveTimeout(&unix.Timeval{Sec: 10}))

	must(t, m.Set(fullState()))
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	sameState(t, once, machineState(t))
	if now, err := os.Stat(m.path); err != nil || !os.SameFile(journal, now) {
		t.Errorf("the journal was written again (%v)", err)
	}
	// The test itself causes the first event.
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.0/24"), Type: unix.RTN_BLACKHOLE}))
	msgs, _, err := sub.Receive()
	must(t, err)
	if len(msgs) != 1 || msgs[0].Header.Type != unix.RTM_NEWROUTE ||
		nl.DeserializeRtMsg(msgs[0].Data).Type != unix.RTN_BLACKHOLE {
		t.Errorf("the second Set changed something: %+v", msgs)
	}
}

func TestSetUndoesWhatIsNoLongerWanted(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(fullState()))

	s := fullState()
	s.Sysctls = s.Sysctls[1:]
	s.Routes = []Route{{Dst: netip.MustParsePrefix("203.0.113.0/24"), Link: "west"}}
	s.Replies.From = s.Replies.From[:1]
	s.Replies.Table = 81
	s.Replies.AdvMSS = 1200
	must(t, m.Set(s))
	if got := sysctl(t, "net/ipv4/ip_forward"); got != "0" {
		t.Errorf("ip_forward = %s", got)
	}
	if r := routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24"); r == nil || r.LinkIndex != linkOf(t,
		"west").Attrs().Index || r.MTU != 0 {
		t.Errorf("changed route: %v", r)
	}
	if r := routeIn(t, 5080, "0.0.0.0/0"); r != nil {
		t.Errorf("old table holds %v", r)
	}
	if r := routeIn(t, 81, "0.0.0.0/0"); r == nil || r.AdvMSS != 1200 {
		t.Errorf("new table: %v", r)
	}
	must(t, m.Set(State{}))
	sameState(t, before, machineState(t))
	if _, err := os.Stat(m.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a journal with nothing to undo is left: %v", err)
	}
}

func TestWhatWasThereBeforeStays(t *testing.T) {
	t.Parallel()
	newHost(t)
	s := fullState()
	linkUp(t, "vs0")
	vs0 := linkOf(t, "vs0")
	setSysctl(t, "net/ipv4/ip_forward", "1")
	setSysctl(t, "net/ipv4/conf/all/arp_ignore", "2") // more than "at least 1"
	must(t, netlink.AddrAdd(vs0, Addr{Prefix: s.Addrs[0].Prefix}.kernel()))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), LinkIndex: vs0.Attrs().Index,
		Scope: unix.RT_SCOPE_LINK, MTU: 1400}))
	rule := ruleRecord{Priority: s.Replies.Priority, From: s.Replies.From[0], Table: s.Replies.Table}.kernel()
	rule.Protocol = unix.RTPROT_STATIC
	must(t, netlink.RuleAdd(rule))
	before := machineState(t)

	m := open(t)
	must(t, m.Set(s))
	if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != "2" {
		t.Errorf("arp_ignore was lowered to %s", got)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestLaterChangesByOthersWin(t *testing.T) {
	t.Parallel()
	newHost(t)
	m := open(t)
	must(t, m.Set(fullState()))
	setSysctl(t, "net/ipv4/conf/all/arp_ignore", "3")
	must(t, netlink.LinkSetMTU(linkOf(t, "vs0"), 1234))
	must(t, netlink.RouteReplace(&netlink.Route{Dst: cidr("203.0.113.0/24"), Type: unix.RTN_BLACKHOLE}))
	must(t, m.Close())
	if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != "3" {
		t.Errorf("arp_ignore = %s", got)
	}
	if got := linkOf(t, "vs0").Attrs().MTU; got != 1234 {
		t.Errorf("mtu = %d", got)
	}
	if r := routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24"); r == nil || r.Type != unix.RTN_BLACKHOLE {
		t.Errorf("route: %v", r)
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	eth := func(t *testing.T) int { return linkOf(t, "east").Attrs().Index }
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, s *State)
		want  string
	}{
		{"route", func(t *testing.T, s *State) {
			must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), LinkIndex: eth(t),
				Gw: net.ParseIP("10.1.0.7"), Protocol: unix.RTPROT_STATIC}))
		}, "route 203.0.113.0/24 in table main exists already by east via 10.1.0.7 (proto static), want it by vs0"},
		{"route of our protocol", func(t *testing.T, s *State) {
			must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), LinkIndex: eth(t),
				Protocol: Protocol}))
		}, "exists already by east"},
		{"route where an unreachable one is to be", func(t *testing.T, s *State) {
			must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), LinkIndex: eth(t),
				Priority: 4294967294, Protocol: unix.RTPROT_STATIC}))
		}, "exists already by east (proto static), want it unreachable"},
		{"unreachable route", func(t *testing.T, s *State) {
			must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), Type: unix.RTN_UNREACHABLE,
				Protocol: unix.RTPROT_STATIC}))
		}, "exists already unreachable (proto static), want it by vs0 mtu 1400"},
		{"table in use", func(t *testing.T, s *State) {
			must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.0/24"), Type: unix.RTN_BLACKHOLE, Table: 5080}))
		}, "routing table 5080 is in use: it has a route for 192.0.2.0/24"},
		{"priority taken", func(t *testing.T, s *State) {
			r := ruleRecord{Priority: 1080, From: netip.MustParseAddr("192.0.2.1"), Table: 5080}.kernel()
			must(t, netlink.RuleAdd(r))
		}, "rule priority 1080 is taken"},
		{"priority taken by almost the same", func(t *testing.T, s *State) {
			r := ruleRecord{Priority: 1080, From: s.Replies.From[0], Table: 5080}.kernel()
			r.Mark = 1
			must(t, netlink.RuleAdd(r))
		}, "rule priority 1080 is taken"},
		{"no device", func(t *testing.T, s *State) { s.Links[0].Name = "vs7" }, "no device vs7"},
		{"no device for an address", func(t *testing.T, s *State) { s.Addrs[0].Link = "vs7" }, "no device vs7"},
		{"no device for a route", func(t *testing.T, s *State) { s.Routes[0].Link = "vs7" }, "no device vs7"},
		{"no device for a sysctl", func(t *testing.T, s *State) { s.Sysctls[3].Key = "net/ipv4/conf/vs7/rp_filter" },
			"no device vs7"},
		{"no sysctl", func(t *testing.T, s *State) { s.Sysctls[4].Optional = false },
			"sysctl net/ipv4/conf/all/no_such_thing: "},
		{"invalid", func(t *testing.T, s *State) { s.Links[0].MTU = -1 }, "link vs0: MTU -1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			newHost(t)
			s := fullState()
			c.setup(t, &s)
			before := machineState(t)
			m := open(t)
			err := m.Set(s)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, c.want)
			}
			sameState(t, before, machineState(t))
			if _, err := os.Stat(m.path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("journal: %v", err)
			}
			// The failed state is not tried again.
			if n, err := m.passAgain(); n != 0 || err != nil {
				t.Errorf("another pass: %d changes, %v", n, err)
			}
		})
	}
}

func TestCloseAfterSetFailedHalfway(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	s := fullState()
	s.Sysctls[3].Value = "loose" // only the kernel knows that it wants a number
	err := m.Set(s)
	if err == nil || !strings.Contains(err.Error(), "sysctl net/ipv4/conf/vs0/rp_filter=loose (was 0): ") {
		t.Fatalf("error: %v", err)
	}
	if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != "1" {
		t.Fatalf("not halfway: arp_ignore = %s", got)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestOpenUndoesWhatTheKilledLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		tunStays bool
	}{{"device still there", true}, {"device gone with the process", false}} {
		t.Run(c.name, func(t *testing.T) {
			newHost(t)
			if !c.tunStays {
				must(t, netlink.LinkDel(linkOf(t, "vs0")))
			}
			before := machineState(t)
			if !c.tunStays {
				must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs0"), Mode: netlink.TUNTAP_MODE_TUN}))
			}
			path := t.TempDir() + "/run/journal.json"
			child := startChild(t, path)
			if slices.Equal(before, machineState(t)) {
				t.Fatal("the child did nothing")
			}

			_, err := Open(path, nil)
			if pid := child.Process.Pid; err == nil || !strings.Contains(err.Error(),
				"another program uses "+path+" (process "+strconv.Itoa(pid)+")") {
				t.Errorf("Open while %d runs: %v", pid, err)
			}
			kill(child)
			if !c.tunStays {
				must(t, netlink.LinkDel(linkOf(t, "vs0")))
			}
			m, err := Open(path, nil)
			must(t, err)
			sameState(t, before, machineState(t))
			must(t, m.Close())
			sameState(t, before, machineState(t))
		})
	}
}

func TestOpenLeavesANewDeviceOfTheOldNameAlone(t *testing.T) {
	t.Parallel()
	newHost(t)
	path := t.TempDir() + "/journal.json"
	child := startChild(t, path)
	kill(child)
	must(t, netlink.LinkDel(linkOf(t, "vs0")))
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs0"), Mode: netlink.TUNTAP_MODE_TUN}))
	must(t, netlink.LinkSetMTU(linkOf(t, "vs0"), 1480))
	linkUp(t, "vs0")
	addAddr(t, "vs0", "198.51.100.80/32")
	setSysctl(t, "net/ipv4/conf/vs0/rp_filter", "2")
	m, err := Open(path, nil)
	must(t, err)
	defer m.Close()
	vs0 := linkOf(t, "vs0")
	addrs, err := netlink.AddrList(vs0, unix.AF_INET)
	must(t, err)
	if vs0.Attrs().MTU != 1480 || !kernel.IsUp(vs0) || len(addrs) != 1 ||
		sysctl(t, "net/ipv4/conf/vs0/rp_filter") != "2" {
		t.Errorf("a predecessor's journal changed a device that it never saw: %+v, %v", vs0.Attrs(), addrs)
	}
	if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != "0" {
		t.Errorf("arp_ignore = %s", got)
	}
}

// TestPreferred: a preferred address of either family is one for new connections, with its subnet's route.
func TestPreferred(t *testing.T) {
	t.Parallel()
	newHost(t)
	setSysctl(t, "net/ipv6/conf/vs0/addr_gen_mode", "1")
	setSysctl(t, "net/ipv6/conf/vs0/disable_ipv6", "0")
	before := machineState(t)
	four, six := netip.MustParsePrefix("10.8.0.1/30"), netip.MustParsePrefix("2001:db8:8::1/64")
	m := open(t)
	must(t, m.Set(State{Links: []Link{{Name: "vs0", Up: true}},
		Addrs: []Addr{{Link: "vs0", Prefix: four, Preferred: true}, {Link: "vs0", Prefix: six, Preferred: true}}}))
	for _, c := range []struct {
		family int
		subnet string
	}{{netlink.FAMILY_V4, "10.8.0.0/30"}, {netlink.FAMILY_V6, "2001:db8:8::/64"}} {
		have, err := netlink.AddrList(linkOf(t, "vs0"), c.family)
		must(t, err)
		if len(have) != 1 || have[0].Scope != unix.RT_SCOPE_UNIVERSE ||
			have[0].Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE) != 0 {
			t.Errorf("addresses of vs0: %+v", have)
		}
		if routeIn(t, unix.RT_TABLE_MAIN, c.subnet) == nil {
			t.Errorf("no route to %s", c.subnet)
		}
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	newHost(t)
	if _, err := kernel.ReadSysctl("net/ipv6/conf/all/disable_ipv6"); err != nil {
		t.Skip("no IPv6 in this kernel")
	}
	setSysctl(t, "net/ipv6/conf/vs0/addr_gen_mode", "1") // no address that the kernel adds by itself
	setSysctl(t, "net/ipv6/conf/east/addr_gen_mode", "1")
	setSysctl(t, "net/ipv6/conf/vs0/disable_ipv6", "0")
	setSysctl(t, "net/ipv6/conf/east/disable_ipv6", "0")
	must(t, netlink.AddrAdd(linkOf(t, "east"), &netlink.Addr{IPNet: cidr("2001:db8:1::1/64"), Flags: unix.IFA_F_NODAD}))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("::/0"), Gw: net.ParseIP("2001:db8:1::fe"),
		LinkIndex: linkOf(t, "east").Attrs().Index}))
	testkit.Eventually(t, "the address is in force", func() bool {
		return routeIn(t, unix.RT_TABLE_LOCAL, "2001:db8:1::1/128") != nil
	})
	before := machineState(t)
	vip := netip.MustParseAddr("2001:db8:80::1")
	s := State{
		Links: []Link{{Name: "vs0", Up: true}},
		Addrs: []Addr{{Link: "vs0", Prefix: kernel.HostPrefix(vip)}},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("2001:db8:99::/64"), Link: "vs0"},
			{Dst: netip.MustParsePrefix("2001:db8:99::/64"), Unreachable: true, Metric: 4294967294},
		},
		Replies: &Replies{From: []netip.Addr{vip}, Table: 86, Priority: 86, AdvMSS: 1400, AdvMSS6: 1380},
	}
	m := open(t)
	must(t, m.Set(s))
	if r := routeIn(t, 86, "::/0"); r == nil || r.AdvMSS != 1380 || !r.Gw.Equal(net.ParseIP("2001:db8:1::fe")) {
		t.Errorf("copied default route: %v", r)
	}
	have, err := netlink.AddrList(linkOf(t, "vs0"), netlink.FAMILY_V6)
	must(t, err)
	if len(have) != 1 || have[0].Flags&unix.IFA_F_DEPRECATED == 0 || have[0].Flags&unix.IFA_F_PERMANENT == 0 ||
		have[0].Flags&unix.IFA_F_TENTATIVE != 0 {
		t.Errorf("addresses of vs0: %+v", have)
	}
	if local, err := query.HostAddrs(); err != nil || !slices.Contains(local, vip) || !slices.Contains(local,
		netip.MustParseAddr("2001:db8:1::1")) {
		t.Errorf("addresses of this host: %v, %v", local, err)
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

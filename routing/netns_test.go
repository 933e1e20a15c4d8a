package routing

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// A test's host is a network namespace of its own:
//
//	 10.1.0.1/24      10.2.0.1/24
//	┌──────────┐     ┌──────────┐     ┌─────┐
//	│   east   │═════│   west   │     │ vs0 │  TUN, down
//	└──────────┘veth └──────────┘     └─────┘
//
// main: default via 10.1.0.254, and one route of every kind that is copied.

const childEnv = "VSTUN_ROUTING_TEST_CHILD"

// TestMain lets the test binary be the process that is killed, when the environment names a journal.
func TestMain(m *testing.M) {
	path := os.Getenv(childEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	manager, err := Open(path, nil)
	if err == nil {
		err = manager.Set(fullState())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {}
}

// newHost moves the test into a new namespace, and out of it when the test ends.
func newHost(t *testing.T) {
	t.Helper()
	enterNewHost(t)
	linkUp(t, "lo")
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("east"), PeerName: "west"}))
	for name, addr := range map[string]string{"east": "10.1.0.1/24", "west": "10.2.0.1/24"} {
		linkUp(t, name)
		addAddr(t, name, addr)
	}
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs0"), Mode: netlink.TUNTAP_MODE_TUN}))
	// Both ends have carrier by the time the second is up, but the kernel says so in its own time.
	testkit.Eventually(t, "carrier", func() bool {
		return slices.IndexFunc([]string{"east", "west"}, func(n string) bool {
			return linkOf(t, n).Attrs().OperState != netlink.OperUp
		}) < 0
	})
	east, west := linkOf(t, "east").Attrs().Index, linkOf(t, "west").Attrs().Index
	for _, r := range []netlink.Route{
		{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.1.0.254")},
		{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.2.0.254"), Priority: 50, AdvMSS: 1000},
		{Dst: cidr("172.16.0.0/16"), LinkIndex: east, Scope: unix.RT_SCOPE_LINK, Src: net.ParseIP("10.2.0.1"),
			MTU: 1300, Priority: 7},
		{Dst: cidr("172.17.0.0/16"), LinkIndex: west, Gw: net.ParseIP("192.0.2.99"), Flags: int(netlink.FLAG_ONLINK)},
		{Dst: cidr("172.18.0.0/16"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: east, Gw: net.ParseIP("10.1.0.253"), Hops: 2}, {LinkIndex: west, Gw: net.ParseIP("10.2.0.253")},
		}},
		{Dst: cidr("172.19.0.0/16"), Type: unix.RTN_BLACKHOLE},
		{Dst: cidr("172.20.0.0/16"), Type: unix.RTN_UNREACHABLE},
		{Dst: cidr("172.21.0.0/16"), Type: unix.RTN_PROHIBIT, Tos: 0x10},
	} {
		must(t, netlink.RouteAdd(&r))
	}
}

// enterNewHost moves the test into a new namespace without addresses, routes and IPv6.
func enterNewHost(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	testkit.NewNamespace(t)
	for _, key := range []string{"net/ipv6/conf/default/disable_ipv6", "net/ipv6/conf/all/disable_ipv6"} {
		if err := writeSysctl(key, "1"); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// fullState uses everything there is.
func fullState() State {
	vip := netip.MustParseAddr("198.51.100.80")
	return State{
		Sysctls: []Sysctl{
			{Key: "net/ipv4/ip_forward", Value: "1"},
			{Key: "net/ipv4/conf/all/arp_ignore", Value: "1", AtLeast: true},
			{Key: "net/ipv4/conf/all/arp_announce", Value: "2", AtLeast: true},
			{Key: "net/ipv4/conf/vs0/rp_filter", Value: "2"},
			{Key: "net/ipv4/conf/all/no_such_thing", Value: "2", Optional: true},
		},
		Links: []Link{{Name: "vs0", MTU: 1480, TxQueueLen: 3000, Up: true}},
		Addrs: []Addr{{Link: "vs0", Prefix: netip.PrefixFrom(vip, 32)}},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("203.0.113.0/24"), Link: "vs0", MTU: 1400},
			{Dst: netip.MustParsePrefix("203.0.113.0/24"), Unreachable: true, Metric: 4294967294},
			{Dst: netip.MustParsePrefix("203.0.113.0/24"), Link: "vs0", Table: 5091},
		},
		Rules: []Rule{{Table: 5091, Priority: 1091}},
		Replies: &Replies{
			From: []netip.Addr{vip, netip.MustParseAddr("198.51.100.81")}, Table: 5080, Priority: 1080, AdvMSS: 1440,
		},
	}
}

// machineState lists links, addresses, routes of all tables, rules, and the sysctls that may change.
func machineState(t *testing.T) []string {
	t.Helper()
	var lines []string
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		a := l.Attrs()
		flags := a.Flags &^ net.FlagRunning // follows the carrier in its own time
		lines = append(lines, fmt.Sprintf("link %s index %d mtu %d txqueuelen %d %s", a.Name, a.Index, a.MTU, a.TxQLen,
			flags))
	}
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		addrs, err := netlink.AddrList(nil, fam)
		must(t, err)
		for _, a := range addrs {
			lines = append(lines, fmt.Sprintf("addr %s on %d scope %d flags %x label %s", a.IPNet, a.LinkIndex, a.Scope,
				a.Flags, a.Label))
		}
		routes, err := netlink.RouteListFiltered(fam, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		must(t, err)
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("route %s tos %d metric %d type %d scope %d proto %d mtu %d advmss %d",
				r, r.Tos, r.Priority, r.Type, r.Scope, r.Protocol, r.MTU, r.AdvMSS))
		}
		rules, err := netlink.RuleList(fam)
		must(t, err)
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("rule %s proto %d", r, r.Protocol))
		}
	}
	keys, err := filepath.Glob(sysctlRoot + "net/ipv4/conf/*/*")
	must(t, err)
	keys6, err := filepath.Glob(sysctlRoot + "net/ipv6/conf/*/*")
	must(t, err)
	for _, k := range append(slices.Concat(keys, keys6), sysctlRoot+"net/ipv4/ip_forward") {
		key := strings.TrimPrefix(k, sysctlRoot)
		if v, err := readSysctl(key); err == nil {
			lines = append(lines, "sysctl "+key+"="+v)
		}
	}
	slices.Sort(lines)
	return lines
}

func sameState(t *testing.T, want, have []string) {
	t.Helper()
	for _, l := range want {
		if !slices.Contains(have, l) {
			t.Errorf("lost:  %s", l)
		}
	}
	for _, l := range have {
		if !slices.Contains(want, l) {
			t.Errorf("extra: %s", l)
		}
	}
}

// startChild runs this test binary in the test's namespace until it has set fullState.
func startChild(t *testing.T, journal string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+journal)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { kill(cmd) })
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("child: %s", line)
	}
	return cmd
}

// kill sends SIGKILL and waits for the end. A second call does nothing.
func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// open returns a Manager that is closed with the test, if the test doesn't.
func open(t *testing.T) *Manager {
	t.Helper()
	m, err := Open(filepath.Join(t.TempDir(), "run", "journal.json"), nil)
	must(t, err)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

// watch runs m.Watch until stop is called, or the test ends. A test that uses it must not use t.Run, which would go on
// in another goroutine and so in another namespace.
func watch(t *testing.T, m *Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Watch(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func cidr(s string) *net.IPNet { return ipNet(netip.MustParsePrefix(s)) }

func linkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func linkUp(t *testing.T, name string) {
	t.Helper()
	must(t, netlink.LinkSetUp(linkOf(t, name)))
}

func addAddr(t *testing.T, link, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	must(t, netlink.AddrAdd(linkOf(t, link), a))
}

// routeIn returns the route for dst with metric 0 (IPv4) in the table, or nil.
func routeIn(t *testing.T, table int, dst string) *netlink.Route {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	routes, err := netlink.RouteListFiltered(family(p.Addr()), &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	must(t, err)
	for _, r := range routes {
		if prefixOf(r.Dst) == p && (r.Priority == 0 || p.Addr().Is6()) {
			return &r
		}
	}
	return nil
}

func sysctl(t *testing.T, key string) string {
	t.Helper()
	v, err := readSysctl(key)
	must(t, err)
	return v
}

func setSysctl(t *testing.T, key, value string) {
	t.Helper()
	must(t, writeSysctl(key, value))
}

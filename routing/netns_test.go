package routing

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
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

	"vstun/routing/kernel"
	"vstun/routing/kernel/kerneltest"
)

// Helpers of kerneltest by short names. NewHost has a drawing of a test's host.
var (
	newHost   = kerneltest.NewHost
	must      = kerneltest.Must
	named     = kerneltest.Named
	cidr      = kerneltest.CIDR
	linkOf    = kerneltest.LinkOf
	linkUp    = kerneltest.LinkUp
	addAddr   = kerneltest.AddAddr
	sysctl    = kerneltest.Sysctl
	setSysctl = kerneltest.SetSysctl
	quickest  = kerneltest.Quickest
)

const childEnv = "VSTUN_ROUTING_TEST_CHILD"

// TestMain runs the process to be killed if the environment names a journal.
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

// fullState uses every field of State.
func fullState() State {
	vip := netip.MustParseAddr("198.51.100.80")
	return State{
		QuietIPIP: true,
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
		Rules: []Rule{{In: Loopback, Table: 5091, Priority: 1091}},
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
		flags := a.Flags &^ net.FlagRunning // follows the carrier later
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
	keys, err := filepath.Glob(kernel.SysctlRoot + "net/ipv4/conf/*/*")
	must(t, err)
	keys6, err := filepath.Glob(kernel.SysctlRoot + "net/ipv6/conf/*/*")
	must(t, err)
	for _, k := range append(slices.Concat(keys, keys6), kernel.SysctlRoot+"net/ipv4/ip_forward") {
		key := strings.TrimPrefix(k, kernel.SysctlRoot)
		if v, err := kernel.ReadSysctl(key); err == nil {
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

// open returns a Manager that is closed at the test's end, if the test doesn't close it.
func open(t *testing.T) *Manager {
	t.Helper()
	return openLogged(t, nil)
}

// openLogged is open with a log.
func openLogged(t *testing.T, log *slog.Logger) *Manager {
	t.Helper()
	m, err := Open(filepath.Join(t.TempDir(), "run", "journal.json"), log)
	must(t, err)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

// watch runs m.Watch until stop is called, or the test ends. A test that uses it must not use t.Run, which runs in
// another goroutine and so in another namespace.
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

// routeIn returns the route for dst with metric 0 (IPv4) in the table, or nil.
func routeIn(t *testing.T, table int, dst string) *netlink.Route {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	routes, err := netlink.RouteListFiltered(kernel.Family(p.Addr()), &netlink.Route{Table: table},
		netlink.RT_FILTER_TABLE)
	must(t, err)
	for _, r := range routes {
		if kernel.PrefixOf(r.Dst) == p && (r.Priority == 0 || p.Addr().Is6()) {
			return &r
		}
	}
	return nil
}

package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/testdata/testkit"
)

// everyRoute has a case for each kind of route that `ip route` knows. A kernel without the feature may refuse a command
// with a leading "?": then its destinations don't count.
var everyRoute = []struct {
	commands []string
	dsts     []string
}{
	{[]string{"route add 203.0.112.0/24 via 10.1.0.9"}, []string{"203.0.112.1"}},
	{[]string{"route add 203.0.114.0/24 dev west"}, []string{"203.0.114.1"}},
	{[]string{"route add 203.0.115.0/24 via 192.0.2.9 dev west onlink"}, []string{"203.0.115.1"}},
	{[]string{"route add 203.0.116.0/24 via 10.1.0.9 src 10.2.0.1"}, []string{"203.0.116.1"}},
	{[]string{"route add blackhole 100.64.0.0/24"}, []string{"100.64.0.1"}},
	{[]string{"route add unreachable 100.64.1.0/24"}, []string{"100.64.1.1"}},
	{[]string{"route add prohibit 100.64.2.0/24"}, []string{"100.64.2.1"}},
	{[]string{"route add throw 100.64.3.0/24"}, []string{"100.64.3.1"}},
	{[]string{"route add local 100.64.4.0/24 dev lo table main"}, []string{"100.64.4.1"}},
	{[]string{"route add broadcast 100.64.5.255 dev east table main"}, []string{"100.64.5.255"}},
	{[]string{"route add multicast 232.1.0.0/16 dev west table main"}, []string{"232.1.0.1"}},
	{[]string{"route add 100.65.0.0/24 nexthop via 10.1.0.9 weight 3 nexthop via 10.2.0.9 weight 200"}, []string{
		"100.65.0.1", "100.65.0.2", "100.65.0.3", "100.65.0.4", "100.65.0.5"}},
	{[]string{"route add 100.65.1.0/24 nexthop via 192.0.2.9 dev east onlink nexthop dev west"}, []string{"100.65.1.1",
		"100.65.1.2"}},
	{[]string{"nexthop add id 10 via 10.1.0.9 dev east", "nexthop add id 11 via 10.2.0.9 dev west",
		"nexthop add id 12 group 10,2/11,7", "nexthop add id 13 blackhole", "nexthop add id 14 via fe80::9 dev east",
		"route add 100.66.0.0/24 nhid 10", "route add 100.66.1.0/24 nhid 12", "route add 100.66.2.0/24 nhid 13",
		"route add 100.66.3.0/24 nhid 14", "-6 route add 2001:db8:66::/64 nhid 14"}, []string{
		"100.66.0.1", "100.66.1.1", "100.66.1.2", "100.66.1.3", "100.66.2.1", "100.66.3.1", "2001:db8:66::1"}},
	{[]string{"route add 100.67.0.0/24 via 10.1.0.9 mtu lock 1400 rto_min 50ms advmss lock 900 window lock 30000 " +
		"rtt lock 30ms " +
		"rttvar lock 10ms ssthresh lock 20 cwnd lock 30 reordering lock 9 initcwnd lock 20 initrwnd lock 25 " +
		"hoplimit lock 33 " +
		"quickack 1 fastopen_no_cookie 1 features ecn congctl lock reno"}, []string{"100.67.0.1"}},
	{[]string{"route add 100.67.1.0/24 via 10.1.0.9 mtu lock 1400 rto_min 50ms"}, []string{"100.67.1.1"}},
	{[]string{"route add 100.67.2.0/24 via 10.1.0.9 mtu 1400"}, []string{"100.67.2.1"}},
	{[]string{"route add 100.68.0.0/24 via inet6 fe80::9 dev east"}, []string{"100.68.0.1"}},
	{[]string{"route add 100.68.1.0/24 nexthop via inet6 fe80::9 dev east nexthop via 10.2.0.9"}, []string{
		"100.68.1.1", "100.68.1.2", "100.68.1.3"}},
	{[]string{"route add 100.69.0.0/24 via 10.1.0.9 tos 0x10", "route add 100.69.0.0/24 via 10.2.0.9"}, []string{
		"100.69.0.1", "100.69.0.1 tos 0x10"}},
	{[]string{"route add 100.70.0.0/24 via 10.1.0.9 metric 9", "route add 100.70.0.0/24 via 10.2.0.9 metric 8"},
		[]string{"100.70.0.1"}},
	{[]string{"route append 100.70.1.0/24 via 10.2.0.9", "route append 100.70.1.0/24 via 10.1.0.9",
		"route append blackhole 100.70.1.0/24"}, []string{"100.70.1.1"}},
	{[]string{"?route add 100.71.0.0/24 via 10.1.0.9 realm 5/7"}, []string{"100.71.0.1"}},
	{[]string{"?route add 100.72.0.0/24 encap mpls 100/200 via 10.1.0.9"}, []string{"100.72.0.1"}},
	{[]string{"?route add 100.72.1.0/24 encap ip id 7 dst 10.1.0.9 src 10.1.0.1 tos 4 ttl 9 dev east"},
		[]string{"100.72.1.1"}},
	{[]string{"?-6 route add 2001:db8:72::/64 encap seg6 mode encap segs 2001:db8:9::9 via 2001:db8:1::9"},
		[]string{"2001:db8:72::1"}},
	{[]string{"route add 100.73.0.0/24 via 10.1.0.9 ttl-propagate enabled"}, []string{"100.73.0.1"}},

	{[]string{"-6 route add 2001:db8:12::/64 via 2001:db8:1::9"}, []string{"2001:db8:12::1"}},
	{[]string{"-6 route add 2001:db8:13::/64 via fe80::9 dev west src 2001:db8:2::1"}, []string{"2001:db8:13::1"}},
	{[]string{"-6 route add 2001:db8:14::/64 via 2001:db8:9::9 dev west onlink"}, []string{"2001:db8:14::1"}},
	{[]string{"-6 route add blackhole 2001:db8:20::/64"}, []string{"2001:db8:20::1"}},
	{[]string{"-6 route add unreachable 2001:db8:21::/64"}, []string{"2001:db8:21::1"}},
	{[]string{"-6 route add prohibit 2001:db8:22::/64"}, []string{"2001:db8:22::1"}},
	{[]string{"-6 route add throw 2001:db8:23::/64"}, []string{"2001:db8:23::1"}},
	{[]string{"-6 route add local 2001:db8:24::/64 dev lo table main"}, []string{"2001:db8:24::1"}},
	{[]string{"-6 route add multicast ff0e::/16 dev west table main"}, []string{"ff0e::1"}},
	{[]string{"-6 route add anycast 2001:db8:26::1 dev east table main"}, []string{"2001:db8:26::1"}},
	{[]string{"-6 route add 2001:db8:30::/64 nexthop via 2001:db8:1::9 weight 3 nexthop via fe80::9 dev west " +
		"weight 100"}, []string{"2001:db8:30::1", "2001:db8:30::2", "2001:db8:30::3", "2001:db8:30::4"}},
	{[]string{"-6 route add 2001:db8:31::/64 dev west", "-6 route append 2001:db8:31::/64 dev east"}, []string{
		"2001:db8:31::1", "2001:db8:31::1 oif east"}},
	{[]string{"-6 route add 2001:db8:32::/64 via fe80::9 dev west pref low", "-6 route append 2001:db8:32::/64 dev " +
		"east pref high"}, []string{
		"2001:db8:32::1"}},
	{[]string{"-6 route add 2001:db8:33::/64 via fe80::9 dev west expires 900"}, []string{"2001:db8:33::1"}},
	{[]string{"-6 route add 2001:db8:34::/64 via fe80::9 dev west mtu lock 1400 hoplimit 7"},
		[]string{"2001:db8:34::1"}},
	{[]string{"?-6 route add 2001:db8:35::/64 from 2001:db8:80::/64 via fe80::9 dev west",
		"-6 route add 2001:db8:35::/64 via fe80::9 dev east"}, []string{"2001:db8:35::1"}},
	{[]string{"-6 route add 2001:db8:36::/64 via fe80::9 dev west metric 70", "-6 route add 2001:db8:36::/64 dev " +
		"east metric 71",
		"-6 route append 2001:db8:36::/64 dev west metric 70"}, []string{"2001:db8:36::1"}},
	{[]string{"-6 route add 2001:db8:37::/64 via fe80::9 dev west metric 4294967295",
		"-6 route append 2001:db8:37::/64 dev east metric 4294967295"}, []string{"2001:db8:37::1"}},
}

var (
	answerVIP4 = netip.MustParseAddr("198.51.100.80")
	answerVIP6 = netip.MustParseAddr("2001:db8:80::80")
)

// answers is the state of an agent with a VIP of each family on lo. It lowers no MSS: the routes are the same.
func answers() State {
	return State{
		Addrs: []Addr{{Link: "lo", Prefix: kernel.HostPrefix(answerVIP4)},
			{Link: "lo", Prefix: kernel.HostPrefix(answerVIP6)}},
		Replies: &Replies{
			From: []netip.Addr{answerVIP4, answerVIP6}, Table: 5080, Priority: 1080,
		},
	}
}

// ip runs iproute2 in the test's namespace.
func ip(command string) (string, error) {
	out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustIP(t *testing.T, command string) {
	t.Helper()
	if out, err := ip(command); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

// newRoutedHost is newHost6 with addresses of both families on its two network devices, and no default routes.
func newRoutedHost(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2")
	}
	newHost6(t)
	setSysctl(t, "net/ipv6/conf/lo/disable_ipv6", "0")
	mustIP(t, "-4 route flush table main proto boot")
	mustIP(t, "-6 addr add 2001:db8:1::1/64 dev east nodad")
	mustIP(t, "-6 addr add 2001:db8:2::1/64 dev west nodad")
	mustIP(t, "-6 addr add fe80::1/64 dev east nodad")
	mustIP(t, "-6 addr add fe80::2/64 dev west nodad")
}

// wayWords are the words of an `ip route get` in which a route and its copy differ: the table with its protocol and
// metric, the mark of a gateway that was found on its device, and the source.
var wayWords = regexp.MustCompile(
	` (table \S+|proto \S+|metric \d+|onlink|src \S+|from \S+|uid \d+|\bcache( expires \S+)?|expires \S+)`)

// answerWay returns the kernel's path of an answer from a VIP to dst. Options of `ip route get` may follow dst.
func answerWay(dst string) string {
	where, options, _ := strings.Cut(dst, " ")
	// without a path the output is the answer, too
	out, _ := ip("-d -o route get " + where + " from " + vipLike(dst).String() + " " + options)
	return out
}

// stripped returns a path without the words in which a route and its copy differ.
func stripped(way string) string {
	return strings.Join(strings.Fields(wayWords.ReplaceAllString(" "+strings.ReplaceAll(way, "\\", " "), " ")), " ")
}

// sameWays compares the paths of answers from the VIPs by the copy with the paths by the main table alone.
func sameWays(t *testing.T, when string, dsts []string) {
	t.Helper()
	ways := func() map[string]string {
		all := map[string]string{}
		for _, dst := range dsts {
			all[dst] = answerWay(dst)
		}
		return all
	}
	copied := ways()
	first := []string{"-4 rule add from %s lookup main priority 1", "-6 rule add from %s lookup main priority 1"}
	for i, vip := range []netip.Addr{answerVIP4, answerVIP6} {
		rule := fmt.Sprintf(first[i], vip)
		mustIP(t, rule)
		defer mustIP(t, strings.Replace(rule, "add", "del", 1))
	}
	main := ways()
	for _, dst := range dsts {
		byCopy := strings.Contains(main[dst], " table main ") == strings.Contains(copied[dst], " table 5080 ")
		if !byCopy || stripped(copied[dst]) != stripped(main[dst]) {
			t.Errorf("%s: to %s:\nmain table: %s\nthe copy:   %s", when, dst, main[dst], copied[dst])
		}
	}
}

func vipLike(dst string) netip.Addr {
	if strings.Contains(dst, ":") {
		return answerVIP6
	}
	return answerVIP4
}

// TestAnswersTakeEveryRoute: a packet from a VIP takes the path of the main table, for every kind of route.
func TestAnswersTakeEveryRoute(t *testing.T) {
	t.Parallel()
	newRoutedHost(t)
	var dsts []string
	for _, r := range everyRoute {
		lacking := false
		for _, c := range r.commands {
			command, optional := strings.CutPrefix(c, "?")
			if out, err := ip(command); err != nil && optional {
				t.Logf("the kernel lacks: ip %s: %s", command, out)
				lacking = true
				break
			} else if err != nil {
				t.Fatalf("ip %s: %s", command, out)
			}
		}
		if !lacking {
			dsts = append(dsts, r.dsts...)
		}
	}
	before := machineState(t)
	m := open(t)
	must(t, m.Set(State{Addrs: answers().Addrs})) // for IPv6 they make routes of the main table
	must(t, m.Set(answers()))
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("a second pass made %d changes, %v", n, err)
	}
	sameWays(t, "every route", dsts)

	for _, compat := range []string{"0", "1"} { // the listing names nexthop objects only
		setSysctl(t, "net/ipv4/nexthop_compat_mode", compat)
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Errorf("nexthop_compat_mode %s: another pass made %d changes, %v", compat, n, err)
		}
	}

	// With a lowered MSS the copies stay equal, too: no route is written repeatedly.
	s := answers()
	s.Replies.AdvMSS, s.Replies.AdvMSS6 = 1200, 1180
	must(t, m.Set(s))
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("with a lowered MSS a second pass made %d changes, %v", n, err)
	}
	for dst, want := range map[string]string{"203.0.112.1": "advmss 1200", "100.65.0.1": "advmss 1200",
		"100.66.1.1": "advmss 1200",
		"100.67.0.1": "advmss lock 900", "100.67.1.1": "mtu lock 1400", "2001:db8:12::1": "advmss 1180",
		"2001:db8:66::1": "advmss 1180"} {
		if w := answerWay(dst); !strings.Contains(w, want) {
			t.Errorf("to %s with a lowered MSS: %s; want %s", dst, w, want)
		}
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestAnswersFollowAChangeOfEveryRoute: when a route is removed and added again, the copy follows.
func TestAnswersFollowAChangeOfEveryRoute(t *testing.T) {
	t.Parallel()
	newRoutedHost(t)
	m := open(t)
	must(t, m.Set(answers()))
	for _, r := range everyRoute {
		var made []string
		for _, c := range r.commands {
			command := strings.TrimPrefix(c, "?")
			if _, err := ip(command); err == nil {
				made = append(made, command)
			}
		}
		_, err := m.passAgain()
		must(t, err)
		sameWays(t, strings.Join(made, "; "), r.dsts)
		for i := range made {
			undo := regexp.MustCompile(`\b(add|append)\b`).ReplaceAllString(made[i], "del")
			if strings.Contains(undo, "nexthop del") {
				undo = strings.Join(strings.Fields(undo)[:4], " ")
			}
			_, _ = ip(undo) // one may take others with it
			_, err := m.passAgain()
			must(t, err)
			sameWays(t, "after ip "+undo, r.dsts)
		}
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Errorf("%v: another pass made %d changes, %v", made, n, err)
		}
	}
}

// TestAnswersFollowAdvertisedRouters: the kernel takes the preferred one of two advertised routers. It takes the other
// when the preferred one is unreachable or its advertisement ends.
func TestAnswersFollowAdvertisedRouters(t *testing.T) {
	t.Parallel()
	const preferred, backup = "fe80::aaaa", "fe80::bbbb"
	newRoutedHost(t)
	setSysctl(t, "net/ipv6/conf/east/accept_ra", "2")
	router := func(lifetime uint16, address string, pref byte) func() {
		return func() { advertiseRouter(t, netip.MustParseAddr(address), lifetime, pref) }
	}
	main := func(want ...string) func() bool {
		return func() bool {
			out, err := ip("-6 route show default table main")
			must(t, err)
			ok := strings.Count(out, "default") == len(want)
			for _, w := range want {
				ok = ok && strings.Contains(out, "via "+w+" ")
			}
			return ok
		}
	}
	const low, medium, high = 3 << 3, 0, 1 << 3
	for _, order := range [][2]func(){ // the kernel lists them in the order in which they came
		{router(1800, preferred, high), router(1800, backup, medium)},
		{router(1800, backup, medium), router(1800, preferred, high)},
		{router(1800, backup, low), router(1800, preferred, medium)},
	} {
		order[0]()
		order[1]()
		testkit.Eventually(t, "both routers are known", main(preferred, backup))
		m := open(t)
		must(t, m.Set(answers()))
		stop := watch(t, m)
		dsts := []string{"2001:db8:ffff::1", "2001:db8:ffff::2", "2001:db8:ffff::3", "2001:db8:ffff::4"}
		leadsBy := func(gateway string) func() bool {
			return func() bool {
				for _, dst := range dsts {
					if w := answerWay(dst); !strings.Contains(w, "via "+gateway+" ") ||
						!strings.Contains(w, " table 5080 ") {
						return false
					}
				}
				return true
			}
		}
		testkit.Eventually(t, "answers go by the preferred router", leadsBy(preferred))
		sameWays(t, "two routers", dsts)
		// The router is unreachable, though its advertisement is still valid.
		mustIP(t, "-6 neigh replace "+preferred+" dev east nud failed")
		testkit.Eventually(t, "answers go by the other while the preferred router is unreachable", leadsBy(backup))
		sameWays(t, "the preferred router is unreachable", dsts)
		mustIP(t, "-6 neigh replace "+preferred+" lladdr 02:00:00:00:00:aa dev east nud permanent")
		testkit.Eventually(t, "answers go by the preferred router again", leadsBy(preferred))
		router(0, preferred, high)()
		testkit.Eventually(t, "the preferred router has gone", main(backup))
		testkit.Eventually(t, "answers go by the other", leadsBy(backup))
		sameWays(t, "the preferred router has gone", dsts)
		router(1800, preferred, high)()
		testkit.Eventually(t, "answers go by the preferred router when it comes back", leadsBy(preferred))
		router(0, backup, medium)()
		testkit.Eventually(t, "the other router has gone", main(preferred))
		testkit.Eventually(t, "answers go by the preferred router still", leadsBy(preferred))
		sameWays(t, "the other router has gone", dsts)
		router(0, preferred, high)()
		testkit.Eventually(t, "no router is left", main())
		mustIP(t, "-6 neigh del "+preferred+" dev east")
		stop()
		must(t, m.Close())
	}
}

// TestAnswersLeaveAnExpiredRoute: the kernel uses no expired route, though it reports the expiry later.
func TestAnswersLeaveAnExpiredRoute(t *testing.T) {
	t.Parallel()
	newRoutedHost(t)
	setSysctl(t, "net/ipv6/route/gc_interval", "3600")
	mustIP(t, "-6 route add 2001:db8:40::/64 via fe80::9 dev east expires 3")
	mustIP(t, "-6 route add default via fe80::8 dev west")
	m := open(t)
	must(t, m.Set(answers()))
	watch(t, m)
	testkit.Eventually(t, "an answer takes the route", func() bool {
		return strings.Contains(answerWay("2001:db8:40::1"),
			"via fe80::9 ")
	})
	testkit.Eventually(t, "an answer takes another route when that has expired", func() bool {
		return strings.Contains(answerWay("2001:db8:40::1"), "via fe80::8 ")
	})
}

// TestAnswersOfTwoGatewaysOfOneMetric: IPv4 takes the other when the first one's device goes, and the order stays.
func TestAnswersOfTwoGatewaysOfOneMetric(t *testing.T) {
	t.Parallel()
	newRoutedHost(t)
	mustIP(t, "route append default via 10.1.0.254")
	mustIP(t, "route append default via 10.2.0.254")
	m := open(t)
	must(t, m.Set(answers()))
	dsts := []string{"192.0.2.1", "192.0.2.2"}
	sameWays(t, "two gateways", dsts)
	out, err := ip("route show default table 5080")
	must(t, err)
	lines := strings.Split(out, "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "via 10.1.0.254 ") || !strings.Contains(lines[1],
		"via 10.2.0.254 ") {
		t.Errorf("default routes of the copy:\n%s", out)
	}
	must(t, netlink.LinkSetDown(linkOf(t, "east")))
	_, err = m.passAgain()
	must(t, err)
	sameWays(t, "the first gateway's device is down", dsts)
	if w := answerWay(dsts[0]); !strings.Contains(w, "via 10.2.0.254") {
		t.Errorf("answers go %s", w)
	}
}

// TestAnswersTakeARouteThatCannotBeCopied: the kernel lists the name of a route's BPF program, but accepts only a
// descriptor. Answers take the route all the same, and no less specific one. It does not run beside other tests:
// netlink.BpfEncap writes a variable of the library that all routes read.
func TestAnswersTakeARouteThatCannotBeCopied(t *testing.T) {
	newRoutedHost(t)
	mustIP(t, "route add default via 10.2.0.254")
	program := []uint64{0xb7, 0x95} // r0 = 0; exit
	license := []byte("GPL\x00")
	attr := struct {
		kind, length     uint32
		program, license uint64
		rest             [6]uint64
	}{kind: unix.BPF_PROG_TYPE_LWT_OUT, length: uint32(len(program)),
		program: uint64(uintptr(unsafe.Pointer(&program[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	if errno != 0 {
		t.Skipf("needs a kernel with BPF: %v", errno)
	}
	defer unix.Close(int(fd))
	encap := &netlink.BpfEncap{}
	must(t, encap.SetProg(nl.LWT_BPF_OUT, int(fd), "drop"))
	err := netlink.RouteAdd(&netlink.Route{Dst: cidr("100.74.0.0/24"), Gw: net.IPv4(10, 1, 0, 9), Encap: encap})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs a kernel with BPF tunnels")
	}
	must(t, err)
	m := open(t)
	must(t, m.Set(State{Addrs: answers().Addrs})) // for IPv6 they make routes of the main table
	must(t, m.Set(answers()))
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	if w := answerWay("100.74.0.1"); !strings.Contains(w, "encap bpf") || !strings.Contains(w, "via 10.1.0.9 ") {
		t.Errorf("answers go %s", w)
	}
	if w := answerWay("100.75.0.1"); !strings.Contains(w, "via 10.2.0.254 ") || !strings.Contains(w, "table 5080") {
		t.Errorf("other answers go %s", w)
	}
}

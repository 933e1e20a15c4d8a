package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// addLink adds a link between the director and another host, with an address at both ends.
func (s *site) addLink(name string, at netip.Prefix, far *lab.Host, farAt netip.Prefix) {
	s.t.Helper()
	s.shell(s.Director, fmt.Sprintf("ip link add %s type veth peer name far-%[1]s netns %s && "+
		"ip address add %s dev %[1]s && ip link set %[1]s up", name, far.Namespace, at))
	s.shell(far, fmt.Sprintf("ip address add %s dev far-%s && ip link set far-%[2]s up", farAt, name))
}

// twoWays gives the director a second link to the router, up2, and one to the first web server, web2. No route leads to
// either, but those of table 200 (by up2 to everywhere) and table 201 (by web2 to the web server).
func (s *site) twoWays() {
	s.t.Helper()
	web := netip.PrefixFrom(s.Webs[0].Addr, s.VIP.BitLen())
	near, far := netip.MustParsePrefix("10.0.9.2/24"), netip.MustParsePrefix("10.0.9.1/24")
	if s.VIP.Is6() {
		near, far = netip.MustParsePrefix("fd00:0:9::2/64"), netip.MustParsePrefix("fd00:0:9::1/64")
	}
	s.addLink("up2", near, s.Router, far)
	s.shell(s.Director, fmt.Sprintf("%s route add default via %s dev up2 table 200", s.ip(), far.Addr()))
	s.addLink("web2", netip.PrefixFrom(near.Addr(), s.VIP.BitLen()), s.Webs[0], web)
	s.shell(s.Webs[0], "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.far-web2.rp_filter=0")
	s.shell(s.Director, fmt.Sprintf("%s route add %s dev web2 table 201", s.ip(), web))
}

// ip is the command ip(8) for the site's family.
func (s *site) ip() string {
	if s.VIP.Is6() {
		return "ip -6"
	}
	return "ip"
}

// outCounters counts the packets from one address to another that leave the director by each device.
func (s *site) outCounters(from, to netip.Addr, devices ...string) (by func() string) {
	s.t.Helper()
	counts := map[string]func() uint64{}
	for _, device := range devices {
		counts[device] = s.count(s.Director, device, lab.Filter{Source: from, Destination: to, Direction: lab.Out})
	}
	before := map[string]uint64{}
	return func() string {
		var all []string
		for _, device := range devices {
			n := counts[device]()
			if n > before[device] {
				all = append(all, device)
			}
			before[device] = n
		}
		return strings.Join(all, " ")
	}
}

// TestFastPathRules: where policy rules decide the way of packets by nat, they leave by the same devices in the fast
// path as by the TUN device.
func TestFastPathRules(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "ipv4", true: "ipv6"}[ipv6], func(t *testing.T) {
			t.Parallel()
			testFastPathRules(t, ipv6)
		})
	}
}

func testFastPathRules(t *testing.T, ipv6 bool) {
	s := newMethodSite(t, nat, ipv6, 1, nil)
	s.twoWays()
	s.shell(s.Director, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0") // for replies
	s.namedEcho(s.Webs[0], 80)
	web := service{"tcp", "80", "wrr", []int{1}}
	s.startDirector("", web)
	c := s.dial("tcp", 80)
	server := mustAnswer(t, c)
	s.mustBeFast(c, server)
	requests := s.outCounters(s.Client.Addr, s.Webs[0].Addr, "eth1", "web2")
	replies := s.outCounters(s.VIP, s.Client.Addr, "eth0", "up2")
	check := func(fast bool) {
		t.Helper()
		for _, row := range []struct{ rule, requests, replies string }{
			{"", "eth1", "eth0"},
			{"iif vs0 to CLIENT lookup 200", "eth1", "up2"},
			{"iif eth1 to CLIENT lookup 200", "eth1", "eth0"}, // the director's device is where they come from
			{"from CLIENT lookup 201", "eth1", "eth0"},        // a request is routed by its destination alone
			{"to WEB lookup 201", "web2", "eth0"},
			{"from VIP iif vs0 ipproto tcp sport 80 lookup 200", "eth1", "up2"},
		} {
			rule := strings.NewReplacer("CLIENT", s.Client.Addr.String(), "VIP", s.VIP.String(),
				"WEB", s.Webs[0].Addr.String()).Replace(row.rule)
			if rule != "" {
				s.shell(s.Director, s.ip()+" rule add priority 1000 "+rule)
			}
			testkit.Eventually(t, rule+": requests leave by "+row.requests, func() bool {
				requests()
				mustStay(t, c, server)
				return requests() == row.requests
			})
			if fast { // once the way to the realserver is known again
				s.mustBeFast(c, server)
			} else if s.fast(c) {
				t.Errorf("%q: in the fast path", rule)
			}
			requests()
			replies()
			for range 20 {
				mustStay(t, c, server)
			}
			if out, back := requests(), replies(); out != row.requests || back != row.replies {
				t.Errorf("%q, in the fast path %v: requests leave by %s, replies by %s, want %s and %s", rule, fast,
					out, back, row.requests, row.replies)
			}
			if rule != "" {
				s.shell(s.Director, s.ip()+" rule del priority 1000")
			}
		}
	}
	check(true)
	s.director.configure(s.directorTOML(s.director.socket, `fast_path = "off"`, web))
	s.mustReload()
	check(false)
}

// TestFastPathMarks: while a rule leads packets with a mark another way, those of nat, and those of tunnels to the
// realservers that the rule is for, do not take the fast path: nftables can give them the mark. Status, doctor and log
// say so.
func TestFastPathMarks(t *testing.T) {
	needTool(t, "nft", "nftables")
	for _, m := range []method{tun, nat} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			testFastPathMarks(t, m)
		})
	}
}

func testFastPathMarks(t *testing.T, m method) {
	s := newMethodSite(t, m, false, 2, nil)
	s.twoWays()
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	s.startDirector("", service{"tcp", "80", "rr", []int{1, 1}})
	var conns [2]net.Conn // by web server
	for range conns {
		c := s.dial("tcp", 80)
		conns[strings.Index("12", strings.TrimPrefix(mustAnswer(t, c), "web"))] = c
	}
	from, device := s.Client.Addr, "eth1" // of requests
	marked := "ip daddr 10.0.3.0/24"
	if m == tun {
		from, device, marked = s.Director.Addr, "eth0", "ip protocol 4"
	}
	s.command(s.Director, fmt.Sprintf("table ip m { chain c { type route hook output priority mangle; "+
		"%s meta mark set 7; }; }\n", marked), "nft", "-f", "-")
	out := [2]func() string{s.outCounters(from, s.Webs[0].Addr, device, "web2"),
		s.outCounters(from, s.Webs[1].Addr, device, "web2")}
	check := func(when string, fast [2]bool, by ...string) {
		t.Helper()
		for i, c := range conns {
			name := s.Webs[i].Name
			if fast[i] {
				s.mustBeFast(c, name)
			}
			out[i]()
			for range 40 {
				mustStay(t, c, name)
			}
			if is := s.fast(c); is != fast[i] {
				t.Errorf("%s, %s: in the fast path: %v", when, name, is)
			}
			if is := out[i](); is != by[i] {
				t.Errorf("%s, to %s: packets leave by %s, want %s", when, name, is, by[i])
			}
		}
	}
	check("no rule", [2]bool{true, true}, device, device)
	s.shell(s.Director, "ip rule add priority 1000 fwmark 7 lookup 201")
	testkit.Eventually(t, "a reason", func() bool {
		return strings.Contains(s.director.balance().FastPath.Reason, "(ip rule 1000: fwmark 0x7/0xffffffff)")
	})
	check("with the rule", [2]bool{false, m == tun}, "web2", device)
	want := map[method]string{tun: "of 1 realserver", nat: "of 2 realservers"}[m]
	if st := s.director.balance().FastPath; !st.On || !strings.Contains(st.Reason, want) {
		t.Errorf("%+v, want %s", st, want)
	}
	if text := s.ask("doctor").stdout; !strings.Contains(text, "some packets do not take the fast path") {
		t.Errorf("doctor: %s", text)
	}
	if n := strings.Count(s.director.Output(), `msg="some packets do not take the fast path"`); n != 1 {
		t.Errorf("%d lines of the log", n)
	}
	s.shell(s.Director, "ip rule del priority 1000")
	testkit.Eventually(t, "no reason", func() bool { return s.director.balance().FastPath.Reason == "" })
	check("without it", [2]bool{true, true}, device, device)
	if m != tun {
		return
	}
	s.shell(s.Director, fmt.Sprintf("ip rule add priority 1000 from %v fwmark 7 lookup 201", from))
	testkit.Eventually(t, "a reason", func() bool {
		return strings.Contains(s.director.balance().FastPath.Reason, "of 2 realservers")
	})
	check("with a rule by the source, too", [2]bool{false, false}, "web2", device)
}

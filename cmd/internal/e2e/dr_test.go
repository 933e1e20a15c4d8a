package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// startDR starts agents for VS/DR alone, a named echo server behind each, and a director with services of this TOML.
func (s *site) startDR(services string) {
	s.t.Helper()
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	s.startDirectorWith(services)
}

// directWeb is the TOML of the service web with the first n web servers, round robin. more is further keys.
func (s *site) directWeb(n int, more string) string {
	var list []string
	for i := range s.Webs[:n] {
		list = append(list, s.realserver(i, "80"))
	}
	return fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\nscheduler = \"rr\"\n"+
		"forward = \"dr\"\n%s\nrealserver = [ %s ]\n", s.VIP, more, strings.Join(list, ", "))
}

// answering returns the names of the servers that n new connections reach, each once. A connection that fails is "".
func (s *site) answering(n int) (names []string) {
	for range n {
		name := ""
		if c, err := s.dialFrom(anyPort(s.Client.Addr), s.at(80)); err == nil {
			name, _ = askName(c, "hello")
			c.Close()
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// realserverStatus returns the status of web server i in the director's first service.
func (s *site) realserverStatus(i int) api.Realserver {
	s.t.Helper()
	for _, r := range s.director.balance().Services[0].Realservers {
		if r.Address == s.Webs[i].Addr.String() {
			return r
		}
	}
	s.t.Fatalf("no realserver %v", s.Webs[i].Addr)
	return api.Realserver{}
}

// TestUnreachableRealserver: a realserver of VS/DR whose cable is pulled gets no new connections, without any check.
// The status has the reason. It gets connections again when it answers. The agent accepts no tunnel, and refuses
// nothing.
func TestUnreachableRealserver(t *testing.T) {
	t.Parallel()
	testkit.Families(t, testUnreachableRealserver)
}

func testUnreachableRealserver(t *testing.T, ipv6 bool) {
	s := newMethodSite(t, dr, ipv6, 2, nil)
	s.startDR(s.directWeb(2, "quorum = 2"))
	both := []string{"web1", "web2"}
	if got := s.answering(4); !slices.Equal(got, both) {
		t.Fatalf("%q answer", got)
	}
	if out := s.ask("doctor"); strings.Contains(out.stdout, s.Webs[1].Addr.String()) {
		t.Errorf("director doctor:\n%s", out.stdout)
	}
	asks := "ARP"
	if ipv6 {
		asks = "neighbour discovery"
	}
	s.plug(s.Webs[1], false)
	testkit.Within(t, "the realserver is down", 20*time.Second, func() bool {
		r := s.realserverStatus(1)
		return r.Health == "down" && r.Unreachable == "it does not answer "+asks+" on eth0" && r.Effective == 0
	})
	if got := s.answering(4); !slices.Equal(got, both[:1]) {
		t.Errorf("without web2 %q answer", got)
	}
	if st := s.director.balance().Services[0]; st.Health != "down" || st.WeightUp != 1 {
		t.Errorf("the service is %q with weight %d", st.Health, st.WeightUp)
	}
	if out := s.ask("status"); !strings.Contains(out.stdout, "it does not answer "+asks) {
		t.Errorf("director status:\n%s", out.stdout)
	}
	if out := s.ask("doctor"); !strings.Contains(out.stdout, "it is down: it does not answer "+asks) {
		t.Errorf("director doctor:\n%s", out.stdout)
	}
	s.plug(s.Webs[1], true)
	testkit.Within(t, "the realserver is up again", 20*time.Second, func() bool {
		r := s.realserverStatus(1)
		return r.Unreachable == "" && r.Effective == 1
	})
	testkit.Within(t, "both answer again", soon, func() bool { return slices.Equal(s.answering(4), both) })
	if in := s.agents[0].intake(); len(in.Encap) != 0 || len(in.Drops) != 0 || in.In.Packets != 0 {
		t.Errorf("the agent %+v", in)
	}
}

// TestOtherMAC: a realserver gets another MAC address, as after the move of a virtual machine. The director follows the
// realserver's announcement at once, and connections go on.
func TestOtherMAC(t *testing.T) {
	t.Parallel()
	s := newMethodSite(t, dr, false, 1, nil)
	s.startDR(s.directWeb(1, ""))
	c := s.dial("tcp", 80)
	mustAnswer(t, c)
	other := net.HardwareAddr{2, 0, 0, 0, 7, 7}
	if err := s.Webs[0].Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetHardwareAddr(l, other), announce(l, s.Webs[0].Addr))
	}); err != nil {
		t.Fatal(err)
	}
	mustAnswer(t, c)
	if got := s.answering(2); !slices.Equal(got, []string{"web1"}) {
		t.Errorf("%q answer", got)
	}
}

// announce sends a gratuitous ARP request for a on the device l (RFC 5227, section 3).
func announce(l netlink.Link, a netip.Addr) error {
	const arp = unix.ETH_P_ARP
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now, err := netlink.LinkByName(l.Attrs().Name)
	if err != nil {
		return err
	}
	mac := now.Attrs().HardwareAddr
	b := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, mac, a.AsSlice(), make([]byte, 6), a.AsSlice())
	return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Protocol: arp&0xff<<8 | arp>>8, Ifindex: l.Attrs().Index,
		Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}})
}

// TestReloadToDR: a reload brings the first realserver of VS/DR to a director that has given up CAP_NET_RAW, and takes
// it away again.
func TestReloadToDR(t *testing.T) { testkit.Families(t, testReloadToDR) }

func testReloadToDR(t *testing.T, ipv6 bool) {
	s := newMethodSite(t, dr, ipv6, 2, nil)
	for _, web := range s.Webs {
		s.startAgent(web, "") // with tunnels
		s.namedEcho(web, 80)
	}
	tunnel := strings.Replace(s.directWeb(1, ""), "forward = \"dr\"\n", "", 1)
	s.startDirectorWith(tunnel)
	if got := s.answering(2); !slices.Equal(got, []string{"web1"}) {
		t.Fatalf("by tunnel %q answer", got)
	}
	protocol := uint8(4)
	if ipv6 {
		protocol = 41
	}
	wrapped := s.counter(t, s.Webs[1], lab.Filter{Source: s.Director.Addr, Destination: s.Webs[1].Addr,
		Protocol: protocol})
	s.reloadWith(s.directWeb(2, ""))
	if got := s.answering(4); !slices.Equal(got, []string{"web1", "web2"}) {
		t.Errorf("by VS/DR %q answer", got)
	}
	if n := wrapped(); n > 0 {
		t.Errorf("%d packets came in a tunnel", n)
	}
	s.reloadWith(tunnel)
	if got := s.answering(2); !slices.Equal(got, []string{"web1"}) {
		t.Errorf("by tunnel again %q answer", got)
	}
}

// TestNoSubnet: `check` refuses a realserver of VS/DR behind a router. A running director has it down, with the reason,
// and serves the others.
func TestNoSubnet(t *testing.T) {
	t.Parallel()
	s := newMethodSite(t, dr, false, 1, nil)
	text := strings.Replace(s.directWeb(1, ""), "realserver = [ ", "realserver = [ { address = \"10.0.1.77\" }, ", 1)
	s.startDR(text)
	if got := s.answering(2); !slices.Equal(got, []string{"web1"}) {
		t.Errorf("%q answer", got)
	}
	r := s.director.balance().Services[0].Realservers[0]
	if r.Health != "down" || !strings.Contains(r.Unreachable, "in no subnet of this host") {
		t.Errorf("the realserver is %q: %s", r.Health, r.Unreachable)
	}
	got := s.ask("explain", s.Client.Addr.String(), s.at(80))
	if got.code != 0 || !strings.Contains(got.stdout, "passed over: unreachable: it is in no subnet of this host") {
		t.Errorf("explain: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	got = run(t, s.Director, exec.Command(programPath("director"), "check", "-c", s.director.config))
	if got.code == 0 || !strings.Contains(got.stderr, "10.0.1.77") || !strings.Contains(got.stderr, "no subnet") {
		t.Errorf("check: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}

// TestWholeToRealserver: packets of an upload leave the director as large as they came in: GSO packets stay whole.
func TestWholeToRealserver(t *testing.T) {
	t.Parallel()
	s := newMethodSite(t, dr, false, 1, nil)
	s.startAgents("")
	s.acceptUploads(s.Webs[0], 80)
	s.startDirectorWith(s.directWeb(1, ""))
	to := lab.Filter{Source: s.Client.Addr, Destination: s.VIP}
	in, out := to, to
	in.Direction, out.Direction = lab.In, lab.Out
	arrived, left := s.counter(t, s.Director, in), s.counter(t, s.Director, out)
	const n = 20_000_000
	if answer, err := put(s.dial("tcp", 80), n); err != nil || !strings.HasPrefix(answer, fmt.Sprint(n)) {
		t.Fatalf("%q, %v", answer, err)
	}
	if a, l := arrived(), left(); l == 0 || l > a+a/10 || n/l < 3000 {
		t.Errorf("%d packets came in, %d left, with %d bytes on average", a, l, n/l)
	}
}

// TestLargeDatagramsToRealserver: over a link to the realservers with a smaller MTU, a datagram without DF arrives in
// fragments. With DF the client learns the MTU.
func TestLargeDatagramsToRealserver(t *testing.T) {
	t.Parallel()
	s := newMethodSite(t, dr, false, 1, nil)
	s.startAgents("")
	s.echoUDP(s.Webs[0], 53)
	if err := s.Director.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		dst := &net.IPNet{IP: s.Webs[0].Addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: l.Attrs().Index, MTU: 1400,
			Scope: unix.RT_SCOPE_LINK})
	}); err != nil {
		t.Fatal(err)
	}
	s.startDirectorWith(fmt.Sprintf("[[service]]\nname = \"dns\"\nvip = %q\nprotocol = \"udp\"\nport = 53\n"+
		"forward = \"dr\"\nrealserver = [ %s ]\n", s.VIP, s.realserver(0, "53")))
	fragments := s.counter(t, s.Webs[0], lab.Filter{Source: s.Client.Addr, Destination: s.VIP, Direction: lab.In})
	c := s.dial("udp", 53)
	discover(t, c, unix.IP_PMTUDISC_DONT)
	for i, size := range []int{100, 1372, 1373, 1472} {
		if err := exchange(c, payload(size)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if n := fragments(); n != []uint64{1, 2, 4, 6}[i] {
			t.Errorf("%d packets have come after %d bytes", n, size)
		}
	}
	discover(t, c, unix.IP_PMTUDISC_DO)
	if _, err := c.Write(payload(1400)); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the client has learned the MTU", soon, func() bool {
		mtu := 0
		onSocket(t, c, func(fd int) (err error) {
			mtu, err = unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
			return err
		})
		return mtu == 1400
	})
}

// TestChecksByDR: checks of the VIP take the way of the clients' packets: by TCP, and by ping.
func TestChecksByDR(t *testing.T) {
	t.Parallel()
	testkit.Families(t, testChecksByDR)
}

func testChecksByDR(t *testing.T, ipv6 bool) {
	s := newMethodSite(t, dr, ipv6, 2, nil)
	check := func(kind string) string {
		return s.directWeb(2, fmt.Sprintf("check = { type = %q, interval = \"1s\", timeout = \"1s\", rise = 1, "+
			"fall = 1, initial = \"down\" }", kind))
	}
	pings := strings.Replace(strings.Replace(check("ping"), "port = 80", "port = 81", 1), `"web"`, `"ping"`, 1)
	s.startDR(check("tcp") + pings)
	testkit.Within(t, "all realservers are up", soon, func() bool {
		for _, svc := range s.director.balance().Services {
			for _, r := range svc.Realservers {
				if r.Health != "up" {
					return false
				}
			}
		}
		return true
	})
	s.agents[1].stop() // the host is there, the VIP is not
	testkit.Within(t, "the checks have found the missing VIP", soon, func() bool {
		for _, svc := range s.director.balance().Services {
			for _, r := range svc.Realservers {
				if (r.Health == "up") != (r.Address == s.Webs[0].Addr.String()) || r.Unreachable != "" {
					return false
				}
			}
		}
		return true
	})
}

// TestNoRedirects: a client in the subnet of the director and the VIP gets no ICMP redirect for its packets to the VIP,
// although they go out where they came in.
func TestNoRedirects(t *testing.T) {
	t.Parallel()
	s := newMethodSite(t, dr, false, 1, nil)
	s.startDR(s.directWeb(1, ""))
	if err := s.Insider.Route(s.VIP, s.Director.Addr); err != nil {
		t.Fatal(err)
	}
	icmp := s.counter(t, s.Insider, lab.Filter{Source: s.Director.Addr, Destination: s.Insider.Addr, Protocol: 1,
		Direction: lab.In})
	for range 5 {
		c, err := s.Insider.Dial("tcp", s.at(80))
		if err != nil {
			t.Fatal(err)
		}
		mustAnswer(t, c)
		c.Close()
	}
	if n := icmp(); n > 0 {
		t.Errorf("%d ICMP messages", n)
	}
}

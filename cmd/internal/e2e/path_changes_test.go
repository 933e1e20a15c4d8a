package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// The director sends to a realserver without agent: the tests receive its packets and check their headers.
//
//	            router fd5a:2::1, fd5a:11::1
//	           /                            \
//	director 10.0.2.2, fd5a:2::2     web1 10.0.11.2, fd5a:11::2
var (
	ways6 = struct{ vip, client, director, web netip.Addr }{netip.MustParseAddr("2001:db8:5a::80"),
		netip.MustParseAddr("2001:db8:5a::7"),
		netip.MustParseAddr("fd5a:2::2"), netip.MustParseAddr("fd5a:11::2")}
	ways4 = netip.MustParseAddr("192.0.2.7") // the client
)

// newWays returns a site whose links have these IPv6 addresses, with a VIP of each family.
func newWays(t *testing.T) *site {
	t.Helper()
	s := newSite(t, 1, nil)
	for h, links := range map[*lab.Host]map[string]netip.Addr{
		s.Router:   {s.Director.Name: ways6.director.Prev(), s.Webs[0].Name: ways6.web.Prev()},
		s.Director: {"eth0": ways6.director},
		s.Webs[0]:  {"eth0": ways6.web},
	} {
		for link, a := range links {
			addAddress6(t, h, link, a)
		}
	}
	everywhere := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	addRoute6(t, s.Director, everywhere, ways6.director.Prev())
	addRoute6(t, s.Router, netip.PrefixFrom(ways6.vip, 128), ways6.director)
	if err := s.Router.Sysctl("net.ipv6.conf.all.forwarding", "1"); err != nil {
		t.Fatal(err)
	}
	return s
}

// addAddress6 adds an address, and waits until the kernel has made it ready.
func addAddress6(t *testing.T, h *lab.Host, link string, a netip.Addr) {
	t.Helper()
	err := h.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)},
			Flags: unix.IFA_F_NODAD})
	})
	if err != nil {
		t.Fatalf("%s: %s: %v", h.Name, a, err)
	}
	testkit.Within(t, fmt.Sprintf("%s has %v", h.Name, a), soon, func() (ready bool) {
		err := h.Do(func() error {
			routes, err := netlink.RouteGet(a.AsSlice())
			ready = err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
			return nil
		})
		return err == nil && ready
	})
}

func route6(to netip.Prefix, via netip.Addr) *netlink.Route {
	return &netlink.Route{Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 128)},
		Gw: via.AsSlice()}
}

func addRoute6(t *testing.T, h *lab.Host, to netip.Prefix, via netip.Addr) {
	t.Helper()
	if err := h.Do(func() error { return netlink.RouteReplace(route6(to, via)) }); err != nil {
		t.Fatalf("%s: route to %s via %s: %v", h.Name, to, via, err)
	}
}

// rawSender6 is rawSender for IPv6: the kernel fills in nothing.
func (s *site) rawSender6(h *lab.Host) func(b []byte) {
	s.t.Helper()
	fd := -1
	err := h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { unix.Close(fd) })
	return func(b []byte) {
		s.t.Helper()
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet6{Addr: [16]byte(b[24:40])}); err != nil {
			s.t.Fatalf("send %x: %v", b[:min(len(b), 64)], err)
		}
	}
}

// catcher returns a function that returns the next IP packet received by a host's link. It leaves out IPv6 neighbour
// discovery.
func (s *site) catcher(h *lab.Host, link string) func() []byte {
	s.t.Helper()
	fd := -1
	everything := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
	err := h.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(everything)); err != nil {
			return err
		}
		return errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: l.Attrs().Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO,
				&unix.Timeval{Sec: int64(soon / time.Second)}))
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { unix.Close(fd) })
	return func() []byte {
		s.t.Helper()
		b := make([]byte, 1<<16)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err == unix.EINTR { // with a timeout the kernel does not restart the call
				continue
			}
			if err != nil {
				s.t.Fatalf("no packet comes in by %s's %s: %v", h.Name, link, err)
			}
			a := from.(*unix.SockaddrLinklayer)
			ip := a.Protocol == 0x0008 || a.Protocol == 0xdd86
			if a.Pkttype != unix.PACKET_HOST || !ip || n < 40 || b[0]>>4 == 6 && (b[6] == unix.IPPROTO_ICMPV6 ||
				b[6] == 0) {
				continue
			}
			return b[:n]
		}
	}
}

// way is a tunnel of the director to web1.
type way struct {
	toml string // its keys
	six  bool   // over IPv6
}

func (w way) String() string {
	if w.six {
		return w.toml + " over IPv6"
	}
	return w.toml + " over IPv4"
}

var ways = []way{
	{`encap = "ipip"`, false}, {`encap = "ipip"`, true},
	{`encap = "gre"`, false}, {`encap = "gre", encap_key = 4023233417, encap_checksum = true`, false},
	{`encap = "gre", encap_key = 7, encap_checksum = true`, true},
	{`encap = "gue"`, true}, {`encap = "gue", encap_checksum = true`, false}, {`encap = "gue", encap_checksum = true`,
		true},
	{`encap = "fou"`, true}, {`encap = "fou", encap_checksum = true`, false},
}

// waysTOML returns a service for each of ways, on ports from 1000, on both VIPs.
func (s *site) waysTOML(vips ...netip.Addr) string {
	var toml strings.Builder
	for i, w := range ways {
		to := s.Webs[0].Addr
		if w.six {
			to = ways6.web
		}
		fmt.Fprintf(&toml, "[[service]]\nname = \"s%d\"\nvip = [%s]\nprotocol = \"udp\"\nport = %d\none_packet = "+
			"true\nrealserver = [{ address = %q, %s }]\n", i, quoted(vips), 1000+i, to, w.toml)
	}
	return toml.String()
}

// request returns a UDP packet of a client to a port of a VIP, with a class and a hop limit that the director must
// copy.
func (s *site) request(six bool, port uint16, data string) []byte {
	s.t.Helper()
	udp := &layers.UDP{SrcPort: 4711, DstPort: layers.UDPPort(port)}
	if !six {
		ip := ip4(ways4, s.VIP, layers.IPProtocolUDP)
		ip.TOS, ip.TTL, ip.Id, ip.Flags = 0xb9, 44, 99, layers.IPv4DontFragment
		return build(s.t, ip, udp, gopacket.Payload(data))
	}
	ip := &layers.IPv6{Version: 6, TrafficClass: 0xb9, HopLimit: 44, FlowLabel: 0x12345,
		NextHeader: layers.IPProtocolUDP,
		SrcIP:      ways6.client.AsSlice(), DstIP: ways6.vip.AsSlice()}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		s.t.Fatal(err)
	}
	return build(s.t, ip, udp, gopacket.Payload(data))
}

// TestTunnelPaths: packets of each IP version leave by each tunnel over each IP version, with the configured headers.
func TestTunnelPaths(t *testing.T) {
	t.Parallel()
	s := newWays(t)
	s.startDirectorWith("director.source = [\"10.0.2.2\", \"fd5a:2::2\"]\n" + s.waysTOML(s.VIP, ways6.vip))
	throw4, throw6 := s.rawSender(s.Router), s.rawSender6(s.Router)
	next := s.catcher(s.Webs[0], "eth0")
	sent := 0
	for i, w := range ways {
		for _, six := range []bool{false, true} {
			p := s.request(six, uint16(1000+i), fmt.Sprint("data of ", w))
			if six {
				throw6(p)
			} else {
				throw4.inject(p)
			}
			sent++
			if err := s.tunnelled(w, next(), p); err != nil {
				t.Errorf("%v, IPv6 inside %v: %v", w, six, err)
			}
		}
	}
	testkit.Within(t, "the director has counted them", soon,
		func() bool { return s.director.balance().In.Packets >= uint64(sent) })
	st := s.director.balance()
	if len(st.Drops) != 0 || st.In.Packets != uint64(sent) {
		t.Errorf("%d packets in, dropped %v; %d were sent, and nothing else should come", st.In.Packets, st.Drops, sent)
	}
	for i, svc := range st.Services {
		if r := svc.Realservers[0]; r.Forwarded.Packets != 2 {
			t.Errorf("%v: %d packets", ways[i], r.Forwarded.Packets)
		}
	}
	if r := st.Services[4].Realservers[0]; r.EncapKey == nil || *r.EncapKey != 7 || !r.EncapChecksum {
		t.Errorf("status has %+v", r)
	}
}

// TestIPv6ComesAndGoes: from the first IPv6 VIP, which a reload adds, until the last one is removed, the director's
// host forwards IPv6, its device has IPv6 without an address, and the VIP's route leads there. Nothing of this outlives
// the program, however it ends.
func TestIPv6ComesAndGoes(t *testing.T) {
	t.Parallel()
	s := newWays(t)
	before := s.observeAll()
	four, both := s.waysTOML(s.VIP), s.waysTOML(s.VIP, ways6.vip)
	s.startDirectorWith(four)
	without := s.observeAll()
	throw := s.rawSender6(s.Router)
	next := s.catcher(s.Webs[0], "eth0")
	for range 2 {
		s.reloadWith(both)
		for key, want := range map[string]string{"all/forwarding": "1", "vs0/disable_ipv6": "0",
			"vs0/addr_gen_mode": "1", "eth0/accept_ra": "2"} {
			if got := readSysctl6(t, s.Director, key); got != want {
				t.Errorf("with an IPv6 VIP %s is %s, want %s", key, got, want)
			}
		}
		p := s.request(true, 1001, "hello")
		throw(p)
		if err := s.tunnelled(ways[1], next(), p); err != nil {
			t.Error(err)
		}
		led := 0
		for _, fact := range observe(t, s.Director) {
			switch {
			case slices.Contains(without[s.Director.Name], fact):
			case strings.HasPrefix(fact, "route ") && strings.Contains(fact, ways6.vip.String()):
				led++
			case strings.HasPrefix(fact, "rule family 10 proto 118 table 30325 "): // for the host's own packets
			case !strings.HasPrefix(fact, "route ") && !strings.HasPrefix(fact, "sysctl "):
				t.Errorf("with an IPv6 VIP there is %s", fact)
			}
		}
		if led != 3 {
			t.Errorf("%d routes to the VIP, want one by each device and one that is unreachable", led)
		}
		s.reloadWith(four)
		mustBe(t, "after a reload without the IPv6 VIP", without, s.observeAll())
	}
	s.director.stop()
	mustBe(t, "after SIGTERM", before, s.observeAll())
	s.director.configure(s.fileWith(both))
	s.director.start()
	s.director.kill()
	s.director.start()
	s.director.stop()
	mustBe(t, "after SIGKILL, start and SIGTERM", before, s.observeAll())
}

// readSysctl6 returns a value of net/ipv6/conf on a host.
func readSysctl6(t *testing.T, h *lab.Host, key string) (value string) {
	t.Helper()
	if err := h.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + key)
		value = strings.TrimSpace(string(b))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return value
}

// TestNoRouteOverIPv6: packets to a realserver without a route are dropped and counted. Once there is a route, with a
// source address, they are sent.
func TestNoRouteOverIPv6(t *testing.T) {
	t.Parallel()
	s := newWays(t)
	everywhere := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if err := s.Director.Do(func() error {
		return netlink.RouteDel(route6(everywhere,
			ways6.director.Prev()))
	}); err != nil {
		t.Fatal(err)
	}
	s.startDirectorWith(s.waysTOML(s.VIP, ways6.vip))
	throw := s.rawSender6(s.Router)
	next := s.catcher(s.Webs[0], "eth0")
	dropped := func() uint64 { return s.director.balance().Drops["send_error"] }
	p := s.request(true, 1001, "hello")
	throw(p)
	testkit.Within(t, "a packet to a realserver without a route is counted", soon, func() bool {
		return dropped() == 1
	})
	if log := s.director.Output(); !strings.Contains(log, "no route to realservers") || !strings.Contains(log,
		ways6.web.String()) {
		t.Errorf("the log does not have it:\n%s", log)
	}
	addRoute6(t, s.Director, everywhere, ways6.director.Prev())
	testkit.Within(t, "the director knows the route", soon, func() bool {
		return strings.Contains(s.director.Output(),
			"a route to every realserver again")
	})
	throw(p)
	if err := s.tunnelled(ways[1], next(), p); err != nil {
		t.Error(err)
	}
	if n := dropped(); n != 1 {
		t.Errorf("%d packets dropped", n)
	}
}

// tunnelled returns what is wrong with b, which should be the packet p in the tunnel w.
func (s *site) tunnelled(w way, b, p []byte) error {
	inner := bytes.Clone(p) // as it left the router and was forwarded into the device
	six := p[0]>>4 == 6
	protocol, ether := byte(4), uint16(0x0800)
	if six {
		inner[7]--
		protocol, ether = 41, 0x86dd
	} else {
		inner[8]--
		fixChecksum(inner)
	}

	var next, ttl, class byte
	var src, dst netip.Addr
	var pseudo uint32 // sum of addresses
	var up []byte
	if b[0]>>4 == 6 {
		next, ttl, class = b[6], b[7], b[0]<<4|b[1]>>4
		src, dst, up = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[40:]
		pseudo = sum16(b[8:40])
		if n := int(binary.BigEndian.Uint16(b[4:])); n != len(up) {
			return fmt.Errorf("payload length %d of %d bytes", n, len(up))
		}
		if src != ways6.director || dst != ways6.web || !w.six {
			return fmt.Errorf("outer addresses %s, %s", src, dst)
		}
	} else {
		next, ttl, class = b[9], b[8], b[1]
		src, dst, up = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[20:]
		pseudo = sum16(b[12:20])
		if b[0] != 0x45 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || fold16(sum16(b[:20])) != 0xffff {
			return fmt.Errorf("outer header %x", b[:20])
		}
		if df := b[6] == 0x40; df == six || b[6]&^0x40 != 0 || b[7] != 0 {
			return fmt.Errorf("outer flags and offset %x", b[6:8])
		}
		if src != s.Director.Addr || dst != s.Webs[0].Addr || w.six {
			return fmt.Errorf("outer addresses %s, %s", src, dst)
		}
	}
	if class != 0xb9 || ttl > 44-1-1 || ttl < 44-1-1-3 { // a flow's datagrams take turns
		return fmt.Errorf("class %x, hop limit %d", class, ttl)
	}

	csum := strings.Contains(w.toml, "encap_checksum = true")
	switch {
	case strings.Contains(w.toml, "ipip"):
		if next != protocol {
			return fmt.Errorf("protocol %d", next)
		}
	case strings.Contains(w.toml, "gre"):
		want := binary.BigEndian.AppendUint16([]byte{0, 0}, ether)
		if csum {
			want[0] |= 0x80
			want = append(want, up[4:8]...)
			if fold16(sum16(up)) != 0xffff || up[6] != 0 || up[7] != 0 {
				return fmt.Errorf("GRE checksum %x", up[4:8])
			}
		}
		if _, key, ok := strings.Cut(w.toml, "encap_key = "); ok {
			var k uint32
			if _, err := fmt.Sscan(strings.TrimSuffix(strings.Fields(key)[0], ","), &k); err != nil {
				return err
			}
			want[0] |= 0x20
			want = binary.BigEndian.AppendUint32(want, k)
		}
		if next != 47 || !bytes.HasPrefix(up, want) {
			return fmt.Errorf("protocol %d, GRE header %x, want %x", next, up[:12], want)
		}
		up = up[len(want):]
	default:
		if next != 17 || binary.BigEndian.Uint16(up[2:]) != 6080 || int(binary.BigEndian.Uint16(up[4:])) != len(up) {
			return fmt.Errorf("protocol %d, UDP header %x", next, up[:8])
		}
		if sum := binary.BigEndian.Uint16(up[6:]); (sum != 0) != csum || csum &&
			fold16(sum16(up)+pseudo+17+uint32(len(up))) != 0xffff {
			return fmt.Errorf("UDP checksum %04x", sum)
		}
		up = up[8:]
		if strings.Contains(w.toml, "gue") {
			if !bytes.HasPrefix(up, []byte{0, protocol, 0, 0}) {
				return fmt.Errorf("GUE header %x", up[:4])
			}
			up = up[4:]
		}
	}
	// The director's kernel has lowered the hop limit by one. The router has not: it is the sender.
	if !bytes.Equal(up, inner) {
		return fmt.Errorf("inside is\n%x, want\n%x", up, inner)
	}
	return nil
}

// sum16 returns the sum of RFC 1071, not folded.
func sum16(b []byte) (n uint32) {
	for i := 0; i < len(b); i += 2 {
		if i+1 < len(b) {
			n += uint32(b[i+1])
		}
		n += uint32(b[i]) << 8
	}
	return n
}

func fold16(n uint32) uint16 {
	for n>>16 != 0 {
		n = n&0xffff + n>>16
	}
	return uint16(n)
}

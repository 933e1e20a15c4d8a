package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// format is a tunnel between director and web1, as package encap has it and as ip(8) does.
type format struct {
	encap.Config
	inner6 bool
}

// formats is every kind of tunnel with all that it may have, over and with either IP. Each end has an address of both
// families.
func formats(from, to [2]netip.Addr) (all []format) {
	for _, c := range []encap.Config{
		{Kind: encap.KindIPIP},
		{Kind: encap.KindGRE}, {Kind: encap.KindGRE, Checksum: true}, {Kind: encap.KindGRE, HasKey: true, Key: 7},
		{Kind: encap.KindGRE, HasKey: true, Key: 0x01020304, Checksum: true},
		{Kind: encap.KindGUE, Port: 6080}, {Kind: encap.KindGUE, Port: 6080, Checksum: true},
		{Kind: encap.KindFOU, Port: 6080}, {Kind: encap.KindFOU, Port: 6080, Checksum: true},
	} {
		for outer := range from {
			for inner := range 2 {
				c.Source, c.Destination = from[outer], to[outer]
				all = append(all, format{c, inner == 1})
			}
		}
	}
	return all
}

func (f *format) outer6() bool { return !f.Destination.Is4() }

// protocol is the IP protocol behind the outer IP header.
func (f *format) protocol() int {
	switch {
	case f.Kind.UDP():
		return unix.IPPROTO_UDP
	case f.Kind == encap.KindGRE:
		return unix.IPPROTO_GRE
	case f.inner6:
		return unix.IPPROTO_IPV6
	}
	return unix.IPPROTO_IPIP
}

func (f *format) String() string {
	name := fmt.Sprintf("%v, %s over %s", f.Kind, ipVersion(f.inner6), ipVersion(f.outer6()))
	if f.Checksum {
		name += ", with checksum"
	}
	if f.HasKey {
		name += fmt.Sprintf(", with key %d", f.Key)
	}
	return name
}

func ipVersion(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

// device is the command that makes the kernel's device of this format, with an end at local.
func (f *format) device(local, remote netip.Addr, sends bool) string {
	kind := "ipip"
	switch {
	case f.Kind == encap.KindGRE && f.outer6():
		kind = "ip6gre"
	case f.Kind == encap.KindGRE:
		kind = "gre"
	case f.outer6():
		kind = "ip6tnl mode any"
	case f.inner6:
		kind = "sit"
	}
	text := fmt.Sprintf("link add kernel0 type %s local %s remote %s", kind, local, remote)
	if f.HasKey {
		text += fmt.Sprintf(" key %d", f.Key)
	}
	if f.Kind == encap.KindGRE && f.Checksum {
		text += " csum"
	}
	if f.Kind.UDP() && sends {
		no, six := "no", ""
		if f.Checksum {
			no = ""
		}
		if f.outer6() {
			six = "6"
		}
		text += fmt.Sprintf(" encap %v encap-sport auto encap-dport %d %sencap-csum%s", f.Kind, f.Port, no, six)
	}
	return text + "\n"
}

// port is the command of `ip fou` that opens the UDP port, where there is one.
func (f *format) port(command string) []string {
	args := []string{"fou", command, "port", fmt.Sprint(f.Port)}
	if f.outer6() {
		args = append([]string{"-6"}, args...)
	}
	switch {
	case command != "add":
	case f.Kind == encap.KindGUE:
		args = append(args, "gue")
	case f.inner6:
		args = append(args, "ipproto", "41")
	default:
		args = append(args, "ipproto", "4")
	}
	return args
}

// tunnelSite is a site whose director and web1 reach each other over IPv6 as well, with the addresses of both.
func tunnelSite(t *testing.T) (s *site, director, web [2]netip.Addr) {
	t.Helper()
	needKernel(t)
	// The kernel loads what it is asked for by name, not what that needs for UDP over IPv6.
	if out, err := exec.Command("modprobe", "-a", "sit", "ip6_tunnel", "ip6_gre", "fou6").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: needs the kernel's sit, ip6_tunnel, ip6_gre and fou6: %s",
			strings.Join(strings.Fields(string(out)), " "))
	}
	s = newSite(t, 1, nil)
	s.command(s.Director, "addr add fd01:2::2/64 dev eth0 nodad\nroute add fd01::/16 via fd01:2::1\n", "ip", "-6",
		"-batch", "-")
	s.command(s.Webs[0], "addr add fd01:11::2/64 dev eth0 nodad\nroute add fd01::/16 via fd01:11::1\n", "ip", "-6",
		"-batch", "-")
	s.command(s.Router, "addr add fd01:2::1/64 dev director nodad\naddr add fd01:11::1/64 dev web1 nodad\n", "ip", "-6",
		"-batch", "-")
	if err := s.Router.Sysctl("net.ipv6.conf.all.forwarding", "1"); err != nil {
		t.Fatal(err)
	}
	// A device without an IPv4 address of its own lets nothing in by a loose check either (fib_validate_source in
	// net/ipv4/fib_frontend.c).
	if err := s.Webs[0].Sysctl("net.ipv4.conf.all.rp_filter", "0"); err != nil {
		t.Fatal(err)
	}
	director = [2]netip.Addr{s.Director.Addr, netip.MustParseAddr("fd01:2::2")}
	web = [2]netip.Addr{s.Webs[0].Addr, netip.MustParseAddr("fd01:11::2")}
	return s, director, web
}

const vip6 = "2001:db8:100::80"

// datagram is a packet with a UDP datagram from a client to port 53 of the VIP, which carries text.
func datagram(t *testing.T, vip netip.Addr, text string) []byte {
	t.Helper()
	udp := &layers.UDP{SrcPort: 1234, DstPort: 53}
	if vip.Is4() {
		return build(t, ip4(netip.MustParseAddr("10.0.1.2"), vip, layers.IPProtocolUDP), udp, gopacket.Payload(text))
	}
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("fd01:1::2"),
		DstIP: vip.AsSlice()}
	_ = udp.SetNetworkLayerForChecksum(ip) // fails only for what is no network layer
	return build(t, ip, udp, gopacket.Payload(text))
}

// TestInteropWrap has the kernel's devices take what encap.Tunnel wraps.
func TestInteropWrap(t *testing.T) {
	s, director, web := tunnelSite(t)
	over4 := s.thrower(s.Director)
	var over6 int
	err := s.Director.Do(func() (err error) {
		over6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(over6) })
	s.command(s.Webs[0], "link add vips type dummy\naddr add "+s.VIP.String()+"/32 dev vips\naddr add "+vip6+"/128 dev vips nodad\nlink set vips up\n", "ip", "-batch", "-")
	in4, in6 := s.listenUDP(s.Webs[0], s.at(53)), s.listen6(s.Webs[0], "["+vip6+"]:53")
	for _, f := range formats(director, web) {
		s.device(s.Webs[0], f, false, func() {
			vip, server := s.VIP, in4
			if f.inner6 {
				vip, server = netip.MustParseAddr(vip6), in6
			}
			tunnel, err := encap.New(f.Config)
			if err != nil {
				t.Fatal(err)
			}
			text := "by " + f.String()
			b := &packet.NewBufs(1)[0]
			b.SetLen(copy(b.Room(), datagram(t, vip, text)))
			tunnel.Wrap(b, 40000)
			if f.outer6() {
				if err := unix.Sendto(over6, b.Bytes(), 0,
					&unix.SockaddrInet6{Addr: f.Destination.As16()}); err != nil {
					t.Fatal(err)
				}
			} else {
				over4.throw(b.Bytes())
			}
			if got := mustRead(t, server); got != text {
				t.Errorf("%v: %q, want %q", &f, got, text)
			}
		})
	}
}

// TestInteropUnwrap has encap.Decapsulator take what the kernel's devices wrap, also with the destination options that
// they put between outer IPv6 header and tunnel (RFC 2473, section 4.1.1).
func TestInteropUnwrap(t *testing.T) {
	s, director, web := tunnelSite(t)
	udp := s.sendsUDP()
	if !udp {
		t.Log("SKIPPED: gue and fou need a kernel with CONFIG_NET_FOU_IP_TUNNELS")
	}
	for _, f := range formats(director, web) {
		if f.Kind.UDP() && !udp {
			continue
		}
		s.device(s.Director, f, true, func() {
			vip, source := s.VIP, s.Director.Addr.String()
			if f.inner6 {
				vip, source = netip.MustParseAddr(vip6), director[1].String()
			}
			s.command(s.Director, fmt.Sprintf("route replace %s dev kernel0 src %s\n", vip, source), "ip", "-batch",
				"-")
			network, local := fmt.Sprintf("ip4:%d", f.protocol()), web[0].String()
			if f.outer6() {
				network, local = fmt.Sprintf("ip6:%d", f.protocol()), web[1].String()
			}
			if f.Kind.UDP() {
				network, local = "udp", netip.AddrPortFrom(netip.MustParseAddr(local), f.Port).String()
			}
			socket, err := s.Webs[0].ListenPacket(network, local)
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close()
			if f.Kind.UDP() && f.outer6() {
				onSocket(t, socket.(net.Conn), func(fd int) error {
					return unix.SetsockoptInt(fd, unix.IPPROTO_UDP,
						unix.UDP_NO_CHECK6_RX, 1)
				})
			}
			client, err := s.Director.Dial("udp", netip.AddrPortFrom(vip, 53).String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			text := "by " + f.String()
			if _, err := client.Write([]byte(text)); err != nil {
				t.Fatalf("%v: %v", &f, err)
			}
			b := &packet.NewBufs(1)[0]
			if err := socket.SetReadDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			n, _, err := socket.ReadFrom(b.Room())
			if err != nil {
				t.Errorf("%v: %v", &f, err)
				return
			}
			b.SetLen(n)
			exit := encap.Decapsulator{Kind: f.Kind, Key: f.Key, HasKey: f.HasKey}
			if d := exit.Decap(b, byte(f.protocol()), 0); d != drop.Accept || !bytes.HasSuffix(b.Bytes(),
				[]byte(text)) {
				t.Errorf("%v: %v, %x", &f, d, b.Bytes())
			}
		})
	}
}

// sendsUDP reports whether the kernel's own tunnels may be over UDP; IPVS's may in any case.
func (s *site) sendsUDP() bool {
	s.t.Helper()
	add := run(s.t, s.Director, exec.Command("ip", strings.Fields("link add fou0 type ipip remote 192.0.2.1 encap "+
		"fou encap-dport 6080")...))
	if add.code != 0 {
		return false
	}
	s.command(s.Director, "", "ip", "link", "del", "fou0")
	return true
}

// device makes the kernel's device of a format on a host, for as long as fn runs.
func (s *site) device(h *lab.Host, f format, sends bool, fn func()) {
	s.t.Helper()
	local, remote := f.Destination, f.Source
	if sends {
		local, remote = remote, local
	}
	s.command(h, f.device(local, remote, sends)+"link set kernel0 up\n", "ip", "-batch", "-")
	defer s.command(h, "link del kernel0\n", "ip", "-batch", "-")
	if err := h.Sysctl("net.ipv4.conf.kernel0.rp_filter", "0"); err != nil {
		s.t.Fatal(err)
	}
	if f.Kind.UDP() && !sends {
		s.command(h, "", "ip", f.port("add")...)
		defer s.command(h, "", "ip", f.port("del")...)
	}
	fn()
}

// listen6 opens a UDP socket on an IPv6 address, which ends with the test.
func (s *site) listen6(h *lab.Host, address string) net.PacketConn {
	s.t.Helper()
	c, err := h.ListenPacket("udp6", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

var local6 = netip.IPv6Loopback().As16()

// outer6 makes a packet of IPv6 in IPv6 from and to this host, with n bytes of payload that all are fill, and something
// in each field of its header.
func outer6(n int, fill byte) packet.IPv6 {
	b := make(packet.IPv6, packet.IPv6HeaderLen+n)
	packet.IPv6(b).Encode(packet.IPv6Fields{
		TrafficClass: 0x2b, TotalLen: len(b), HopLimit: 9, NextHeader: unix.IPPROTO_IPV6,
		Src: netip.MustParseAddr("2001:db8::1").As16(), Dst: local6,
	})
	b[1], b[2], b[3] = b[1]|1, 2, 3 // flow label
	copy(b[packet.IPv6HeaderLen:], bytes.Repeat([]byte{fill}, n))
	return b
}

// capture returns a function that gives the next packet that comes in by a device.
func capture(t *testing.T, device string) (next func() []byte) {
	t.Helper()
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	everything := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(everything))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	return func() []byte {
		t.Helper()
		b := make([]byte, 1<<16)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err == unix.EINTR { // with a timeout, the kernel does not begin again by itself
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
				return b[:n]
			}
		}
	}
}

// quiet keeps the kernel from answering what comes in.
func quiet(t *testing.T) {
	t.Helper()
	for _, protocol := range []int{packet.ProtoIPIP, unix.IPPROTO_IPV6} {
		l, err := LearnPathMTU(protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

// sendAll sends all of segs but those that are refused, and returns the errors.
func sendAll(t *testing.T, s *Sender, segs []egress.Outgoing) (errs []error) {
	t.Helper()
	for len(segs) > 0 {
		n, err := s.Send(segs)
		if n > Batch || n < 1 && err == nil {
			t.Fatalf("Send returns %d", n)
		}
		if err != nil {
			errs = append(errs, err)
			n = 1
		}
		segs = segs[n:]
	}
	return errs
}

// TestSendBothFamilies: packets of both IP versions leave in their order, those of IPv6 as they are.
func TestSendBothFamilies(t *testing.T) {
	inNamespace(t, func() {
		s := mustSender(t)
		quiet(t)
		next := capture(t, "lo")
		var segs []egress.Outgoing
		var want [][]byte
		for i := range 300 {
			b := []byte(outer(100+i, byte(i)))
			if i%7 > 2 || i > 200 {
				b = outer6(100+i, byte(i))
			}
			segs = append(segs, split(b, 60+i/3))
			want = append(want, b)
		}
		if errs := sendAll(t, s, segs); len(errs) > 0 {
			t.Fatal(errs)
		}
		for i, want := range want {
			got := next()
			if len(got) != len(want) || got[0] != want[0] || got[0]>>4 == 6 && !bytes.Equal(got, want) ||
				!bytes.Equal(got[40:], want[40:]) {
				t.Fatalf("packet %d is %x", i, got)
			}
		}
	})
}

// TestShare: two goroutines send by the same sockets, without another descriptor, until one of them closes these.
func TestShare(t *testing.T) {
	inNamespace(t, func() {
		s := mustSender(t)
		quiet(t)
		next := capture(t, "lo")
		open := testkit.Descriptors(t, "")
		shared := s.Share()
		if n := testkit.Descriptors(t, ""); n != open {
			t.Errorf("%d descriptors, had %d", n, open)
		}
		const each = 200
		var senders sync.WaitGroup
		for i, s := range []*Sender{s, shared} {
			senders.Go(func() {
				for range each {
					sendAll(t, s, []egress.Outgoing{egress.Packet(outer6(10, byte(1+i))),
						egress.Packet(outer(100, byte(1+i)))})
				}
			})
		}
		senders.Wait()
		got := map[byte]int{}
		for range 4 * each {
			b := next()
			got[b[len(b)-1]]++
		}
		if got[1] != 2*each || got[2] != 2*each {
			t.Errorf("packets by their last byte: %v", got)
		}
		if err := shared.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.Send([]egress.Outgoing{egress.Packet(outer(100, 1))}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestSendGoesOnBehindRefused6: a refused packet does not affect the others, whatever their families.
func TestSendGoesOnBehindRefused6(t *testing.T) {
	inNamespace(t, func() {
		s := mustSender(t)
		quiet(t)
		next := capture(t, "lo")
		unreachable := outer6(10, 3)
		copy(unreachable[24:], netip.MustParseAddr("2001:db8::2").AsSlice())
		errs := sendAll(t, s, []egress.Outgoing{egress.Packet(outer6(10, 1)), egress.Packet(outer6(1461, 2)),
			egress.Packet(unreachable),
			egress.Packet(outer(10, 4)), egress.Packet(outer(1481, 5)), egress.Packet(outer6(1460, 6))})
		if len(errs) != 3 || !errors.Is(errs[0], unix.EMSGSIZE) || !errors.Is(errs[1], unix.ENETUNREACH) ||
			!errors.Is(errs[2], unix.EMSGSIZE) {
			t.Errorf("errors are %v", errs)
		}
		for _, want := range []byte{1, 4, 6} {
			if got := next(); got[len(got)-1] != want {
				t.Errorf("%x is sent, want packet %d", got, want)
			}
		}
	})
}

// TestOutOfDescriptors: the error for too many sockets names a remedy, and no socket stays open.
func TestOutOfDescriptors(t *testing.T) {
	inNamespace(t, func() {
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		open := testkit.Descriptors(t, "")
		for name, sender := range map[string]func() (io.Closer, error){
			"raw": func() (io.Closer, error) { return NewSender() },
			"UDP": func() (io.Closer, error) { return NewUDPSender(16) },
		} {
			for _, left := range []int{0, 1, 3} {
				if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(lowestFree(t) + left),
					Max: was.Max}); err != nil {
					t.Fatal(err)
				}
				s, err := sender()
				if back := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); back != nil {
					t.Fatal(back)
				}
				if err == nil {
					t.Fatalf("%s: opened with %d descriptors: %v", name, left, s.Close())
				}
				if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(),
					"lower queues, or raise LimitNOFILE") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s, %d descriptors: %v", name, left, err)
				}
				if n := testkit.Descriptors(t, ""); n != open {
					t.Errorf("%s, %d descriptors: %d are open, were %d", name, left, n, open)
				}
			}
		}
	})
}

// lowestFree is the number that the next descriptor has.
func lowestFree(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	return fd
}

// TestSendWithoutIPv6 is about a kernel that has none.
func TestSendWithoutIPv6(t *testing.T) {
	inNamespace(t, func() {
		s := mustSender(t)
		six := s.six
		s.six = nil
		defer six.fd.Close()
		if errs := sendAll(t, s, []egress.Outgoing{egress.Packet(outer(1, 1)), egress.Packet(outer6(1, 2)),
			egress.Packet(outer(1, 3))}); len(errs) != 1 || !errors.Is(errs[0], unix.EAFNOSUPPORT) {
			t.Errorf("errors are %v", errs)
		}
	})
}

func TestSend6AllocatesNothing(t *testing.T) {
	inNamespace(t, func() {
		s := mustSender(t)
		segs := []egress.Outgoing{egress.Packet(outer6(100, 1)), egress.Packet(outer(100, 2))}
		if n := testing.AllocsPerRun(100, func() {
			for i := range segs {
				if _, err := s.Send(segs[i:]); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// TestLearnPathMTU: an ICMP error about a tunnel packet of ours makes the kernel learn the path MTU. While the learner
// rests it does not.
func TestLearnPathMTU(t *testing.T) {
	inNamespace(t, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near", MTU: 1500}, PeerName: "far"}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		near, far := up(t, "near"), up(t, "far")
		for _, a := range []string{"10.0.2.2/24", "fd00:2::2/64"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags |= unix.IFA_F_NODAD
			if err := netlink.AddrAdd(near, addr); err != nil {
				t.Fatal(err)
			}
		}
		from := map[bool]netip.Addr{true: netip.MustParseAddr("10.0.2.2"), false: netip.MustParseAddr("fd00:2::2")}
		router := map[bool]netip.Addr{true: netip.MustParseAddr("10.0.2.1"), false: netip.MustParseAddr("fd00:2::1")}
		for i, protocol := range []byte{packet.ProtoIPIP, unix.IPPROTO_IPV6, unix.IPPROTO_GRE, packet.ProtoUDP} {
			for _, four := range []bool{true, false} {
				l, err := LearnPathMTU(int(protocol))
				if err == nil {
					err = l.Rest()
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, learns := range []bool{false, true} {
					to := netip.AddrFrom4([4]byte{10, 0, 2, byte(10 + 2*i)})
					if !four {
						to = netip.MustParseAddr(fmt.Sprintf("fd00:2::%x", 16+2*i))
					}
					if learns {
						to = to.Next()
						if err := l.Resume(); err != nil {
							t.Fatal(err)
						}
					}
					about := make([]byte, 1400)
					answer := make([]byte, packet.MaxLen)
					if four {
						h := packet.IPv4(about)
						packet.IPv4(h).Encode(packet.IPv4Fields{
							TotalLen: len(h), TTL: 64, Protocol: protocol, Src: from[four].As4(), Dst: to.As4(),
						})
						h[6] = 0x40
						h.SetChecksum()
						answer = answer[:packet.FragmentationNeeded(answer, about, router[four], 1333)]
					} else {
						packet.IPv6(about).Encode(packet.IPv6Fields{
							TotalLen: len(about), HopLimit: 64, NextHeader: protocol, Src: from[four].As16(),
							Dst: to.As16(),
						})
						answer = answer[:packet.PacketTooBig(answer, about, router[four], 1333)]
					}
					inject(t, far, near, answer)
					if !learns {
						continue // it has been treated when the next one has
					}
					testkit.Eventually(t, fmt.Sprintf("an MTU is learned for protocol %d to %v", protocol, to),
						func() bool { return mtuTo(t, to) == 1333 })
					if before := to.Prev(); mtuTo(t, before) != 0 {
						t.Errorf("protocol %d to %v: MTU %d while the learner rests", protocol, before,
							mtuTo(t, before))
					}
					if err := l.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
}

// up raises a device and returns it as it is then.
func up(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// inject lets a packet come in by the device to, whose peer is from.
func inject(t *testing.T, from, to netlink.Link, b []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	kind := uint16(unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	addr := &unix.SockaddrLinklayer{Protocol: kind<<8 | kind>>8, Ifindex: from.Attrs().Index, Halen: 6}
	copy(addr.Addr[:], to.Attrs().HardwareAddr)
	if err := unix.Sendto(fd, b, 0, addr); err != nil {
		t.Fatal(err)
	}
}

// mtuTo is the path MTU to a that the kernel has learned, 0 for none.
func mtuTo(t *testing.T, a netip.Addr) int {
	t.Helper()
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) != 1 {
		t.Fatal(routes, err)
	}
	return routes[0].MTU
}

// awaitLocal waits until the kernel knows an IPv6 address that is new as its own: this comes shortly after the address.
// An earlier look-up would keep another route.
func awaitLocal(t *testing.T, address string) {
	t.Helper()
	testkit.Eventually(t, "there is a way to "+address, func() bool {
		routes, err := netlink.RouteGet(net.ParseIP(address))
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

// TestUDPSendsOverBothFamilies: the same sockets, and so the same source ports, serve IPv4 and IPv6; addresses, class
// and hop limit are those of the packets.
func TestUDPSendsOverBothFamilies(t *testing.T) {
	inNamespace(t, func() {
		lo := up(t, "lo")
		for _, a := range []string{"10.9.9.9/32", "fd00::9/128"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags |= unix.IFA_F_NODAD
			if err := netlink.AddrAdd(lo, addr); err != nil {
				t.Fatal(err)
			}
		}
		s, err := NewUDPSender(2)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6unspecified, Port: 6080})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		awaitLocal(t, "fd00::9")
		next := capture(t, "lo")
		const n, size = 5, 1200
		for i, c := range []struct{ from, to, source string }{
			{"10.9.9.9", "127.0.0.1", "10.9.9.9"}, {"0.0.0.0", "127.0.0.1", "127.0.0.1"}, {"fd00::9", "::1", "fd00::9"},
			{"::1", "fd00::9", "::1"},
		} {
			from, to := netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)
			port := s.Ports()[i%2]
			var segs []egress.Outgoing
			for k := range n {
				b := wrapUDP(from, to, port, 6080, size)
				b[len(b)-1] = byte(k)
				segs = append(segs, udpPacket(split(b, 80)))
			}
			if sent, err := s.Send(segs); sent != n || err != nil {
				t.Fatalf("%+v: %d %v", c, sent, err)
			}
			b := next() // on its way they are one packet, at least over the loopback device
			var class, ttl byte
			if to.Is4() {
				class, ttl = packet.IPv4(b).TOS(), packet.IPv4(b).TTL()
			} else {
				class, ttl = packet.IPv6(b).TrafficClass(), packet.IPv6(b).HopLimit()
			}
			if class != 0x2b || ttl != 33 {
				t.Errorf("%+v: class %x, TTL %d: %x", c, class, ttl, b[:min(len(b), 200)])
			}
			for k := range n {
				got := make([]byte, 2000)
				if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				n, source, err := server.ReadFromUDPAddrPort(got)
				if want := netip.AddrPortFrom(netip.MustParseAddr(c.source), port); err != nil || n != size ||
					got[n-1] != byte(k) ||
					netip.AddrPortFrom(source.Addr().Unmap(), source.Port()) != want {
					t.Fatalf("%+v: datagram %d of %d bytes from %v, %v; want it from %v", c, k, n, source, err, want)
				}
			}
		}
		segs := []egress.Outgoing{udpTo(s, netip.IPv6Loopback())}
		if n := testing.AllocsPerRun(100, func() {
			if _, err := s.Send(segs); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// TestUDPWithoutIPv6 is about a kernel that has none.
func TestUDPWithoutIPv6(t *testing.T) {
	inNamespace(t, func() {
		s, err := newUDPSender(1, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		next := capture(t, "lo")
		lo := netip.MustParseAddr("127.0.0.1")
		if n, err := s.Send([]egress.Outgoing{udpTo(s, lo)}); n != 1 || err != nil {
			t.Errorf("over IPv4: %d %v", n, err)
		}
		if h := packet.IPv4(next()); h.Src() != lo || h.Dst() != lo || h.TotalLen() != 128 || h.TTL() != 33 ||
			h.TOS() != 0x2b {
			t.Errorf("sent is %x", []byte(h))
		}
		six := netip.IPv6Loopback()
		if _, err := s.Send([]egress.Outgoing{udpTo(s, six)}); !errors.Is(err,
			unix.EAFNOSUPPORT) {
			t.Errorf("over IPv6: %v", err)
		}
	})
}

// udpTo is a UDP packet from and to a, an address of this host, for s.
func udpTo(s *UDPSender, a netip.Addr) egress.Outgoing {
	return udpPacket(egress.Packet(wrapUDP(a, a, s.Ports()[0], 9, 100)))
}

// wrapUDP makes a UDP packet with size bytes of payload.
func wrapUDP(from, to netip.Addr, sport, dport uint16, size int) []byte {
	at := packet.IPv6HeaderLen
	if to.Is4() {
		at = packet.IPv4HeaderLen
	}
	b := make([]byte, at+8+size)
	if to.Is4() {
		packet.IPv4(b).Encode(packet.IPv4Fields{
			TOS: 0x2b, TotalLen: len(b), TTL: 33, Protocol: packet.ProtoUDP, Src: from.As4(), Dst: to.As4(),
		})
	} else {
		packet.IPv6(b).Encode(packet.IPv6Fields{
			TrafficClass: 0x2b, TotalLen: len(b), HopLimit: 33, NextHeader: packet.ProtoUDP, Src: from.As16(),
			Dst: to.As16(),
		})
	}
	binary.BigEndian.PutUint16(b[at:], sport)
	binary.BigEndian.PutUint16(b[at+2:], dport)
	return b
}

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// newPair makes the veth pair near–far, both up, and returns the indexes and MAC addresses of its ends.
func newPair(t testing.TB, near, far string, mtu int) (to egress.Peer) {
	t.Helper()
	a := netlink.LinkAttrs{Name: near, MTU: mtu}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: far, PeerMTU: uint32(mtu)}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{near, far} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		mac := [6]byte(l.Attrs().HardwareAddr)
		if name == near {
			to.Device, to.OwnMAC = l.Attrs().Index, mac
		} else {
			to.MAC = mac
		}
	}
	// Before, the kernel drops what is sent by the device.
	testkit.Eventually(t, "the devices have a carrier", func() bool {
		l, err := netlink.LinkByName(near)
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})
	return to
}

func mustLinkSender(t testing.TB) *LinkSender {
	t.Helper()
	s, err := NewLinkSender()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// request is a UDP packet with n bytes of payload from a client to a VIP, of either family. Its checksum is the sum of
// the pseudo-header.
func request(six bool, n int) *packet.Buf {
	b := &packet.NewBufs(1)[0]
	at := packet.IPv4HeaderLen
	if six {
		at = packet.IPv6HeaderLen
	}
	b.Room()
	b.SetLen(at + packet.UDPHeaderLen + n)
	p := b.Bytes()
	clear(p)
	if six {
		packet.IPv6(p).Encode(packet.IPv6Fields{TotalLen: len(p), HopLimit: 63, NextHeader: packet.ProtoUDP,
			Src: netip.MustParseAddr("2001:db8::1").As16(), Dst: netip.MustParseAddr("2001:db8::80").As16()})
	} else {
		packet.IPv4(p).Encode(packet.IPv4Fields{TotalLen: len(p), TTL: 63, Protocol: packet.ProtoUDP,
			Src: [4]byte{192, 0, 2, 1}, Dst: [4]byte{198, 51, 100, 80}})
		packet.IPv4(p).SetChecksum()
	}
	u := packet.UDP(p[at:])
	u.SetSrcPort(4711)
	u.SetDstPort(53)
	u.SetLen(len(u))
	for i := range u[packet.UDPHeaderLen:] {
		u[packet.UDPHeaderLen+i] = byte(i * 7)
	}
	binary.BigEndian.PutUint16(u[packet.UDPChecksumAt:], packet.Fold(packet.PseudoSum(p, packet.ProtoUDP, len(u))))
	b.Offload = packet.Offload{Partial: true, CsumStart: uint16(at), CsumOffset: packet.UDPChecksumAt}
	return b
}

func linkOut(b *packet.Buf, to *egress.Peer) egress.Outgoing {
	return egress.Outgoing{Segment: packet.Segment{Head: b.Bytes()}, Hop: egress.Hop{To: to, Kind: egress.Link}, Buf: b}
}

// TestLinkSender: one socket sends packets of both families by several devices to the neighbours' MAC addresses, in
// their order and unchanged but for unfinished checksums, which the kernel finishes where a device can't. A packet that
// the kernel refuses does not affect the others.
func TestLinkSender(t *testing.T) {
	inNamespace(t, func() {
		s := mustLinkSender(t)
		peers := []egress.Peer{newPair(t, "a", "a2", 1500), newPair(t, "b", "b2", 1500)}
		next := []func() []byte{capture(t, "a2"), capture(t, "b2")}
		gone := egress.Peer{Device: 4711, MAC: peers[0].MAC, OwnMAC: peers[0].OwnMAC}
		var out []egress.Outgoing
		want := make([][][]byte, 2)
		const n = 200 // several batches
		for i := range n {
			b := request(i%3 == 0, 100+i)
			if i%4 == 0 {
				b.Finish()
			}
			out = append(out, linkOut(b, &peers[i%2]))
			whole := b.Clone()
			whole.Finish()
			want[i%2] = append(want[i%2], whole.Bytes())
			if i == 50 {
				out = append(out, linkOut(request(false, 10), &gone), linkOut(request(false, 1500-27), &peers[0]))
			}
			if i == 60 { // two pieces
				b.Finish()
				p := b.Bytes()
				out[len(out)-1] = egress.Outgoing{Segment: packet.Segment{Head: p[:50], Body: p[50:]},
					Hop: egress.Hop{To: &peers[i%2], Kind: egress.Link}}
			}
		}
		var errs []error
		for len(out) > 0 {
			k, err := s.Send(out)
			if err != nil {
				errs = append(errs, err)
				k = 1
			}
			out = out[k:]
		}
		if len(errs) != 2 || !errors.Is(errs[0], unix.ENXIO) || !errors.Is(errs[1], unix.EMSGSIZE) {
			t.Errorf("errors are %v", errs)
		}
		for i := range want {
			for j, w := range want[i] {
				got := nextIP(next[i])
				finish(got)
				if !bytes.Equal(got, w) {
					t.Fatalf("device %d, packet %d: %x, want %x", i, j, got, w)
				}
			}
		}
	})
}

// nextIP returns the next packet from the test's client.
func nextIP(next func() []byte) []byte {
	for {
		p := bytes.Clone(next())
		if packet.Version(p) == 4 && packet.IPv4(p).Src() == netip.AddrFrom4([4]byte{192, 0, 2, 1}) ||
			packet.Version(p) == 6 && packet.IPv6(p).Src() == netip.MustParseAddr("2001:db8::1") {
			return p
		}
	}
}

// finish computes the UDP checksum of p, which a veth device leaves unfinished.
func finish(p []byte) {
	at := packet.IPv4HeaderLen
	if packet.Version(p) == 6 {
		at = packet.IPv6HeaderLen
	}
	u := packet.UDP(p[at:])
	u.ClearChecksum()
	packet.PutChecksum(u[packet.UDPChecksumAt:], packet.Sum(u, packet.PseudoSum(p, packet.ProtoUDP, len(u))), true)
}

// TestLinkSenderGSO: a GSO packet leaves whole, and arrives whole at the far end of a device that can take it.
func TestLinkSenderGSO(t *testing.T) {
	inNamespace(t, func() {
		s := mustLinkSender(t)
		to := newPair(t, "a", "a2", 1500)
		next := capture(t, "a2")
		for _, six := range []bool{false, true} {
			b := request(six, 40*1200)
			b.Offload.GSO, b.Offload.Size = packet.GSOUDP, 1200
			if n, err := s.Send([]egress.Outgoing{linkOut(b, &to)}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if got := nextIP(next); len(got) != b.Len() {
				t.Errorf("IPv6 %v: %d bytes have arrived of %d", six, len(got), b.Len())
			}
		}
	})
}

// TestLinkSenderHeaders: the frame has the MAC addresses of the neighbour and of the device.
func TestLinkSenderHeaders(t *testing.T) {
	inNamespace(t, func() {
		s := mustLinkSender(t)
		to := newPair(t, "a", "a2", 1500)
		all := uint16(unix.ETH_P_ALL)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		far, err := net.InterfaceByName("a2")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: far.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Send([]egress.Outgoing{linkOut(request(true, 10), &to)}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		b := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil && err != unix.EINTR {
				t.Fatal(err)
			}
			f := packet.Ethernet(b[:max(n, 0)])
			if n < packet.EthernetHeaderLen || f.Src() != to.OwnMAC ||
				packet.IPv6(f.Payload()).NextHeader() != packet.ProtoUDP {
				continue // neighbour discovery
			}
			if f.Dst() != to.MAC || f.Type() != packet.EtherTypeIPv6 {
				t.Errorf("%x", f[:packet.EthernetHeaderLen])
			}
			return
		}
	})
}

// TestLinkSenderCloses: a closed sender reports it.
func TestLinkSenderCloses(t *testing.T) {
	inNamespace(t, func() {
		s := mustLinkSender(t)
		if err := errors.Join(s.SetPriority(6), s.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Send([]egress.Outgoing{linkOut(request(false, 1), &egress.Peer{})}); !errors.Is(err,
			os.ErrClosed) {
			t.Errorf("error %v", err)
		}
	})
}

// BenchmarkLinkSender measures a batch of small packets.
func BenchmarkLinkSender(b *testing.B) {
	testkit.InNamespace(b, func() {
		s := mustLinkSender(b)
		to := newPair(b, "a", "a2", 1500)
		var out []egress.Outgoing
		for range Batch {
			p := request(false, 32)
			p.Finish()
			out = append(out, linkOut(p, &to))
		}
		b.ReportAllocs()
		for b.Loop() {
			for left := out; len(left) > 0; {
				n, err := s.Send(left)
				if err == unix.ENOBUFS {
					time.Sleep(time.Millisecond)
				} else if err != nil {
					b.Fatal(err)
				}
				left = left[n:]
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Batch, "ns/packet")
	})
}

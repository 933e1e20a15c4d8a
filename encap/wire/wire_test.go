package wire

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

var local = netip.MustParseAddr("127.0.0.1").As4()

// inNamespace runs fn in a new network namespace, whose loopback device is up with an MTU of 1500.
func inNamespace(t *testing.T, fn func()) {
	t.Helper()
	testkit.InNamespace(t, func() {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(netlink.LinkSetMTU(lo, 1500), netlink.LinkSetUp(lo)); err != nil {
			t.Fatal(err)
		}
		fn()
	})
}

func open(t *testing.T) (*Sender, *Receiver) {
	t.Helper()
	s, r := mustSender(t), mustReceivers(t, 1, Socket{Protocol: packet.ProtoIPIP})
	return s, r[0]
}

// outer makes a packet of protocol 4 from and to this host, with n bytes of payload that all are fill.
func outer(n int, fill byte) packet.IPv4 {
	b := make(packet.IPv4, 20+n)
	packet.IPv4(b).Encode(packet.IPv4Fields{
		TOS: 0x28, TotalLen: len(b), TTL: 9, Protocol: packet.ProtoIPIP, Dst: local,
	})
	copy(b[20:], bytes.Repeat([]byte{fill}, n))
	b[10], b[11] = 0, 0
	return b
}

func TestSendAndReceive(t *testing.T) {
	inNamespace(t, func() {
		s, r := open(t)
		const n = 150 // more than two batches
		var segs []egress.Outgoing
		for i := range n {
			b := outer(100+i, byte(i))
			if i%2 == 0 {
				segs = append(segs, egress.Packet(b))
			} else {
				segs = append(segs, split(b, 20+i/2))
			}
		}
		for sent := 0; sent < n; {
			k, err := s.Send(segs[sent:])
			if err != nil || k == 0 || k > Batch {
				t.Fatal(k, err)
			}
			sent += k
		}
		bufs := packet.NewBufs(64)
		for seen := 0; seen < n; {
			k, err := r.ReadBatch(bufs)
			if err != nil || k == 0 {
				t.Fatal(k, err)
			}
			for i := range bufs[:k] {
				h := packet.IPv4(bufs[i].Bytes())
				want := bytes.Repeat([]byte{byte(seen)}, 100+seen)
				if h.Check() != drop.Accept || h.TotalLen() != len(h) || h.Src() != netip.AddrFrom4(local) ||
					h.TTL() != 9 || h.TOS() != 0x28 || !bytes.Equal(h.Payload(), want) {
					t.Fatalf("packet %d: %x", seen, []byte(h))
				}
				seen++
			}
		}
	})
}

func TestSendGoesOnBehindRefused(t *testing.T) {
	inNamespace(t, func() {
		s, r := open(t)
		unreachable := outer(10, 1)
		copy(unreachable[16:20], []byte{192, 0, 2, 1})
		segs := []egress.Outgoing{egress.Packet(outer(10, 1)), egress.Packet(outer(1481, 2)),
			egress.Packet(unreachable),
			egress.Packet(outer(10, 3))}
		var errs []error
		for out := segs; len(out) > 0; {
			n, err := s.Send(out)
			if err != nil {
				errs = append(errs, err)
				n = 1
			}
			out = out[n:]
		}
		if len(errs) != 2 || !errors.Is(errs[0], unix.EMSGSIZE) || !errors.Is(errs[1], unix.ENETUNREACH) {
			t.Errorf("errors are %v", errs)
		}
		bufs := packet.NewBufs(4)
		var got []byte
		for len(got) < 2 {
			n, err := r.ReadBatch(bufs)
			if err != nil {
				t.Fatal(err)
			}
			for i := range bufs[:n] {
				got = append(got, bufs[i].Bytes()[20])
			}
		}
		if !bytes.Equal(got, []byte{1, 3}) {
			t.Errorf("received %v", got)
		}
	})
}

// TestKernelReassembles: what the director cuts with its own IDs reaches the realserver's raw socket whole.
func TestKernelReassembles(t *testing.T) {
	inNamespace(t, func() {
		s, r := open(t)
		var want []byte
		for i := range 3 {
			b := outer(800, byte(i))
			b[4], b[5] = 0, 7
			b[6], b[7] = byte(i*100>>8), byte(i*100)
			if i < 2 {
				b[6] |= 0x20
			}
			want = append(want, b[20:]...)
			if n, err := s.Send([]egress.Outgoing{egress.Packet(b)}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		bufs := packet.NewBufs(2)
		n, err := r.ReadBatch(bufs)
		if err != nil || n != 1 || !bytes.Equal(bufs[0].Bytes()[20:], want) {
			t.Errorf("%d packets, %v, %d bytes", n, err, bufs[0].Len())
		}
	})
}

func TestCloseEndsReader(t *testing.T) {
	inNamespace(t, func() {
		s, r := open(t)
		end := make(chan error)
		go func() {
			_, err := r.ReadBatch(packet.NewBufs(1))
			end <- err
		}()
		r.Close()
		if err := <-end; !errors.Is(err, os.ErrClosed) {
			t.Errorf("the reader ends with %v", err)
		}
		s.Close()
		if _, err := s.Send([]egress.Outgoing{egress.Packet(outer(1, 1))}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
	})
}

func TestOverruns(t *testing.T) {
	inNamespace(t, func() {
		s, r := open(t)
		if n := r.Overruns(); n != 0 {
			t.Fatalf("%d overruns before any packet", n)
		}
		seg := []egress.Outgoing{egress.Packet(outer(1400, 1))}
		for range 50_000 { // 70 MB, far beyond the socket's buffer
			if _, err := s.Send(seg); err != nil {
				t.Fatal(err)
			}
			if r.Overruns() > 0 {
				return
			}
		}
		t.Error("no overrun was counted")
	})
}

func TestBatchesAllocateNothing(t *testing.T) {
	inNamespace(t, func() {
		s, r := open(t)
		segs := []egress.Outgoing{egress.Packet(outer(100, 1)), egress.Packet(outer(100, 2))}
		bufs := packet.NewBufs(2)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := s.Send(segs); err != nil {
				t.Fatal(err)
			}
			for seen := 0; seen < 2; {
				k, err := r.ReadBatch(bufs)
				if err != nil {
					t.Fatal(err)
				}
				seen += k
			}
		}); n != 0 {
			t.Errorf("%v allocations a batch", n)
		}
	})
}

// mustSender is a Sender until the test ends.
func mustSender(t *testing.T) *Sender {
	t.Helper()
	s, err := NewSender()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// mustReceivers are n Receivers until the test ends.
func mustReceivers(t *testing.T, n int, sockets ...Socket) Receivers {
	t.Helper()
	rs, err := NewReceivers(n, sockets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, r := range rs {
			r.Close()
		}
	})
	return rs
}

// split is the packet b in two pieces, the first of n bytes.
func split(b []byte, n int) egress.Outgoing {
	o := egress.Packet(b)
	o.Head, o.Body = b[:n], b[n:]
	return o
}

// udpPacket is o, a packet of UDP without options, for a UDPSender.
func udpPacket(o egress.Outgoing) egress.Outgoing {
	h, u := &o.Hop, packet.UDP(o.Head)
	if h.To.Dst.Is4() {
		ip := packet.IPv4(o.Head)
		h.Class, h.TTL, h.DF, u = ip.TOS(), ip.TTL(), ip.DF(), u[packet.IPv4HeaderLen:]
	} else {
		ip := packet.IPv6(o.Head)
		h.Class, h.TTL, h.DF, u = ip.TrafficClass(), ip.HopLimit(), true, u[packet.IPv6HeaderLen:]
	}
	h.Kind, h.SrcPort, h.To.DstPort = egress.UDP, u.SrcPort(), u.DstPort()
	return o
}

// TestSetBuffers: buffers are as large as requested, whatever the system's limit is.
func TestSetBuffers(t *testing.T) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	const size = 32 << 20
	SetBuffers(socket, size)
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
			if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, option); err != nil || n < size {
				t.Errorf("option %d: %d bytes, %v", option, n, err)
			}
		}
	}); err != nil {
		t.Error(err)
	}
}

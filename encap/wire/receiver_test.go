package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

// everySocket is all that an agent may have.
func everySocket() (all []Socket) {
	for _, over6 := range []bool{false, true} {
		for _, p := range []uint8{packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE} {
			all = append(all, Socket{Protocol: p, Over6: over6})
		}
		all = append(all, Socket{Protocol: packet.ProtoUDP, Over6: over6, Port: 6080})
	}
	return all
}

// thrower sends whole packets of either family with headers of the test's making.
type thrower struct {
	t      *testing.T
	v4, v6 int
}

func newThrower(t *testing.T) *thrower {
	t.Helper()
	w := &thrower{t: t}
	var err error
	if w.v4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.v4) })
	if w.v6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.v6) })
	return w
}

func (w *thrower) throw(b []byte) {
	w.t.Helper()
	var err error
	if b[0]>>4 == 6 {
		err = unix.Sendto(w.v6, b, 0, &unix.SockaddrInet6{Addr: [16]byte(b[24:40])})
	} else {
		err = unix.Sendto(w.v4, b, 0, &unix.SockaddrInet4{Addr: [4]byte(b[16:20])})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// packetFor is a packet from and to this host that s gets; a UDP one has no checksum.
func (s Socket) packetFor(class byte, payload []byte) []byte {
	if s.Protocol == packet.ProtoUDP {
		u := make([]byte, packet.UDPHeaderLen, packet.UDPHeaderLen+len(payload))
		binary.BigEndian.PutUint16(u, 4711)
		binary.BigEndian.PutUint16(u[2:], s.Port)
		binary.BigEndian.PutUint16(u[4:], uint16(packet.UDPHeaderLen+len(payload)))
		payload = append(u, payload...)
	}
	if s.Over6 {
		b := make([]byte, packet.IPv6HeaderLen, packet.IPv6HeaderLen+len(payload))
		one := netip.IPv6Loopback().As16()
		packet.IPv6(b).Encode(packet.IPv6Fields{
			TrafficClass: class, TotalLen: len(b) + len(payload), HopLimit: 64, NextHeader: s.Protocol, Src: one,
			Dst: one,
		})
		return append(b, payload...)
	}
	b := make([]byte, packet.IPv4HeaderLen, packet.IPv4HeaderLen+len(payload))
	packet.IPv4(b).Encode(packet.IPv4Fields{
		TOS: class, TotalLen: len(b) + len(payload), TTL: 64, Protocol: s.Protocol, Src: local, Dst: local,
	})
	return append(b, payload...)
}

// TestEverySocket: whatever a packet comes by, it has an outer header with its protocol, source and class.
func TestEverySocket(t *testing.T) {
	inNamespace(t, func() {
		rs := mustReceivers(t, 1, everySocket()...)
		w := newThrower(t)
		bufs := packet.NewBufs(4)
		for i, s := range everySocket() {
			payload := bytes.Repeat([]byte{byte(i)}, 100+i)
			w.throw(s.packetFor(0xb9, payload))
			n, err := rs[0].ReadBatch(bufs)
			if err != nil || n != 1 {
				t.Fatalf("%s: %d packets, %v", s, n, err)
			}
			b := bufs[0].Bytes()
			var proto, class byte
			var src netip.Addr
			var rest []byte
			if s.Over6 {
				h := packet.IPv6(b)
				proto, class, src, rest = h.NextHeader(), h.TrafficClass(), h.Src(), b[40:]
				if h.Check() != drop.Accept || h.TotalLen() != len(h) {
					t.Errorf("%s: header %x", s, b[:40])
				}
			} else {
				h := packet.IPv4(b)
				proto, class, src, rest = h.Protocol(), h.TOS(), h.Src(), b[20:]
				if h.Check() != drop.Accept || h.TotalLen() != len(h) {
					t.Errorf("%s: header %x", s, b[:20])
				}
			}
			if s.Protocol == packet.ProtoUDP {
				if binary.BigEndian.Uint16(rest) != 4711 || binary.BigEndian.Uint16(rest[2:]) != 6080 ||
					int(binary.BigEndian.Uint16(rest[4:])) != len(rest) {
					t.Errorf("%s: UDP header %x", s, rest[:8])
				}
				rest = rest[8:]
			}
			if !src.IsLoopback() || proto != s.Protocol || class != 0xb9 || !bytes.Equal(rest, payload) {
				t.Errorf("%s: from %v, protocol %d, class %#x, payload %x", s, src, proto, class, rest)
			}
		}
		if n := rs[0].Overruns(); n != 0 {
			t.Errorf("%d overruns", n)
		}
	})
}

// TestSocketsTakeTurns: packets of one socket do not delay those of the others.
func TestSocketsTakeTurns(t *testing.T) {
	inNamespace(t, func() {
		rs := mustReceivers(t, 1, everySocket()...)
		w := newThrower(t)
		all := everySocket()
		for range 3 * Batch {
			w.throw(all[0].packetFor(0, make([]byte, 30)))
		}
		for _, s := range all[1:] {
			w.throw(s.packetFor(0, make([]byte, 30)))
		}
		bufs := packet.NewBufs(Batch)
		for calls := 1; ; calls++ {
			if _, err := rs[0].ReadBatch(bufs); err != nil {
				t.Fatal(err)
			}
			if h := packet.IPv6(bufs[0].Bytes()); h.Version() == 6 && h.NextHeader() == packet.ProtoUDP {
				if calls > len(all) {
					t.Errorf("the last socket's packet is read by call %d", calls)
				}
				return
			}
		}
	})
}

func TestReceiverAllocatesNothing(t *testing.T) {
	inNamespace(t, func() {
		rs := mustReceivers(t, 1, everySocket()...)
		s := mustSender(t)
		segs := []egress.Outgoing{egress.Packet(outer(100, 1)), egress.Packet(outer(100, 2))}
		bufs := packet.NewBufs(2)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := s.Send(segs); err != nil {
				t.Fatal(err)
			}
			for seen := 0; seen < 2; {
				k, err := rs[0].ReadBatch(bufs)
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

// TestReceiversShareFlows: of several receivers, exactly one gets each packet, and all packets of a flow, whatever
// their length, tunnel and family.
func TestReceiversShareFlows(t *testing.T) {
	gre := func(flags byte, proto uint16, n int) []byte {
		b := make([]byte, n)
		b[0] = flags
		binary.BigEndian.PutUint16(b[2:], proto)
		return b
	}
	for name, c := range map[string]struct {
		s      Socket
		header []byte // of the tunnel
		six    bool
	}{
		"4 in 4":                  {Socket{Protocol: packet.ProtoIPIP}, nil, false},
		"6 in 4":                  {Socket{Protocol: packet.ProtoIPv6}, nil, true},
		"4 in 6":                  {Socket{Protocol: packet.ProtoIPIP, Over6: true}, nil, false},
		"6 in 6":                  {Socket{Protocol: packet.ProtoIPv6, Over6: true}, nil, true},
		"4 in GRE in 4":           {Socket{Protocol: packet.ProtoGRE}, gre(0, 0x800, 4), false},
		"4 in GRE with key":       {Socket{Protocol: packet.ProtoGRE}, gre(0x20, 0x800, 8), false},
		"6 in GRE with checksum":  {Socket{Protocol: packet.ProtoGRE}, gre(0x80, 0x86dd, 8), true},
		"6 in GRE with both in 6": {Socket{Protocol: packet.ProtoGRE, Over6: true}, gre(0xa0, 0x86dd, 12), true},
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, func() { shareFlows(t, c.s, c.header, c.six) })
		})
	}
}

func shareFlows(t *testing.T, s Socket, header []byte, six bool) {
	const workers, flows = 3, 200
	rs, err := NewReceivers(workers, s)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, r := range rs {
			r.Close()
		}
	}()
	w := newThrower(t)
	// The lengths of packets with ports, and of those without.
	version, ip, source, whole := byte(4), 20, 15, []int{24, 40, 1400}
	short := []int{0, 1, 15, 16, 20, 23}
	if six {
		version, ip, source, whole = 6, 40, 23, []int{44, 60, 1400}
		short = []int{0, 1, 23, 24, 40, 43}
	}
	sent := 0
	for flow := range flows {
		for _, n := range slices.Concat(whole, short) {
			in := make([]byte, n)
			if n > 0 {
				in[0] = version << 4
			}
			if n > source {
				in[source] = byte(flow)
			}
			if n >= ip+4 {
				in[ip], in[ip+1] = byte(flow>>8), byte(flow)
				in[1] = byte(n) // part of the class, which is not part of the flow
			}
			w.throw(s.packetFor(0, append(slices.Clone(header), in...)))
			sent++
		}
	}
	for cut := range header { // and tunnel headers that are cut short
		w.throw(s.packetFor(0, header[:cut]))
		sent++
	}
	owner := map[[2]byte]int{}
	got := make([]int, workers)
	skip := packet.IPv4HeaderLen + len(header)
	if s.Over6 {
		skip = packet.IPv6HeaderLen + len(header)
	}
	bufs := packet.NewBufs(64)
	for i, r := range rs {
		for { // nothing is sent while we read: the sockets hold all there is
			if err := r.fds.Acquire(); err != nil {
				t.Fatal(err)
			}
			_, _, err = unix.Recvfrom(int(r.fds.Num(0)), make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK)
			r.fds.Release()
			if err != nil {
				break
			}
			n, err := r.ReadBatch(bufs)
			if err != nil {
				t.Fatal(err)
			}
			for j := range bufs[:n] {
				got[i]++
				in := bufs[j].Bytes()
				if len(in) < skip+ip+4 {
					continue
				}
				flow := [2]byte(in[skip+ip:])
				if o, seen := owner[flow]; seen && o != i {
					t.Fatalf("flow %v is read by worker %d and %d", flow, o, i)
				}
				owner[flow] = i
			}
		}
	}
	if sum := got[0] + got[1] + got[2]; sum != sent {
		t.Errorf("%v packets were read, want %d in all", got, sent)
	}
	spread := make([]int, workers)
	for _, i := range owner {
		spread[i]++
	}
	if len(owner) != flows || slices.Min(spread) < flows/workers/2 {
		t.Errorf("%v flows, want %d in all", spread, flows)
	}
}

// TestTakenPort: the error says what to do, and nothing stays open.
func TestTakenPort(t *testing.T) {
	inNamespace(t, func() {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: 6080}); err != nil {
			t.Fatal(err)
		}
		before := testkit.Descriptors(t, "")
		_, err = NewReceivers(2, everySocket()...)
		if want := "UDP port 6080 over IPv4: address already in use: another program has it: end it, or set another " +
			"encap_port here and at the directors"; fmt.Sprint(err) != want {
			t.Errorf("%v, want %v", err, want)
		}
		if now := testkit.Descriptors(t, ""); now != before {
			t.Errorf("%d descriptors are open, were %d", now, before)
		}
	})
}

// TestPrivilegedPort: without CAP_NET_BIND_SERVICE a port below 1024 is refused, not used by another program.
func TestPrivilegedPort(t *testing.T) {
	inNamespace(t, func() { // whose ip_unprivileged_port_start is 1024
		withoutBindService(t, func() {
			_, err := NewReceivers(1, Socket{Protocol: packet.ProtoUDP, Port: 500})
			if want := "UDP port 500 over IPv4: permission denied: a port below 1024: give CAP_NET_BIND_SERVICE, or " +
				"set another encap_port here and at the directors"; fmt.Sprint(err) != want {
				t.Errorf("%v, want %v", err, want)
			}
		})
	})
}

// withoutBindService runs fn, whose thread is locked, without that capability.
func withoutBindService(t *testing.T, fn func()) {
	t.Helper()
	without(t, unix.CAP_NET_BIND_SERVICE, fn)
}

// withoutRaw runs fn, whose thread is locked, without CAP_NET_RAW.
func withoutRaw(t *testing.T, fn func()) {
	t.Helper()
	without(t, unix.CAP_NET_RAW, fn)
}

func without(t *testing.T, capability int, fn func()) {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		t.Fatal(err)
	}
	has := had
	has[0].Effective &^= 1 << capability
	if err := unix.Capset(&head, &has[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&head, &had[0]); err != nil {
			t.Fatal(err)
		}
	}()
	fn()
}

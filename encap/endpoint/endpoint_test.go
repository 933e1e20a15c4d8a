package endpoint

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

var (
	director    = netip.MustParseAddr("10.0.2.2")
	director6   = netip.MustParseAddr("2001:db8:2::2")
	realserver  = netip.MustParseAddr("10.0.11.2")
	realserver6 = netip.MustParseAddr("2001:db8:11::2")
	client      = netip.MustParseAddr("192.0.2.1")
	client6     = netip.MustParseAddr("2001:db8:c::1")
	vip         = netip.MustParseAddr("198.51.100.80")
	vip6        = netip.MustParseAddr("2001:db8:f::80")
)

// port is where the agent takes GUE.
const port = 6080

func policy() *Policy { return policyOf(realserver, realserver6) }

// policyOf is policy where the host has these addresses.
func policyOf(own ...netip.Addr) *Policy {
	return NewPolicy(Rules{
		Directors: []netip.Prefix{netip.MustParsePrefix("10.0.2.2/32"), netip.MustParsePrefix("10.9.0.0/16"),
			netip.MustParsePrefix("2001:db8:2::2/128"), netip.MustParsePrefix("2001:db8:9::/48")},
		VIPs: []netip.Addr{vip, netip.MustParseAddr("198.51.100.81"), vip6,
			netip.MustParseAddr("2001:db8:f::81")},
		Decapsulators: []encap.Decapsulator{{Kind: encap.KindIPIP}, {Kind: encap.KindGRE}, {Kind: encap.KindGUE}},
		Port:          port,
		LocalAddrs:    own,
		MSS4:          1440,
		MSS6:          1420,
	})
}

// inForce is p as a worker finds it.
func inForce(p *Policy) *atomic.Pointer[Policy] {
	var at atomic.Pointer[Policy]
	at.Store(p)
	return &at
}

// ip makes a packet of src's family.
func ip(src, dst netip.Addr, proto byte, payload []byte) []byte {
	if src.Is4() {
		b := make([]byte, 20, 20+len(payload))
		packet.IPv4(b).Encode(packet.IPv4Fields{
			TotalLen: 20 + len(payload), TTL: 64, Protocol: proto, Src: src.As4(), Dst: dst.As4(),
		})
		return append(b, payload...)
	}
	b := make([]byte, 40, 40+len(payload))
	packet.IPv6(b).Encode(packet.IPv6Fields{
		TotalLen: 40 + len(payload), HopLimit: 64, NextHeader: proto, Src: src.As16(), Dst: dst.As16(),
	})
	return append(b, payload...)
}

// wrap puts the packet in a tunnel from a director's address.
func wrap(kind encap.Kind, from netip.Addr, inner []byte) []byte {
	to := realserver
	if from.Is6() {
		to = realserver6
	}
	version := 4
	if len(inner) > 0 && inner[0]>>4 == 6 {
		version = 6
	}
	proto := byte(packet.ProtoIPIP)
	if version == 6 {
		proto = packet.ProtoIPv6
	}
	switch kind {
	case encap.KindGRE:
		h := []byte{0, 0, 8, 0}
		if version == 6 {
			binary.BigEndian.PutUint16(h[2:], 0x86dd)
		}
		return ip(from, to, packet.ProtoGRE, append(h, inner...))
	case encap.KindGUE:
		u := make([]byte, 8)
		binary.BigEndian.PutUint16(u, 40000)
		binary.BigEndian.PutUint16(u[2:], port)
		binary.BigEndian.PutUint16(u[4:], uint16(12+len(inner)))
		return ip(from, to, packet.ProtoUDP, slices.Concat(u, []byte{0, proto, 0, 0}, inner))
	}
	return ip(from, to, proto, inner)
}

// tunnelled4 is a packet of 48 bytes in an IPIP tunnel over IPv4.
func tunnelled4(from, src, dst netip.Addr, proto byte) []byte {
	return wrap(encap.KindIPIP, from, ip(src, dst, proto, make([]byte, 28)))
}

func buf(b []byte) *packet.Buf {
	bufs := packet.NewBufs(1)
	bufs[0].SetLen(copy(bufs[0].Room(), b))
	return &bufs[0]
}

// script is a Source that gives its packets and ends, and a Sink that keeps what it gets.
type script struct {
	in  [][]byte
	out [][]byte
}

func (s *script) ReadBatch(bufs []packet.Buf) (int, error) {
	if len(s.in) == 0 {
		return 0, os.ErrClosed
	}
	n := 0
	for n < len(bufs) && n < len(s.in) {
		bufs[n].SetLen(copy(bufs[n].Room(), s.in[n]))
		n++
	}
	s.in = s.in[n:]
	return n, nil
}

func (s *script) WriteBatch(bufs []*packet.Buf) (n, size int, err error) {
	for _, b := range bufs {
		p := whole(b)
		if p[19] == 81 { // the kernel refuses it
			continue
		}
		s.out = append(s.out, p)
		n, size = n+b.Pieces(), size+len(p)
	}
	return n, size, nil
}

func TestWorkerCountsEveryPacket(t *testing.T) {
	var s script
	for range 100 {
		s.in = append(s.in, tunnelled4(director, client, vip, 6), tunnelled4(client, client, vip, 6),
			tunnelled4(director, client, realserver, 6))
	}
	s.in = append(s.in, tunnelled4(director, client, netip.MustParseAddr("198.51.100.81"), 6))
	w := NewWorker(&s, &s, inForce(policy()), true)
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	want := stats.Tally{InPackets: 301, InBytes: 301 * 68, OutPackets: 100, OutBytes: 100 * 48}
	want.Drops[drop.NotDirector], want.Drops[drop.InnerDestination], want.Drops[drop.TUNError] = 100,
		100, 1
	var got stats.Tally
	w.Read(&got)
	if got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if len(s.out) != 100 || !bytes.Equal(s.out[0], tunnelled4(director, client, vip, 6)[20:]) {
		t.Errorf("%d packets came out", len(s.out))
	}
}

// TestWorkerMerges: segments of both families become one packet each, but not for a sink that takes no packet in
// pieces.
func TestWorkerMerges(t *testing.T) {
	for _, merge := range []bool{true, false} {
		var s script
		for i := range 10 {
			for _, six := range []bool{false, true} {
				s.in = append(s.in, wrap(encap.KindGRE, director6, segment{port: 1, n: 1000, seq: uint32(1000 * i),
					flags: packet.FlagACK, six: six}.bytes()))
			}
		}
		w := NewWorker(&s, &s, inForce(policy()), merge)
		if err := w.Run(); err != nil {
			t.Fatal(err)
		}
		want := 20
		if merge {
			want = 2
		}
		var got stats.Tally
		if w.Read(&got); len(s.out) != want || got.OutPackets != 20 {
			t.Errorf("merge %t: %d packets came out, counted %+v", merge, len(s.out), got)
		}
	}
}

// TestWorkerKeepsOrder: packets that arrive after a fragment are not written before it.
func TestWorkerKeepsOrder(t *testing.T) {
	s1 := segment{port: 1, n: 100, flags: packet.FlagACK}
	s2 := s1
	s2.seq = 100
	fragment := packet.IPv4(s2.bytes())
	fragment[6] = 0x20
	fragment.SetChecksum()
	s := script{in: [][]byte{wrap(encap.KindGRE, director, s1.bytes()), wrap(encap.KindGRE, director, fragment),
		wrap(encap.KindGRE, director, s2.bytes())}}
	if err := NewWorker(&s, &s, inForce(policy()), true).Run(); err != nil {
		t.Fatal(err)
	}
	if len(s.out) != 3 || !bytes.Equal(s.out[1], fragment) {
		t.Errorf("%d packets came out, or in another order", len(s.out))
	}
}

// TestWorkerCountsRefusedSegments: each segment of a GSO packet that the sink does not take is one packet refused.
func TestWorkerCountsRefusedSegments(t *testing.T) {
	var s script
	for i := range 12 {
		p := segment{port: 1 + uint16(i%2), n: 100, seq: uint32(100 * (i / 2)), flags: packet.FlagACK}.bytes()
		if i%2 == 1 {
			packet.IPv4(p)[19] = 81 // script refuses it
			p = refinish(p, 20)
		}
		s.in = append(s.in, wrap(encap.KindIPIP, director, p))
	}
	w := NewWorker(&s, &s, inForce(policy()), true)
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var got stats.Tally
	w.Read(&got)
	if len(s.out) != 1 || got.InPackets != 12 || got.OutPackets != 6 || got.Drops[drop.TUNError] != 6 {
		t.Errorf("%d packets came out, counted %+v", len(s.out), got)
	}
}

func TestWorkerEndsAndFails(t *testing.T) {
	for _, c := range []struct{ err, want error }{{os.ErrClosed, nil}, {os.ErrInvalid, os.ErrInvalid}} {
		if err := NewWorker(failing{c.err}, &script{}, inForce(policy()), true).Run(); (err == nil) != (c.want == nil) {
			t.Errorf("source fails with %v: Run returns %v", c.err, err)
		}
	}
}

type failing struct{ err error }

func (f failing) ReadBatch([]packet.Buf) (int, error) { return 0, f.err }

func TestWorkerAllocatesNothing(t *testing.T) {
	w := NewWorker(nil, discard{}, inForce(policy()), true)
	in := [][]byte{tunnelled4(director, client, vip, 6), tunnelled4(client, client, vip, 6)}
	for _, kind := range []encap.Kind{encap.KindIPIP, encap.KindGRE, encap.KindGUE} {
		for _, from := range []netip.Addr{director, director6} {
			for i := range 3 {
				in = append(in, wrap(kind, from, segment{port: 1, n: 100, seq: uint32(100 * i), flags: packet.FlagACK,
					six: true}.bytes()))
			}
			in = append(in, wrap(kind, from, ip(client6, vip6, 60, append([]byte{17, 0, 1, 4, 0, 0, 0, 0},
				make([]byte, 20)...))))
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		for i, b := range in {
			w.bufs[i].SetLen(copy(w.bufs[i].Room(), b))
		}
		if err := w.move(w.bufs[:len(in)]); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// discard is a Sink that accepts everything.
type discard struct{}

func (discard) WriteBatch(bufs []*packet.Buf) (n, bytes int, err error) {
	for _, b := range bufs {
		n += b.Pieces()
	}
	return n, 0, nil
}

// FuzzUnwrap: whatever comes in, by whatever tunnel, what is let in is a whole packet from a director's client to a
// VIP, and no tunnel.
func FuzzUnwrap(f *testing.F) {
	for _, kind := range []encap.Kind{encap.KindIPIP, encap.KindGRE, encap.KindGUE} {
		for _, from := range []netip.Addr{director, director6} {
			f.Add(wrap(kind, from, ip(client, vip, 6, make([]byte, 28))), byte(20))
			f.Add(wrap(kind, from, ip(client6, vip6, 60, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, make([]byte, 20)...))),
				byte(40))
			f.Add(wrap(kind, client, ip(client6, vip6, 44, make([]byte, 28))), byte(0))
		}
	}
	p := policy()
	bufs := packet.NewBufs(1)
	f.Fuzz(func(t *testing.T, b []byte, at byte) {
		if len(b) > packet.MaxLen || len(b) < 20 {
			return
		}
		// Else hardly anything passes: the lengths and checksum of the outer header, and of one that begins at at.
		b = bytes.Clone(b)
		for _, h := range [][]byte{b, b[min(int(at), len(b)):]} {
			switch {
			case len(h) >= 20 && h[0]>>4 == 4:
				packet.IPv4(h).SetTotalLen(len(h))
				if n := packet.IPv4(h).HeaderLen(); n >= 20 && n <= len(h) {
					packet.IPv4(h).SetChecksum()
				}
			case len(h) >= 40 && h[0]>>4 == 6:
				packet.IPv6(h).SetPayloadLen(len(h) - 40)
			}
		}
		q := &bufs[0]
		q.SetLen(copy(q.Room(), b))
		in, d := p.unwrap(q)
		if d != drop.Accept {
			return
		}
		x := q.Bytes()
		var src, dst, from netip.Addr
		if h := packet.IPv4(x); h.Version() == 4 {
			if h.Check() != drop.Accept || h.TotalLen() != len(h) || in.proto != h.Protocol() {
				t.Errorf("let in: %x", x)
			}
			src, dst = h.Src(), h.Dst()
		} else {
			h := packet.IPv6(x)
			if h.Check() != drop.Accept || h.TotalLen() != len(h) {
				t.Errorf("let in: %x", x)
			}
			src, dst = h.Src(), h.Dst()
		}
		if from = packet.IPv4(b).Src(); b[0]>>4 == 6 {
			from = packet.IPv6(b).Src()
		}
		if in.offset > len(x) || in.proto == 4 || in.proto == 41 || in.proto == 47 {
			t.Errorf("let in with %+v: %x", in, x)
		}
		if !slices.Contains([]string{"198.51.100.80", "198.51.100.81", "2001:db8:f::80", "2001:db8:f::81"},
			dst.String()) {
			t.Errorf("let in for %s", dst)
		}
		if src == vip || src == vip6 || src == realserver || src == realserver6 || src.IsMulticast() ||
			src.IsLoopback() || src.IsUnspecified() || src.Is4In6() ||
			src.Is6() && src.IsLinkLocalUnicast() {
			t.Errorf("let in a packet of %s", src)
		}
		if from != director && from != director6 && !netip.MustParsePrefix("10.9.0.0/16").Contains(from) &&
			!netip.MustParsePrefix("2001:db8:9::/48").Contains(from) {
			t.Errorf("let in from %s", from)
		}
	})
}

// changing is a Source that puts another policy in force before each batch.
type changing struct {
	script
	policies []*Policy
	at       *atomic.Pointer[Policy]
}

func (c *changing) ReadBatch(bufs []packet.Buf) (int, error) {
	if len(c.policies) == 0 {
		return 0, os.ErrClosed
	}
	c.at.Store(c.policies[0])
	c.policies = c.policies[1:]
	in := wrap(encap.KindIPIP, director, ip(client, vip, 6, make([]byte, 20)))
	for i := range 2 {
		bufs[i].SetLen(copy(bufs[i].Room(), in))
	}
	return 2, nil
}

// TestPolicyInForce: the policy in force at a batch's arrival applies to all of the batch.
func TestPolicyInForce(t *testing.T) {
	other := NewPolicy(Rules{Directors: []netip.Prefix{netip.PrefixFrom(client, 32)}, VIPs: []netip.Addr{vip},
		Decapsulators: []encap.Decapsulator{{Kind: encap.KindIPIP}}})
	c := changing{policies: []*Policy{policy(), other, policy()}, at: inForce(other)}
	w := NewWorker(&c, &c, c.at, true)
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var got stats.Tally
	w.Read(&got)
	if len(c.out) != 4 || got.Drops[drop.NotDirector] != 2 {
		t.Errorf("%d packets let in, counted %+v", len(c.out), got)
	}
}

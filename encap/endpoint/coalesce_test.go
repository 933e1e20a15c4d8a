package endpoint

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// segment is what the tests make TCP packets of.
type segment struct {
	port    uint16
	seq     uint32
	n       int
	flags   byte
	options int
	tos     byte
	window  uint16
	broken  bool
	six     bool
	label   byte // of IPv6
	more    bool // four bytes of IP options, or an extension header of eight
	bits    byte // the reserved ones behind the TCP header's length
}

// headers is the length of the IP and TCP header.
func (s segment) headers() int {
	return s.ip() + 20 + s.options
}

// ip is the length of the IP header, in bytes.
func (s segment) ip() int {
	switch {
	case s.six && s.more:
		return packet.IPv6HeaderLen + 8
	case s.six:
		return packet.IPv6HeaderLen
	case s.more:
		return packet.IPv4HeaderLen + 4
	}
	return packet.IPv4HeaderLen
}

func (s segment) bytes() []byte {
	header := 20 + s.options
	b := make([]byte, s.headers()+s.n)
	t := b[s.headers()-header:]
	binary.BigEndian.PutUint16(t, s.port)
	binary.BigEndian.PutUint16(t[2:], 80)
	binary.BigEndian.PutUint32(t[4:], s.seq)
	t[12], t[13] = byte(header/4)<<4|s.bits, s.flags
	binary.BigEndian.PutUint16(t[14:], s.window)
	for i := range s.n {
		t[header+i] = byte(s.seq + uint32(i))
	}
	if s.six {
		packet.IPv6(b).Encode(packet.IPv6Fields{
			TrafficClass: s.tos, TotalLen: len(b), HopLimit: 63, NextHeader: packet.ProtoTCP, Src: client6.As16(),
			Dst: vip6.As16(),
		})
		b[3] = s.label
	} else {
		packet.IPv4(b).Encode(packet.IPv4Fields{
			TOS: s.tos, TotalLen: len(b), TTL: 63, Protocol: packet.ProtoTCP, Src: client.As4(), Dst: vip.As4(),
		})
	}
	switch {
	case s.more && s.six:
		b[6], b[40], b[42], b[43] = 60, packet.ProtoTCP, 1, 4 // destination options, padding
	case s.more:
		b[0], b[20], b[21], b[22], b[23] = 0x46, 1, 1, 1, 1 // padding
	}
	refinish(b, s.ip())
	if s.broken {
		t[len(t)-1]++
	}
	return b
}

// refinish makes the checksums of the TCP packet b right, whose IP header has ip bytes.
func refinish(b []byte, ip int) []byte {
	if b[0]>>4 == 4 {
		packet.IPv4(b).SetChecksum()
	}
	t := b[ip:]
	t[16], t[17] = 0, 0
	packet.PutChecksum(t[16:], packet.Sum(t, packet.PseudoSum(b, packet.ProtoTCP, len(t))), false)
	return b
}

// tcpIn is what the policy finds of the whole TCP packet p.
func tcpIn(p []byte) inside { return inside{offset: ipHeaderLen(p), proto: packet.ProtoTCP} }

// in is what the policy finds of the packet.
func (s segment) in() inside { return inside{offset: s.ip(), proto: packet.ProtoTCP} }

// coalesce runs segments through a worker's steps and returns what would be written, each in one piece.
func coalesce(segments ...segment) []packet.Buf {
	bufs := packet.NewBufs(len(segments))
	var c coalescer
	var at []*packet.Buf
	for i, s := range segments {
		b := &bufs[i]
		b.SetLen(copy(b.Room(), s.bytes()))
		offloaded(b, s.in(), 1440)
		if !c.add(b, s.in()) {
			at = append(at, b)
		}
	}
	c.finish()
	out := packet.NewBufs(len(at))
	for i, b := range at {
		out[i].SetLen(copy(out[i].Room(), whole(b)))
		out[i].Offload = b.Offload
	}
	return out
}

func TestCoalesce(t *testing.T) {
	const ack, psh, fin, syn = packet.FlagACK, packet.FlagPSH, packet.FlagFIN, packet.FlagSYN
	s := segment{port: 1, n: 1000, flags: ack, window: 9, options: 12}
	for _, s.six = range []bool{false, true} {
		next := func(k int, edit func(*segment)) segment {
			c := s
			c.seq += uint32(1000 * k)
			if edit != nil {
				edit(&c)
			}
			return c
		}
		for name, c := range map[string]struct {
			in   []segment
			want []int // payload of each packet that comes out
		}{
			"one":   {[]segment{s}, []int{1000}},
			"three": {[]segment{s, next(1, nil), next(2, nil)}, []int{3000}},
			"short last": {[]segment{s, next(1, func(s *segment) { s.n = 7 }),
				next(1, func(s *segment) { s.seq += 7 })}, []int{1007, 1000}},
			"longer second": {[]segment{s, next(1, func(s *segment) { s.n = 1001 })}, []int{1000, 1001}},
			"push ends": {[]segment{s, next(1, func(s *segment) { s.flags |= psh }), next(2, nil)},
				[]int{2000, 1000}},
			"push first": {[]segment{next(0, func(s *segment) { s.flags |= psh }), next(1, nil)},
				[]int{1000, 1000}},
			"fin ends":      {[]segment{s, next(1, func(s *segment) { s.flags |= fin })}, []int{2000}},
			"syn":           {[]segment{s, next(1, func(s *segment) { s.flags |= syn })}, []int{1000, 1000}},
			"gap":           {[]segment{s, next(2, nil)}, []int{1000, 1000}},
			"again":         {[]segment{s, s}, []int{1000, 1000}},
			"other window":  {[]segment{s, next(1, func(s *segment) { s.window++ })}, []int{1000, 1000}},
			"other TOS":     {[]segment{s, next(1, func(s *segment) { s.tos = 3 })}, []int{1000, 1000}},
			"other header":  {[]segment{s, next(1, func(s *segment) { s.options = 0 })}, []int{1000, 1000}},
			"broken second": {[]segment{s, next(1, func(s *segment) { s.broken = true })}, []int{1000, 1000}},
			"broken first": {[]segment{next(0, func(s *segment) { s.broken = true }), next(1, nil)},
				[]int{1000, 1000}},
			"pure ACK between": {[]segment{s, next(1, func(s *segment) { s.n = 0 }), next(1, nil)},
				[]int{1000, 0, 1000}},
			"reserved bits": {[]segment{s, next(1, func(s *segment) { s.bits = 1 })}, []int{1000, 1000}},
			"IP options": {[]segment{s, next(1, func(s *segment) { s.more = true }), next(1, nil)},
				[]int{1000, 1000, 1000}},
			"with options": {[]segment{next(0, func(s *segment) { s.more = true }),
				next(1, func(s *segment) { s.more = true })}, []int{1000, 1000}},
			"other family": {[]segment{s, next(1, func(s *segment) { s.six = !s.six }), next(1, nil)},
				[]int{2000, 1000}},
			"two flows": {[]segment{s, next(0, func(s *segment) { s.port = 2 }), next(1, nil),
				next(1, func(s *segment) { s.port = 2 })}, []int{2000, 2000}},
		} {
			var got []int
			for _, b := range coalesce(c.in...) {
				var info packet.Info
				if d := info.Parse(b.Bytes()); d != drop.Accept {
					t.Fatal(d)
				}
				got = append(got, info.Len-info.Offset-int(b.Bytes()[info.Offset+12]>>4)*4)
			}
			if len(got) != len(c.want) {
				t.Errorf("%s: %v, want %v", name, got, c.want)
				continue
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("%s: %v, want %v", name, got, c.want)
				}
			}
		}
	}
}

// TestCoalesceFlowLabel: a label is part of what packets have in common (RFC 6437).
func TestCoalesceFlowLabel(t *testing.T) {
	s := segment{port: 1, n: 100, flags: packet.FlagACK, six: true, label: 1}
	next := s
	next.seq, next.label = 100, 2
	if out := coalesce(s, next); len(out) != 2 {
		t.Errorf("%d packets", len(out))
	}
}

// TestCoalesceBounds: a GSO packet has no more pieces than a sink takes, and no more bytes than a packet has.
func TestCoalesceBounds(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, size := range []int{1, 100, 8000} {
			var in []segment
			for i := range 200 {
				in = append(in, segment{port: 1, n: size, seq: uint32(i * size), flags: packet.FlagACK, six: six})
			}
			total := 0
			for _, b := range coalesce(in...) {
				segments := (b.Len() - in[0].headers()) / size
				if segments > packet.MaxChain || b.Len() > packet.MaxLen {
					t.Errorf("%d segments, %d bytes", segments, b.Len())
				}
				total += segments
			}
			if total != len(in) {
				t.Errorf("%d segments, want %d", total, len(in))
			}
		}
	}
}

// TestCoalesceThenSplit: whatever is merged, splitting it again gives what came in, but for IDs, the flags' place and
// the checksums of broken packets, which stay broken. Each flow keeps its order.
func TestCoalesceThenSplit(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for round := range 2000 {
		six := round%2 == 1
		var in []segment
		seqs := map[uint16]uint32{}
		for range 1 + rnd.IntN(64) {
			s := segment{six: six, port: uint16(rnd.IntN(12)), n: 100, flags: packet.FlagACK, window: 5,
				broken: rnd.IntN(30) == 0}
			switch rnd.IntN(12) {
			case 0:
				s.n = rnd.IntN(150)
			case 1:
				s.flags |= packet.FlagPSH
			case 2:
				s.window = 6
			case 3:
				seqs[s.port] += 3
			case 4:
				s.options = 12
			}
			s.seq = seqs[s.port]
			seqs[s.port] += uint32(s.n)
			in = append(in, s)
		}
		want, got := map[uint16][]byte{}, map[uint16][]byte{}
		count := 0
		for _, s := range in {
			want[s.port] = append(want[s.port], s.bytes()[s.headers():]...)
		}
		for _, b := range coalesce(in...) {
			p := b.Bytes()
			ip := ipHeaderLen(p)
			port := binary.BigEndian.Uint16(p[ip:])
			if b.Offload.GSO == packet.GSONone {
				count++
				got[port] = append(got[port], p[ip+int(p[ip+12]>>4)*4:]...)
				continue
			}
			var info packet.Info
			if d := info.Parse(b.Bytes()); d != drop.Accept {
				t.Fatal(d)
			}
			cut, d := packet.NewCut(&b, &info, packet.MaxLen)
			if d != drop.Accept {
				t.Fatal(d)
			}
			segs, _ := packet.Split(nil, &b, &info, cut, make([]byte, packet.PieceRoom))
			for _, s := range segs {
				count++
				p := append(bytes.Clone(s.Head), s.Body...)
				if info.Parse(p) != drop.Accept || info.Len != len(p) || !valid(p, ip) {
					t.Fatal("a merged segment has a wrong checksum")
				}
				got[port] = append(got[port], s.Body...)
			}
		}
		if count != len(in) {
			t.Fatalf("%d segments came out of %d", count, len(in))
		}
		for port := range want {
			if !bytes.Equal(got[port], want[port]) {
				t.Fatalf("flow %d is not the same", port)
			}
		}
	}
}

func TestOffloaded(t *testing.T) {
	for _, six := range []bool{false, true} {
		ip := uint16(ipHeaderLen(segment{six: six}.bytes()))
		unfinished := func(s segment) packet.Offload {
			s.six = six
			b := s.bytes()
			binary.BigEndian.PutUint16(b[ip+16:], packet.Fold(packet.PseudoSum(b, packet.ProtoTCP, len(b)-int(ip))))
			return offloadOf(b)
		}
		if o := unfinished(segment{n: 14280, options: 12,
			flags: packet.FlagACK}); o != (packet.Offload{GSO: packet.GSOTCP, Size: 1428, Partial: true,
			CsumStart: ip, CsumOffset: 16}) {
			t.Errorf("GSO packet: %+v", o)
		}
		if o := unfinished(segment{n: 1428, options: 12, flags: packet.FlagACK}); o != (packet.Offload{Partial: true,
			CsumStart: ip, CsumOffset: 16}) {
			t.Errorf("one segment: %+v", o)
		}
		if o := offloadOf(segment{n: 14280, six: six}.bytes()); o != (packet.Offload{}) {
			t.Errorf("a finished packet: %+v", o)
		}
		if o := offloadOf(segment{n: 1000, broken: true, six: six}.bytes()); o != (packet.Offload{}) {
			t.Errorf("a broken packet: %+v", o)
		}
	}
}

// TestGatheredDatagramsAreRefused: what the kernel has merged from datagrams of unknown sizes is no
// datagram.
func TestGatheredDatagramsAreRefused(t *testing.T) {
	for _, c := range []struct {
		size     int // with all headers
		finished bool
		mss      int
		want     drop.Reason
	}{{1480, false, 1440, drop.Accept}, {1480, false, 536, drop.Accept}, {2428, false, 1440, drop.Gathered},
		{2428, true, 1440, drop.Accept},
		{8976, false, 8932, drop.Accept}, {9100, false, 8932, drop.Gathered},
		{64000, false, 1440, drop.Gathered}} {
		b := &packet.NewBufs(1)[0]
		b.SetLen(c.size)
		p := packet.IPv4(b.Bytes())
		packet.IPv4(p).Encode(packet.IPv4Fields{
			TotalLen: c.size, TTL: 64, Protocol: packet.ProtoUDP, Src: [4]byte{192, 0, 2, 1},
			Dst: [4]byte{198, 51, 100, 80},
		})
		u := p.Payload()
		binary.BigEndian.PutUint16(u[2:], 443)
		sum := p.PseudoSum(len(u))
		binary.BigEndian.PutUint16(u[6:], packet.Fold(sum))
		if c.finished {
			u[6], u[7] = 0, 0
			packet.PutChecksum(u[6:], packet.Sum(u, sum), true)
		}
		if d := offloaded(b, inside{offset: 20, proto: packet.ProtoUDP}, c.mss); d != c.want {
			t.Errorf("%+v: %v", c, d)
		}
	}
}

func offloadOf(p []byte) packet.Offload {
	b := &packet.NewBufs(1)[0]
	b.SetLen(copy(b.Room(), p))
	offloaded(b, tcpIn(p), 1440)
	return b.Offload
}

// FuzzCoalesce: two TCP packets of any bytes, one behind the other: what comes out is as long as what went in, less the
// headers that were merged, and is whole packets.
func FuzzCoalesce(f *testing.F) {
	for _, six := range []bool{false, true} {
		s := segment{port: 1, n: 100, flags: packet.FlagACK, options: 12, six: six}
		a := s.bytes()
		s.seq = 100
		f.Add(a, s.bytes(), six)
	}
	bufs := packet.NewBufs(2)
	f.Fuzz(func(t *testing.T, x, y []byte, six bool) {
		var c coalescer
		var out []*packet.Buf
		in := 0
		for i, b := range [][]byte{x, y} {
			if len(b) < 60 || len(b) > 2000 {
				return
			}
			p := &bufs[i]
			p.SetLen(copy(p.Room(), b))
			h := p.Bytes()
			if six {
				h[0], h[6] = 0x60|h[0]&15, packet.ProtoTCP
				packet.IPv6(h).SetPayloadLen(len(h) - packet.IPv6HeaderLen)
			} else {
				h[0], h[6], h[7], h[9] = 0x45, 0x40, 0, packet.ProtoTCP
				packet.IPv4(h).SetTotalLen(len(h))
			}
			refinish(h, ipHeaderLen(h))
			in += len(b)
			offloaded(p, tcpIn(h), 1440)
			if !c.add(p, tcpIn(h)) {
				out = append(out, p)
			}
		}
		c.finish()
		for _, p := range out {
			h := whole(p)
			var info packet.Info
			if d := info.Parse(h); (d != drop.Accept && d != drop.BadHeader) || d == drop.Accept &&
				info.Len != len(h) {
				t.Fatalf("no packet: %v: %x", d, h)
			}
			in -= len(h)
		}
		if merged := len(out) == 1; merged != (in > 0) || in > 100 {
			t.Fatalf("%d packets, %d bytes less than before", len(out), in)
		}
	})
}

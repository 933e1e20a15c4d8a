package endpoint

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"vstun/encap/packet"
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
}

func (s segment) bytes() packet.IPv4 {
	header := 20 + s.options
	b := make(packet.IPv4, 20+header+s.n)
	t := b[20:]
	binary.BigEndian.PutUint16(t, s.port)
	binary.BigEndian.PutUint16(t[2:], 80)
	binary.BigEndian.PutUint32(t[4:], s.seq)
	t[12], t[13] = byte(header/4)<<4, s.flags
	binary.BigEndian.PutUint16(t[14:], s.window)
	for i := range s.n {
		t[header+i] = byte(s.seq + uint32(i))
	}
	packet.PutIPv4(b, s.tos, len(b), 63, packet.ProtoTCP, client.As4(), vip.As4())
	packet.PutChecksum(t[16:], packet.Sum(t, b.PseudoSum(len(t))), false)
	if s.broken {
		t[len(t)-1]++
	}
	return b
}

// coalesce runs segments through a worker's steps and returns what would be written.
func coalesce(segments ...segment) []packet.Buf {
	bufs := packet.NewBufs(len(segments))
	var c coalescer
	var out []packet.Buf
	var at []*packet.Buf
	for i, s := range segments {
		b := &bufs[i]
		b.SetLen(copy(b.Room(), s.bytes()))
		in := packet.IPv4(b.Bytes())
		offloaded(b, in, in.Payload(), 1440)
		if !c.add(b, in, in.Payload()) {
			at = append(at, b)
		}
	}
	c.finish()
	for _, b := range at {
		out = append(out, *b)
	}
	return out
}

func TestCoalesce(t *testing.T) {
	const ack, psh, fin, syn = packet.FlagACK, packet.FlagPSH, packet.FlagFIN, packet.FlagSYN
	s := segment{port: 1, n: 1000, flags: ack, window: 9, options: 12}
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
		"one":              {[]segment{s}, []int{1000}},
		"three":            {[]segment{s, next(1, nil), next(2, nil)}, []int{3000}},
		"short last":       {[]segment{s, next(1, func(s *segment) { s.n = 7 }), next(1, func(s *segment) { s.seq += 7 })}, []int{1007, 1000}},
		"longer second":    {[]segment{s, next(1, func(s *segment) { s.n = 1001 })}, []int{1000, 1001}},
		"push ends":        {[]segment{s, next(1, func(s *segment) { s.flags |= psh }), next(2, nil)}, []int{2000, 1000}},
		"push first":       {[]segment{next(0, func(s *segment) { s.flags |= psh }), next(1, nil)}, []int{1000, 1000}},
		"fin ends":         {[]segment{s, next(1, func(s *segment) { s.flags |= fin })}, []int{2000}},
		"syn":              {[]segment{s, next(1, func(s *segment) { s.flags |= syn })}, []int{1000, 1000}},
		"gap":              {[]segment{s, next(2, nil)}, []int{1000, 1000}},
		"again":            {[]segment{s, s}, []int{1000, 1000}},
		"other window":     {[]segment{s, next(1, func(s *segment) { s.window++ })}, []int{1000, 1000}},
		"other TOS":        {[]segment{s, next(1, func(s *segment) { s.tos = 3 })}, []int{1000, 1000}},
		"other header":     {[]segment{s, next(1, func(s *segment) { s.options = 0 })}, []int{1000, 1000}},
		"broken second":    {[]segment{s, next(1, func(s *segment) { s.broken = true })}, []int{1000, 1000}},
		"broken first":     {[]segment{next(0, func(s *segment) { s.broken = true }), next(1, nil)}, []int{1000, 1000}},
		"pure ACK between": {[]segment{s, next(1, func(s *segment) { s.n = 0 }), next(1, nil)}, []int{1000, 0, 1000}},
		"two flows":        {[]segment{s, next(0, func(s *segment) { s.port = 2 }), next(1, nil), next(1, func(s *segment) { s.port = 2 })}, []int{2000, 2000}},
	} {
		var got []int
		for _, b := range coalesce(c.in...) {
			in := packet.IPv4(b.Bytes())
			got = append(got, len(in)-20-int(in[32]>>4)*4)
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

// TestCoalesceThenSplit: whatever is merged, splitting it again gives what came in, but for IDs, the flags' place and the checksums of broken
// packets, which stay broken. Each flow keeps its order.
func TestCoalesceThenSplit(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		var in []segment
		seqs := map[uint16]uint32{}
		for range 1 + rnd.IntN(64) {
			s := segment{port: uint16(rnd.IntN(12)), n: 100, flags: packet.FlagACK, window: 5, broken: rnd.IntN(30) == 0}
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
			b := s.bytes()
			want[s.port] = append(want[s.port], b[20+int(b[32]>>4)*4:]...)
		}
		for _, b := range coalesce(in...) {
			port := binary.BigEndian.Uint16(b.Bytes()[20:])
			if b.Offload.GSO == packet.GSONone {
				count++
				p := packet.IPv4(b.Bytes())
				got[port] = append(got[port], p[20+int(p[32]>>4)*4:]...)
				continue
			}
			var info packet.Info
			if d := info.Parse(b.Bytes()); d != packet.Accept {
				t.Fatal(d)
			}
			headers, payload, d := packet.SplitSize(&b, &info, packet.MaxLen)
			if d != packet.Accept {
				t.Fatal(d)
			}
			segs, _ := packet.Split(nil, &b, &info, 0, headers, payload, make([]byte, packet.PieceRoom))
			for _, s := range segs {
				count++
				p := packet.IPv4(append(bytes.Clone(s.Head), s.Body...))
				if p.Check() != packet.Accept || !valid(p, p.Payload()) {
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
	unfinished := func(s segment) packet.Buf {
		b := s.bytes()
		binary.BigEndian.PutUint16(b[36:], packet.Fold(b.PseudoSum(len(b)-20)))
		return coalesceOne(b)
	}
	if o := unfinished(segment{n: 14280, options: 12, flags: packet.FlagACK}).Offload; o != (packet.Offload{GSO: packet.GSOTCP, Size: 1428, Partial: true,
		CsumStart: 20, CsumOffset: 16}) {
		t.Errorf("super-packet: %+v", o)
	}
	if o := unfinished(segment{n: 1428, options: 12, flags: packet.FlagACK}).Offload; o != (packet.Offload{Partial: true, CsumStart: 20, CsumOffset: 16}) {
		t.Errorf("one segment: %+v", o)
	}
	if o := coalesceOne(segment{n: 14280}.bytes()).Offload; o != (packet.Offload{}) {
		t.Errorf("a finished packet: %+v", o)
	}
	if o := coalesceOne(segment{n: 1000, broken: true}.bytes()).Offload; o != (packet.Offload{}) {
		t.Errorf("a broken packet: %+v", o)
	}
}

func coalesceOne(p packet.IPv4) packet.Buf {
	b := &packet.NewBufs(1)[0]
	b.SetLen(copy(b.Room(), p))
	offloaded(b, p, p.Payload(), 1440)
	return *b
}

// FuzzCoalesce: two TCP packets of any bytes, one behind the other: what comes out is as long as what went in, less the headers that were
// merged, and is whole packets.
func FuzzCoalesce(f *testing.F) {
	s := segment{port: 1, n: 100, flags: packet.FlagACK, options: 12}
	a := s.bytes()
	s.seq = 100
	f.Add([]byte(a), []byte(s.bytes()))
	bufs := packet.NewBufs(2)
	f.Fuzz(func(t *testing.T, x, y []byte) {
		var c coalescer
		var out []*packet.Buf
		in := 0
		for i, b := range [][]byte{x, y} {
			if len(b) < 40 || len(b) > 2000 {
				return
			}
			p := &bufs[i]
			p.SetLen(copy(p.Room(), b))
			h := packet.IPv4(p.Bytes())
			h[0], h[6], h[7], h[9] = 0x45, 0x40, 0, packet.ProtoTCP
			h.SetTotalLen(len(h))
			h.SetChecksum()
			tcp := h.Payload()
			tcp[16], tcp[17] = 0, 0
			packet.PutChecksum(tcp[16:], packet.Sum(tcp, h.PseudoSum(len(tcp))), false)
			in += len(b)
			offloaded(p, h, tcp, 1440)
			if !c.add(p, h, tcp) {
				out = append(out, p)
			}
		}
		c.finish()
		for _, p := range out {
			h := packet.IPv4(p.Bytes())
			if h.Check() != packet.Accept || h.TotalLen() != len(h) {
				t.Fatalf("no packet: %x", h)
			}
			in -= len(h)
		}
		if merged := len(out) == 1; merged != (in > 0) || in > 80 {
			t.Fatalf("%d packets, %d bytes less than before", len(out), in)
		}
	})
}

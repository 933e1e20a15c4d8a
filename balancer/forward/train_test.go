package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
)

// cars is a SegmentSink that minds what it is promised, and keeps what it gets.
type cars struct {
	t     testing.TB
	limit int // packets of one call
	fail  func(seg packet.Segment) error
	out   [][]byte
	calls int
}

func (c *cars) Ports() []uint16 { return []uint16{1000, 1001, 1002} }

func (c *cars) Send(segs []packet.Segment) (int, error) {
	c.calls++
	if c.fail != nil {
		if err := c.fail(segs[0]); err != nil {
			return 0, err
		}
	}
	segs = segs[:min(len(segs), c.limit)]
	for i, s := range segs {
		if !inUDP(s) || len(s.Body) == 0 && !mayHaveDF(s) || !bytes.Equal(ends(s), ends(segs[0])) ||
			!couples(segs[0], s) ||
			s.Len() > segs[0].Len() || s.Len() < segs[0].Len() && i < len(segs)-1 {
			c.t.Errorf("packet %d of %d, %x, does not go with %x", i, len(segs), s.Head, segs[0].Head)
		}
		c.out = append(c.out, append(bytes.Clone(s.Head), s.Body...))
	}
	return len(segs), nil
}

// tunnelOverUDP is one over either family, to a realserver known by the last byte of its address.
func tunnelOverUDP(t testing.TB, six bool, last byte) *encap.Tunnel {
	t.Helper()
	c := encap.Config{Kind: encap.KindGUE, Source: source, Destination: netip.AddrFrom4([4]byte{10, 0, 11, last}),
		Port: 6080}
	if six {
		c.Source, c.Destination = netip.MustParseAddr("fd00::1"), netip.MustParseAddr(fmt.Sprintf("fd00::%x", 16+last))
	}
	tunnel, err := encap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return &tunnel
}

// inUDPTunnel is a packet in such a tunnel; number tells it from others.
func inUDPTunnel(t testing.TB, six bool, last byte, port uint16, size int, tos byte, df bool, number uint32) []byte {
	t.Helper()
	p := udp(53, df, size)
	binary.BigEndian.PutUint32(p[28:], number)
	p.SetTOS(tos)
	p.SetChecksum()
	bufs := packet.NewBufs(1)
	bufs[0].SetLen(copy(bufs[0].Room(), p))
	tunnelOverUDP(t, six, last).Wrap(&bufs[0], port)
	return bytes.Clone(bufs[0].Bytes())
}

// number is what inUDPTunnel was given.
func number(b []byte) uint32 {
	switch {
	case b[0]>>4 == 6:
		b = b[packet.IPv6HeaderLen+8+4:]
	case b[9] == packet.ProtoUDP:
		b = b[packet.IPv4HeaderLen+8+4:]
	}
	return binary.BigEndian.Uint32(b[28:])
}

// TestTrains sends random batches: each packet goes out once, each flow's in their order, and as few calls as a look at
// the flows allows.
func TestTrains(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		raw, sink := &script{}, &cars{t: t, limit: 1 + rnd.IntN(sendBatch)}
		if round%5 == 0 {
			sink.fail = func(s packet.Segment) error {
				if number(s.Head)%3 == 0 {
					return unix.EIO
				}
				return nil
			}
		}
		var tally packet.Tally
		var o output
		o.init(raw, sink, &tally, NewShared())
		want := map[string][]uint32{}
		n := 1 + rnd.IntN(sendBatch)
		for i := range n {
			b := inUDPTunnel(t, rnd.IntN(3) == 0, byte(rnd.IntN(3)), sink.Ports()[rnd.IntN(3)],
				4+600*rnd.IntN(2)+rnd.IntN(3)*4, byte(rnd.IntN(8)/7), rnd.IntN(30) > 0, uint32(i))
			if rnd.IntN(20) == 0 {
				b = udp(53, true, 4) // no tunnel's
				binary.BigEndian.PutUint32(b[28:], uint32(i))
				b[9] = packet.ProtoIPIP
			}
			key := string(ends(packet.Segment{Head: b}))
			want[key] = append(want[key], number(b))
			o.segs = append(o.segs, packet.Segment{Head: b})
		}
		o.inUDP = n
		o.flush()
		got := map[string][]uint32{}
		for _, out := range [][][]byte{sink.out, raw.out} {
			for _, b := range out {
				key := string(ends(packet.Segment{Head: b}))
				got[key] = append(got[key], number(b))
			}
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Fatalf("round %d: out came %v, want %v", round, got, want)
		}
		if tally.OutPackets != uint64(n) {
			t.Fatalf("round %d: %d counted of %d", round, tally.OutPackets, n)
		}
	}
}

// TestTrainsOfAFlow: what one flow sends goes by one call for equal packets, a shorter one at the end of it.
func TestTrainsOfAFlow(t *testing.T) {
	for name, c := range map[string]struct {
		sizes      []int
		calls, raw int
	}{
		"equal":            {slices.Repeat([]int{100}, sendBatch), 1, 0},
		"the last shorter": {[]int{100, 100, 60}, 1, 0},
		"then longer":      {[]int{100, 60, 100}, 2, 0},
		"falling":          {[]int{100, 90, 80, 70}, 2, 0},
		"rising":           {[]int{70, 80, 90}, 3, 0},
		"one":              {[]int{100}, 0, 1},
	} {
		raw, sink := &script{}, &cars{t: t, limit: sendBatch}
		var tally packet.Tally
		var o output
		o.init(raw, sink, &tally, NewShared())
		for i, size := range c.sizes {
			o.addWrapped(true, inUDPTunnel(t, false, 2, 1000, size, 0, true, uint32(i)))
		}
		o.flush()
		if sink.calls != c.calls || len(raw.out) != c.raw || len(sink.out)+len(raw.out) != len(c.sizes) {
			t.Errorf("%s: %d calls and %d raw packets, want %d and %d", name, sink.calls, len(raw.out), c.calls, c.raw)
		}
	}
}

// TestTrainsNeverTaken: a kernel that can send no train is not asked for ever, and each packet goes out by itself.
func TestTrainsNeverTaken(t *testing.T) {
	raw := &script{}
	sink := &cars{t: t, limit: sendBatch, fail: func(packet.Segment) error { return unix.EIO }}
	var tally packet.Tally
	var o output
	o.init(raw, sink, &tally, NewShared())
	const batches = 2 * refusals
	for range batches {
		o.addWrapped(true, inUDPTunnel(t, false, 2, 1000, 100, 0, true, 1))
		o.addWrapped(true, inUDPTunnel(t, false, 2, 1000, 100, 0, true, 2))
		for _, port := range []uint16{1001, 1001, 1002, 1002} {
			o.addWrapped(true, inUDPTunnel(t, false, 2, port, 100, 0, true, 3))
		}
		o.flush()
	}
	if sink.calls != refusals || len(raw.out) != 6*batches {
		t.Errorf("%d calls, want %d; %d packets, want %d", sink.calls, refusals, len(raw.out), 6*batches)
	}
}

// TestTrainsTakenAgain: what stops trains for a time, however long, like a route that is away or a path that has
// shrunk, does not end them.
func TestTrainsTakenAgain(t *testing.T) {
	for _, why := range []unix.Errno{unix.ENETUNREACH, unix.EMSGSIZE, unix.EINVAL, unix.EPERM, unix.ENOBUFS} {
		raw := &script{}
		sink := &cars{t: t, limit: sendBatch, fail: func(packet.Segment) error { return why }}
		var tally packet.Tally
		var o output
		o.init(raw, sink, &tally, NewShared())
		p := inUDPTunnel(t, false, 2, 1000, 100, 0, true, 1)
		send := func() {
			for range 3 {
				o.addWrapped(true, p)
			}
			o.flush()
		}
		for range 2 * refusals {
			send()
		}
		sink.fail = nil
		send()
		if len(sink.out) != 3 || len(raw.out) != 3*2*refusals {
			t.Errorf("%v: %d packets in trains, want 3; %d by themselves, want %d", why, len(sink.out), len(raw.out),
				3*2*refusals)
		}
	}
}

// BenchmarkTrains is what finding the trains costs, without the system calls: of one flow, and where no packet goes
// with another.
func BenchmarkTrains(b *testing.B) {
	for name, ports := range map[string]int{"one flow": 1, "16 ports": 16, "64 ports": 64} {
		b.Run(name, func(b *testing.B) {
			var segs [sendBatch]packet.Segment
			for i := range segs {
				segs[i].Head = inUDPTunnel(b, false, 2, uint16(1000+i%ports), 32, 0, true, 0)
			}
			var tr trains
			for b.Loop() {
				tr.sort(segs[:])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sendBatch, "ns/packet")
		})
	}
}

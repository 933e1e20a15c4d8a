package egress

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
	"vstun/encap/packet/stats"
)

// wires is a port that keeps its packets.
type wires struct{ out [][]byte }

func (w *wires) Send(out []Outgoing) (int, error) {
	for i, o := range out {
		w.out = append(w.out, append(bytes.Clone(o.Head), o.Body...))
		if i == 9 {
			return 10, nil // a short count, as sendmmsg may give
		}
	}
	return len(out), nil
}

// together is a port of UDP sockets that checks Port's conditions, and keeps its packets.
type together struct {
	t     testing.TB
	limit int // packets of one call
	fail  func(o *Outgoing) error
	out   [][]byte
	calls int
}

var ports = []uint16{1000, 1001, 1002}

func (c *together) Send(out []Outgoing) (int, error) {
	c.calls++
	if c.fail != nil {
		if err := c.fail(&out[0]); err != nil {
			return 0, err
		}
	}
	out = out[:min(len(out), c.limit)]
	for i := range out {
		o, first := &out[i], &out[0]
		if o.Kind != UDP || len(o.Body) == 0 && !mayHaveDF(o) || !o.Hop.sameTuple(&first.Hop) || !canBatch(first, o) ||
			o.Len() > first.Len() || o.Len() < first.Len() && i < len(out)-1 {
			c.t.Errorf("packet %d of %d, %x, does not go with %x", i, len(out), o.Head, first.Head)
		}
		c.out = append(c.out, append(bytes.Clone(o.Head), o.Body...))
	}
	return len(out), nil
}

// output is one that sends by raw and udp, and what it counts.
func output(raw, udp Port) (*Output, *stats.Tally) {
	o, tally := &Output{}, &stats.Tally{}
	o.Init(Config{Raw: raw, UDP: udp, UDPPorts: ports, IDs: NewIDs(1), Tally: tally, TooBig: func() {}})
	return o, tally
}

// addTo is o.Add for what inTunnel returns.
func addTo(o *Output) func(b []byte, h Hop) { return func(b []byte, h Hop) { o.Add(b, &h) } }

// inTunnel is a datagram in a GUE tunnel to a realserver known by the last byte of its address; number tells it from
// others.
func inTunnel(t testing.TB, six bool, last byte, port uint16, size int, tos byte, df bool,
	number uint32) ([]byte, Hop) {
	t.Helper()
	c := encap.Config{Kind: encap.KindGUE, Source: netip.MustParseAddr("10.0.2.2"),
		Destination: netip.AddrFrom4([4]byte{10, 0, 11, last}), Port: 6080}
	if six {
		c.Source, c.Destination = netip.MustParseAddr("fd00::1"), netip.MustParseAddr(fmt.Sprintf("fd00::%x", 16+last))
	}
	tunnel, err := encap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	b := &packet.NewBufs(1)[0]
	p := datagram(size, tos, df, number)
	b.SetLen(copy(b.Room(), p))
	w := tunnel.Wrap(b, port)
	return bytes.Clone(b.Bytes()), Hop{To: &Peer{Src: c.Source, Dst: c.Destination, DstPort: c.Port}, SrcPort: port,
		Kind: UDP, Class: w.Class, TTL: w.TTL, DF: w.DF}
}

// datagram is a UDP packet with size bytes of payload.
func datagram(size int, tos byte, df bool, number uint32) packet.IPv4 {
	p := make(packet.IPv4, packet.IPv4HeaderLen+packet.UDPHeaderLen+size)
	p.Encode(packet.IPv4Fields{TOS: tos, TotalLen: len(p), TTL: 63, Protocol: packet.ProtoUDP,
		Src: [4]byte{192, 0, 2, 1}, Dst: [4]byte{198, 51, 100, 80}})
	p.SetDF(df)
	p.SetChecksum()
	binary.BigEndian.PutUint32(p[28:], number)
	return p
}

// number is what inTunnel or datagram was given.
func number(b []byte) uint32 {
	switch {
	case packet.Version(b) == 6:
		b = b[packet.IPv6HeaderLen+8+4:]
	case packet.IPv4(b).Dst() != netip.AddrFrom4([4]byte{198, 51, 100, 80}):
		b = b[packet.IPv4HeaderLen+8+4:]
	}
	return binary.BigEndian.Uint32(b[28:])
}

// tuple is addresses and ports of a UDP packet.
func tuple(b []byte) string {
	if packet.Version(b) == 6 {
		return string(b[8:44])
	}
	return string(b[12:24])
}

// TestBatches sends random batches: each packet goes out once, each flow's in their order, and as few calls as a look
// at the flows allows.
func TestBatches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		raw, sink := &wires{}, &together{t: t, limit: 1 + rnd.IntN(sendBatch)}
		if round%5 == 0 {
			sink.fail = func(o *Outgoing) error {
				if number(o.Head)%3 == 0 {
					return unix.EIO
				}
				return nil
			}
		}
		o, tally := output(raw, sink)
		want := map[string][]uint32{}
		n := 1 + rnd.IntN(sendBatch)
		for i := range n {
			b, h := inTunnel(t, rnd.IntN(3) == 0, byte(rnd.IntN(3)), ports[rnd.IntN(3)],
				4+600*rnd.IntN(2)+rnd.IntN(3)*4, byte(rnd.IntN(8)/7), rnd.IntN(30) > 0, uint32(i))
			if rnd.IntN(20) == 0 {
				p := datagram(4, 0, true, uint32(i)) // in no tunnel
				b, h = p, Hop{To: &Peer{Src: p.Src(), Dst: p.Dst()}}
			}
			want[tuple(b)] = append(want[tuple(b)], number(b))
			o.Add(b, &h)
		}
		o.Flush()
		got := map[string][]uint32{}
		for _, out := range [][][]byte{sink.out, raw.out} {
			for _, b := range out {
				got[tuple(b)] = append(got[tuple(b)], number(b))
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

// TestBatchesOfAFlow: what one flow sends goes by one call for equal packets, a shorter one at the end of it.
func TestBatchesOfAFlow(t *testing.T) {
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
		raw, sink := &wires{}, &together{t: t, limit: sendBatch}
		o, _ := output(raw, sink)
		for i, size := range c.sizes {
			addTo(o)(inTunnel(t, false, 2, 1000, size, 0, true, uint32(i)))
		}
		o.Flush()
		if sink.calls != c.calls || len(raw.out) != c.raw || len(sink.out)+len(raw.out) != len(c.sizes) {
			t.Errorf("%s: %d calls and %d raw packets, want %d and %d", name, sink.calls, len(raw.out), c.calls, c.raw)
		}
	}
}

// TestBatchesNeverTaken: an Output stops calling a kernel that cannot send packets together. Each packet is sent by
// itself.
func TestBatchesNeverTaken(t *testing.T) {
	raw := &wires{}
	sink := &together{t: t, limit: sendBatch, fail: func(*Outgoing) error { return unix.EIO }}
	o, _ := output(raw, sink)
	const batches = 2 * maxRefusals
	for range batches {
		addTo(o)(inTunnel(t, false, 2, 1000, 100, 0, true, 1))
		addTo(o)(inTunnel(t, false, 2, 1000, 100, 0, true, 2))
		for _, port := range []uint16{1001, 1001, 1002, 1002} {
			addTo(o)(inTunnel(t, false, 2, port, 100, 0, true, 3))
		}
		o.Flush()
	}
	if sink.calls != maxRefusals || len(raw.out) != 6*batches {
		t.Errorf("%d calls, want %d; %d packets, want %d", sink.calls, maxRefusals, len(raw.out), 6*batches)
	}
}

// TestBatchesTakenAgain: what stops batches for a time, however long, like a route that is away or a path that has
// shrunk, does not end them.
func TestBatchesTakenAgain(t *testing.T) {
	for _, why := range []unix.Errno{unix.ENETUNREACH, unix.EMSGSIZE, unix.EINVAL, unix.EPERM, unix.ENOBUFS} {
		raw := &wires{}
		sink := &together{t: t, limit: sendBatch, fail: func(*Outgoing) error { return why }}
		o, _ := output(raw, sink)
		p, h := inTunnel(t, false, 2, 1000, 100, 0, true, 1)
		send := func() {
			for range 3 {
				o.Add(p, &h)
			}
			o.Flush()
		}
		for range 2 * maxRefusals {
			send()
		}
		sink.fail = nil
		send()
		if len(sink.out) != 3 || len(raw.out) != 3*2*maxRefusals {
			t.Errorf("%v: %d packets together, want 3; %d by themselves, want %d", why, len(sink.out), len(raw.out),
				3*2*maxRefusals)
		}
	}
}

// BenchmarkGroup is what finding the groups costs, without the system calls: of one flow, and where no packet goes with
// another.
func BenchmarkGroup(b *testing.B) {
	for name, ports := range map[string]int{"one flow": 1, "16 ports": 16, "64 ports": 64} {
		b.Run(name, func(b *testing.B) {
			var out [sendBatch]Outgoing
			for i := range out {
				p, h := inTunnel(b, false, 2, uint16(1000+i%ports), 32, 0, true, 0)
				out[i] = Outgoing{Segment: packet.Segment{Head: p}, Hop: h}
				out[i].To = out[0].To // as a method's packets have it
			}
			var g gsoBatch
			for b.Loop() {
				g.group(out[:])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sendBatch, "ns/packet")
		})
	}
}

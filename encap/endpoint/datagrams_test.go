package endpoint

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// gro is a source of one GSO packet of UDP tunnel packets, as wire.Receiver makes it of datagrams that the kernel has
// merged.
type gro struct {
	payload  []byte
	size     int
	done     bool
	over6    bool
	stranger bool
	out      [][]byte
}

func (g *gro) ReadBatch(bufs []packet.Buf) (int, error) {
	if g.done {
		return 0, os.ErrClosed
	}
	g.done = true
	b := &bufs[0]
	b.SetLen(copy(b.Room(), g.payload))
	b.Offload = packet.Offload{GSO: packet.GSOUDP, Size: uint16(g.size)}
	from := director
	if g.stranger {
		from = client
	}
	if g.over6 {
		h := b.Prepend(48)
		packet.IPv6(h).Encode(packet.IPv6Fields{
			TotalLen: len(g.payload) + 48, NextHeader: packet.ProtoUDP, Src: director6.As16(),
		})
		clear(h[40:48])
		return 1, nil
	}
	h := b.Prepend(28)
	packet.IPv4(h).Encode(packet.IPv4Fields{TotalLen: len(g.payload) + 28, Protocol: packet.ProtoUDP, Src: from.As4()})
	clear(h[20:28])
	return 1, nil
}

func (g *gro) WriteBatch(bufs []*packet.Buf) (n, size int, err error) {
	for _, b := range bufs {
		g.out = append(g.out, whole(b))
		n, size = n+b.Pieces(), size+b.ChainLen()
	}
	return n, size, nil
}

// whole is a packet's pieces.
func whole(b *packet.Buf) (p []byte) {
	for ; b != nil; b = b.Next {
		p = append(p, b.Bytes()...)
	}
	return p
}

// gue is p behind a GUE header.
func gue(p []byte) []byte {
	proto := byte(packet.ProtoIPIP)
	if p[0]>>4 == 6 {
		proto = packet.ProtoIPv6
	}
	return append([]byte{0, proto, 0, 0}, p...)
}

func runGRO(t *testing.T, g *gro) stats.Tally {
	t.Helper()
	w := NewWorker(g, g, inForce(policy()), true)
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var got stats.Tally
	w.Read(&got)
	return got
}

// TestDatagrams: segments of one connection become one GSO packet again, in order, and each is counted.
func TestDatagrams(t *testing.T) {
	for _, c := range []struct{ over6, six bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		const n, size = 40, 1400
		g := gro{over6: c.over6}
		var want []byte
		for i := range n {
			s := segment{port: 7, seq: uint32(i * size), n: size, flags: packet.FlagACK, six: c.six}
			if i == n-1 {
				s.n = 100
			}
			d := gue(s.bytes())
			if i == 0 {
				g.size = len(d)
			}
			g.payload = append(g.payload, d...)
			want = append(want, s.bytes()[s.headers():]...)
		}
		got := runGRO(t, &g)
		if headers := (segment{six: c.six}).headers(); len(g.out) != 1 || !bytes.Equal(g.out[0][headers:], want) ||
			got.InPackets != n || got.OutPackets != n {
			t.Errorf("%+v: %d packets, counted %+v", c, len(g.out), got)
		}
	}
}

// TestDatagramsOfAStranger: each of them is counted.
func TestDatagramsOfAStranger(t *testing.T) {
	g := gro{payload: make([]byte, 1000), size: 100, stranger: true}
	if got := runGRO(t, &g); len(g.out) != 0 || got.InPackets != 10 || got.Drops[drop.NotDirector] != 10 ||
		got.InBytes != 1000+10*28 {
		t.Errorf("%d packets, counted %+v", len(g.out), got)
	}
}

func TestDatagramsAllocateNothing(t *testing.T) {
	var g gro
	for i := range 40 {
		d := gue(segment{port: 7, seq: uint32(i * 1400), n: 1400, flags: packet.FlagACK}.bytes())
		g.size = len(d)
		g.payload = append(g.payload, d...)
	}
	w := NewWorker(nil, discard{}, inForce(policy()), true)
	if n := testing.AllocsPerRun(100, func() {
		g.done = false
		if _, err := g.ReadBatch(w.bufs); err != nil {
			t.Fatal(err)
		}
		if err := w.move(w.bufs[:1]); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// TestDatagramsOfSeveralFlows: datagrams that cannot be merged come out unchanged, also more of them than there are
// buffers for.
func TestDatagramsOfSeveralFlows(t *testing.T) {
	const n = 700 // more than there is room for in one go
	var g gro
	var want [][]byte
	for i := range n {
		p := segment{port: uint16(i), seq: 1, n: 20, flags: packet.FlagACK}.bytes()
		switch i {
		case 77:
			binary.BigEndian.PutUint32(p[16:], 0x01020304) // not a VIP
			packet.IPv4(p).SetChecksum()
		case 99, 100:
			copy(p[12:16], p[16:20]) // from the VIP
			packet.IPv4(p).SetChecksum()
		default:
			want = append(want, p)
		}
		d := gue(p)
		g.size = len(d)
		g.payload = append(g.payload, d...)
	}
	g.payload = append(g.payload, 0, 4, 0) // a last one that is cut short
	got := runGRO(t, &g)
	if len(g.out) != len(want) || got.InPackets != n+1 || got.OutPackets != n-3 ||
		got.Drops[drop.InnerDestination] != 1 ||
		got.Drops[drop.InnerSource] != 2 || got.Drops[drop.TunnelHeader] != 1 {
		t.Fatalf("%d packets, counted %+v", len(g.out), got)
	}
	for i := range want {
		if !bytes.Equal(g.out[i], want[i]) {
			t.Fatalf("packet %d is %x, want %x", i, g.out[i], want[i])
		}
	}
}

// BenchmarkDatagrams is a GSO packet of 44 segments of one connection, from the socket's buffer to the TUN device.
func BenchmarkDatagrams(b *testing.B) {
	var g gro
	for i := range 44 {
		d := gue(segment{port: 7, seq: uint32(i * 1416), n: 1416, options: 12, flags: packet.FlagACK}.bytes())
		g.size = len(d)
		g.payload = append(g.payload, d...)
	}
	w := NewWorker(nil, discard{}, inForce(policy()), true)
	for b.Loop() {
		g.done = false
		if _, err := g.ReadBatch(w.bufs); err != nil {
			b.Fatal(err)
		}
		if err := w.move(w.bufs[:1]); err != nil {
			b.Fatal(err)
		}
	}
}

package endpoint

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
)

// gro is a source of one super-packet of UDP tunnel packets, as wire.UDPReceiver makes it of what the kernel has put together.
type gro struct {
	payload []byte
	size    int
	done    bool
	out     [][]byte
}

func (g *gro) ReadBatch(bufs []packet.Buf) (int, error) {
	if g.done {
		return 0, os.ErrClosed
	}
	g.done = true
	b := &bufs[0]
	b.SetLen(copy(b.Room(), g.payload))
	b.Offload = packet.Offload{GSO: packet.GSOUDP, Size: uint16(g.size)}
	h := b.Prepend(28)
	packet.PutIPv4(h, 0, len(g.payload)+28, 0, packet.ProtoUDP, director.As4(), [4]byte{})
	clear(h[20:28])
	return 1, nil
}

func (g *gro) WriteBatch(bufs []*packet.Buf) (n, size int, err error) {
	for _, b := range bufs {
		g.out = append(g.out, bytes.Clone(b.Bytes()))
		size += b.Len()
	}
	return len(bufs), size, nil
}

// gue is p behind a GUE header.
func gue(p []byte) []byte { return append([]byte{0, packet.ProtoIPIP, 0, 0}, p...) }

func runGRO(t *testing.T, g *gro) packet.Tally {
	t.Helper()
	w := NewWorker(g, encap.Exit{Kind: encap.KindGUE}, g, policy(), mss(1440))
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var got packet.Tally
	w.Read(&got)
	return got
}

// TestDatagrams: segments of one connection become one super-packet again, in order, and each is counted.
func TestDatagrams(t *testing.T) {
	const n, size = 40, 1400
	var g gro
	var want []byte
	for i := range n {
		s := segment{port: 7, seq: uint32(i * size), n: size, flags: packet.FlagACK}
		if i == n-1 {
			s.n = 100
		}
		d := gue(s.bytes())
		if i == 0 {
			g.size = len(d)
		}
		g.payload = append(g.payload, d...)
		want = append(want, s.bytes()[40:]...)
	}
	got := runGRO(t, &g)
	if len(g.out) != 1 || !bytes.Equal(g.out[0][40:], want) || got.InPackets != n || got.OutPackets != n {
		t.Errorf("%d packets, counted %+v", len(g.out), got)
	}
}

// TestDatagramsOfSeveralFlows: what can't be put together comes out as it is, also what is more than there are buffers for, and a stranger among
// them is refused.
func TestDatagramsOfSeveralFlows(t *testing.T) {
	const n = 150
	var g gro
	var want [][]byte
	for i := range n {
		p := segment{port: uint16(i), seq: 1, n: 300, flags: packet.FlagACK}.bytes()
		if i == 77 {
			binary.BigEndian.PutUint32(p[16:], 0x01020304) // not a VIP
			p.SetChecksum()
		} else {
			want = append(want, p)
		}
		d := gue(p)
		g.size = len(d)
		g.payload = append(g.payload, d...)
	}
	g.payload = append(g.payload, 0, 4, 0) // a last one that is cut short
	got := runGRO(t, &g)
	if len(g.out) != len(want) || got.InPackets != n+1 || got.OutPackets != n-1 || got.Drops[packet.DropInnerDestination] != 1 || got.Drops[packet.DropTunnelHeader] != 1 {
		t.Fatalf("%d packets, counted %+v", len(g.out), got)
	}
	for i := range want {
		if !bytes.Equal(g.out[i], want[i]) {
			t.Fatalf("packet %d is %x, want %x", i, g.out[i], want[i])
		}
	}
}

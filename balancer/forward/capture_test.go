package forward

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"

	"vstun/encap/packet"
)

// captured forwards packets under a Capture of f. It returns the captured packets, as read and as sent, and all packets
// that were sent.
func captured(t *testing.T, f CaptureFilter, mtu int, in ...[]byte) (before, after, out [][]byte) {
	t.Helper()
	s := &script{in: in}
	w := newWorker(t, s, mtu)
	c := NewCapture(f, 1000, 1<<20)
	if !w.shared.StartCapture(c) || w.shared.StartCapture(NewCapture(f, 1, 1)) {
		t.Fatal("not one Capture at a time")
	}
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	w.shared.StopCapture(c)
	for {
		taken := c.Next(context.Background())
		if len(taken) == 0 {
			return before, after, s.out
		}
		for _, p := range taken {
			if p.Sent {
				after = append(after, bytes.Clone(p.Bytes))
			} else {
				before = append(before, bytes.Clone(p.Bytes))
			}
		}
	}
}

// TestCapture: packets that match the filter are captured as read and as sent, others not.
func TestCapture(t *testing.T) {
	syn, data, other, dns, none := tcp(80, packet.FlagSYN, 0), tcp(80, packet.FlagACK, 100), tcp(80, packet.FlagSYN, 0),
		udp(53, false, 200), tcp(99, packet.FlagSYN, 0)
	copy(other[12:], []byte{192, 0, 2, 9})
	other.SetChecksum()
	ping := ip(packet.ProtoICMP, false, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})
	all := [][]byte{syn, data, other, dns, none, ping, segment(false, 81, packet.FlagACK, 10, false)}
	away := netip.MustParseAddr("10.0.99.9")
	for _, c := range []struct {
		name          string
		filter        CaptureFilter
		before, after int
	}{
		{"all", CaptureFilter{}, 7, 7}, // what has no service or is of no connection is answered, as is the ping
		{"client", CaptureFilter{Client: client}, 6, 6},
		{"client's port", CaptureFilter{Client: client, ClientPort: 4711}, 5, 5},
		{"other client", CaptureFilter{Client: netip.MustParseAddr("192.0.2.9")}, 1, 1},
		{"no such client", CaptureFilter{Client: away}, 0, 0},
		{"VIP", CaptureFilter{VIP: vip}, 7, 7},
		{"port", CaptureFilter{VIP: vip, Port: 80}, 3, 3},
		{"port without service", CaptureFilter{VIP: vip, Port: 99}, 1, 1},
		{"unknown connection", CaptureFilter{VIP: vip, Port: 81}, 1, 1},
		{"realserver", CaptureFilter{Realserver: netip.AddrPortFrom(real1, 0)}, 4, 4},
		{"realserver and port", CaptureFilter{Realserver: netip.AddrPortFrom(real1, 0), Port: 53}, 1, 1},
		{"no such realserver", CaptureFilter{Realserver: netip.AddrPortFrom(away, 0)}, 0, 0},
	} {
		before, after, out := captured(t, c.filter, 1500, clone(all)...)
		if len(before) != c.before || len(after) != c.after {
			t.Errorf("%s: %d before and %d after the tunnel, want %d and %d", c.name, len(before), len(after), c.before,
				c.after)
		}
		for _, p := range before {
			if !slices.ContainsFunc(all, func(q []byte) bool { return bytes.Equal(p, q) }) {
				t.Errorf("%s: %x did not come in", c.name, p)
			}
		}
		for _, p := range after {
			if !slices.ContainsFunc(out, func(q []byte) bool { return bytes.Equal(p, q) }) {
				t.Errorf("%s: %x did not go out", c.name, p)
			}
		}
	}
}

func clone(all [][]byte) (c [][]byte) {
	for _, p := range all {
		c = append(c, bytes.Clone(p))
	}
	return c
}

// TestCaptureFragments: all outer fragments of a matching packet are captured.
func TestCaptureFragments(t *testing.T) {
	big, other := udp(53, false, 1400), udp(53, false, 1400)
	copy(other[12:], []byte{192, 0, 2, 9})
	other.SetChecksum()
	before, after, out := captured(t, CaptureFilter{Client: client}, 600, big, other)
	if len(before) != 1 || len(after) != 3 || len(out) != 6 {
		t.Errorf("%d before and %d after the tunnel, want 1 and 3 of %d", len(before), len(after), len(out))
	}
}

// TestCaptureIsBounded: packets, bytes and room are bounded. Packets without room are counted.
func TestCaptureIsBounded(t *testing.T) {
	take := func(c *Capture) (n int) {
		for {
			taken := c.Next(context.Background())
			if len(taken) == 0 {
				return n
			}
			n += len(taken)
		}
	}
	p := make([]byte, 60000)
	few := NewCapture(CaptureFilter{}, 3, 1<<30)
	for range 10 {
		few.put(true, p, nil)
	}
	if n := take(few); n != 3 || few.Lost() != 0 {
		t.Errorf("%d packets and %d lost, want 3 and 0", n, few.Lost())
	}
	small := NewCapture(CaptureFilter{}, 1000, 150000)
	for range 10 {
		small.put(true, p, p[:1])
	}
	if n := take(small); n != 2 || small.Lost() != 0 {
		t.Errorf("%d packets and %d lost, want 2 of 60,001 bytes and 0", n, small.Lost())
	}
	tight := NewCapture(CaptureFilter{}, 1000, 1<<30)
	for range 100 {
		tight.put(true, p, nil)
	}
	if n := len(tight.Next(context.Background())); n != pageBytes/len(p) || tight.Lost() != uint64(100-n) {
		t.Errorf("%d packets and %d lost, want %d and the rest", n, tight.Lost(), pageBytes/len(p))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got := tight.Next(ctx); len(got) != 0 {
		t.Errorf("at the end %d packets", len(got))
	}
}

// TestCaptureAllocatesNothing: a worker allocates nothing with a Capture, nor without one.
func TestCaptureAllocatesNothing(t *testing.T) {
	w := newWorker(t, &script{}, 1500)
	w.sendBy(discard{})
	p := tcp(80, packet.FlagSYN, 100)
	c := NewCapture(CaptureFilter{Realserver: netip.AddrPortFrom(real1, 0)}, 1<<30, 1<<40)
	for _, on := range []bool{false, true} {
		if on {
			w.shared.StartCapture(c)
		}
		if n := testing.AllocsPerRun(50, func() {
			for i := range w.bufs {
				w.bufs[i].SetLen(copy(w.bufs[i].Room(), p))
			}
			w.forward(w.bufs)
		}); n != 0 {
			t.Errorf("with a Capture %v: %v allocations a batch", on, n)
		}
	}
	if len(c.Next(context.Background())) == 0 {
		t.Error("the Capture took nothing")
	}
}

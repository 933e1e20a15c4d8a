package endpoint

import (
	"bytes"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
)

var (
	director   = netip.MustParseAddr("10.0.2.2")
	realserver = netip.MustParseAddr("10.0.11.2")
	client     = netip.MustParseAddr("192.0.2.1")
	vip        = netip.MustParseAddr("198.51.100.80")
)

func policy() *Policy {
	return NewPolicy([]netip.Prefix{netip.MustParsePrefix("10.0.2.2/32"), netip.MustParsePrefix("10.9.0.0/16")},
		[]netip.Addr{vip, netip.MustParseAddr("198.51.100.81")})
}

// tunnel makes a tunnel packet.
func tunnel(from, src, dst netip.Addr, proto byte) []byte {
	in := make([]byte, 48)
	packet.PutIPv4(in, 0, len(in), 64, proto, src.As4(), dst.As4())
	out := make([]byte, 20+len(in))
	packet.PutIPv4(out, 0, len(out), 64, packet.ProtoIPIP, from.As4(), realserver.As4())
	copy(out[20:], in)
	return out
}

func buf(b []byte) *packet.Buf {
	bufs := packet.NewBufs(1)
	bufs[0].SetLen(copy(bufs[0].Room(), b))
	return &bufs[0]
}

func TestPolicy(t *testing.T) {
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		b    []byte
		want packet.Drop
	}{
		"good":                    {tunnel(director, client, vip, 6), packet.Accept},
		"other VIP":               {tunnel(director, client, addr("198.51.100.81"), 17), packet.Accept},
		"director of a prefix":    {tunnel(addr("10.9.255.255"), client, vip, 6), packet.Accept},
		"ICMP":                    {tunnel(director, client, vip, 1), packet.Accept},
		"stranger":                {tunnel(addr("10.0.2.3"), client, vip, 6), packet.DropNotDirector},
		"beside the prefix":       {tunnel(addr("10.8.255.255"), client, vip, 6), packet.DropNotDirector},
		"foreign destination":     {tunnel(director, client, addr("198.51.100.82"), 6), packet.DropInnerDestination},
		"own address":             {tunnel(director, client, realserver, 6), packet.DropInnerDestination},
		"loopback destination":    {tunnel(director, client, addr("127.0.0.1"), 6), packet.DropInnerDestination},
		"multicast destination":   {tunnel(director, client, addr("224.0.0.1"), 6), packet.DropInnerDestination},
		"broadcast destination":   {tunnel(director, client, addr("255.255.255.255"), 6), packet.DropInnerDestination},
		"source is the VIP":       {tunnel(director, vip, vip, 6), packet.DropInnerSource},
		"source is another VIP":   {tunnel(director, addr("198.51.100.81"), vip, 6), packet.DropInnerSource},
		"loopback source":         {tunnel(director, addr("127.0.0.1"), vip, 6), packet.DropInnerSource},
		"multicast source":        {tunnel(director, addr("224.0.0.1"), vip, 6), packet.DropInnerSource},
		"broadcast source":        {tunnel(director, addr("255.255.255.255"), vip, 6), packet.DropInnerSource},
		"reserved source":         {tunnel(director, addr("240.0.0.1"), vip, 6), packet.DropInnerSource},
		"zero source":             {tunnel(director, addr("0.0.0.0"), vip, 6), packet.DropInnerSource},
		"IPIP in IPIP":            {tunnel(director, client, vip, 4), packet.DropInnerProtocol},
		"IPv6 in IPIP":            {tunnel(director, client, vip, 41), packet.DropInnerProtocol},
		"GRE in IPIP":             {tunnel(director, client, vip, 47), packet.DropInnerProtocol},
		"empty":                   {nil, packet.DropOuter},
		"19 bytes":                {tunnel(director, client, vip, 6)[:19], packet.DropOuter},
		"stranger, rest nonsense": {append(tunnel(addr("10.0.2.3"), client, vip, 6)[:20], 1, 2, 3), packet.DropNotDirector},
	} {
		if d := policy().Unwrap(buf(c.b), &encap.Exit{}); d != c.want {
			t.Errorf("%s: %v, want %v", name, d, c.want)
		}
	}
}

// script is a Source that gives one packet a call and ends, and a Sink that keeps what it gets.
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
		p := b.Bytes()
		if p[19] == 81 { // the kernel refuses it
			continue
		}
		s.out = append(s.out, bytes.Clone(p))
		n, size = n+1, size+len(p)
	}
	return n, size, nil
}

func TestWorkerCountsEveryPacket(t *testing.T) {
	var s script
	for range 100 {
		s.in = append(s.in, tunnel(director, client, vip, 6), tunnel(client, client, vip, 6), tunnel(director, client, realserver, 6))
	}
	s.in = append(s.in, tunnel(director, client, netip.MustParseAddr("198.51.100.81"), 6))
	w := NewWorker(&s, encap.Exit{}, &s, policy(), mss(1440))
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	want := packet.Tally{InPackets: 301, InBytes: 301 * 68, OutPackets: 100, OutBytes: 100 * 48}
	want.Drops[packet.DropNotDirector], want.Drops[packet.DropInnerDestination], want.Drops[packet.DropTUNError] = 100, 100, 1
	var got packet.Tally
	w.Read(&got)
	if got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if len(s.out) != 100 || !bytes.Equal(s.out[0], tunnel(director, client, vip, 6)[20:]) {
		t.Errorf("%d packets came out", len(s.out))
	}
}

func TestWorkerEndsAndFails(t *testing.T) {
	for _, c := range []struct{ err, want error }{{os.ErrClosed, nil}, {os.ErrInvalid, os.ErrInvalid}} {
		if err := NewWorker(failing{c.err}, encap.Exit{}, &script{}, policy(), mss(1440)).Run(); (err == nil) != (c.want == nil) {
			t.Errorf("source fails with %v: Run returns %v", c.err, err)
		}
	}
}

type failing struct{ err error }

func (f failing) ReadBatch([]packet.Buf) (int, error) { return 0, f.err }

func TestWorkerAllocatesNothing(t *testing.T) {
	w := NewWorker(nil, encap.Exit{}, discard{}, policy(), mss(1440))
	in := [][]byte{tunnel(director, client, vip, 6), tunnel(client, client, vip, 6)}
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

type discard struct{}

func (discard) WriteBatch(b []*packet.Buf) (int, int, error) { return len(b), 0, nil }

func mss(n int64) *atomic.Int64 {
	v := new(atomic.Int64)
	v.Store(n)
	return v
}

// FuzzUnwrap: whatever comes in, what is let in is a whole packet from a director's client to a VIP.
func FuzzUnwrap(f *testing.F) {
	f.Add(tunnel(director, client, vip, 6), true)
	f.Add(tunnel(client, client, vip, 6), false)
	p := policy()
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if len(b) > packet.MaxLen {
			return
		}
		if b = bytes.Clone(b); fix && len(b) >= 40 {
			packet.IPv4(b).SetTotalLen(len(b))
			packet.IPv4(b[20:]).SetTotalLen(len(b) - 20)
			if b[20]&15 >= 5 && int(b[20]&15)*4 <= len(b)-20 {
				packet.IPv4(b[20:]).SetChecksum()
			}
		}
		outer := bytes.Clone(b)
		q := buf(b)
		if p.Unwrap(q, &encap.Exit{}) != packet.Accept {
			return
		}
		in := packet.IPv4(q.Bytes())
		if in.Check() != packet.Accept || in.TotalLen() != len(in) || in.Src() == vip || in.Src().IsMulticast() || in.Src().IsLoopback() {
			t.Errorf("let in: %x", in)
		}
		if dst := in.Dst().String(); dst != "198.51.100.80" && dst != "198.51.100.81" {
			t.Errorf("let in for %s", dst)
		}
		if src := packet.IPv4(outer).Src(); src != director && !netip.MustParsePrefix("10.9.0.0/16").Contains(src) {
			t.Errorf("let in from %s", src)
		}
	})
}

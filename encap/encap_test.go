package encap

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

var (
	director   = netip.MustParseAddr("10.0.2.2")
	realserver = netip.MustParseAddr("10.0.11.2")
	client     = netip.MustParseAddr("192.0.2.1")
	vip        = netip.MustParseAddr("198.51.100.80")
)

// inner makes an IPv4 packet of n bytes from the client to the VIP.
func inner(n int, tos, ttl byte, df bool) packet.IPv4 {
	b := make(packet.IPv4, n)
	for i := range b {
		b[i] = byte(i)
	}
	packet.IPv4(b).Encode(packet.IPv4Fields{
		TOS: tos, TotalLen: n, TTL: ttl, Protocol: packet.ProtoUDP, Src: client.As4(), Dst: vip.As4(),
	})
	if df {
		b[6] = 0x40
		b.SetChecksum()
	}
	return b
}

func buf(b []byte) *packet.Buf {
	bufs := packet.NewBufs(1)
	bufs[0].SetLen(copy(bufs[0].Room(), b))
	return &bufs[0]
}

func TestWrap(t *testing.T) {
	tunnel := mustNew(t, Config{Source: director, Destination: realserver})
	for tos := range 256 {
		for _, df := range []bool{false, true} {
			in := inner(100, byte(tos), 33, df)
			b := buf(in)
			tunnel.Wrap(b, 0)
			packet.IPv4(b.Bytes()).SetChecksum() // the kernel's part
			p := gopacket.NewPacket(b.Bytes(), layers.LayerTypeIPv4, gopacket.Default)
			o := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			if o.SrcIP.String() != director.String() || o.DstIP.String() != realserver.String() ||
				o.Protocol != layers.IPProtocolIPv4 ||
				int(o.TOS) != tos || o.TTL != 33 || (o.Flags == layers.IPv4DontFragment) != df ||
				int(o.Length) != 120 || o.Id != 0 {
				t.Fatalf("TOS %d, DF %v: outer header is %+v", tos, df, o)
			}
			if !bytes.Equal(b.Bytes()[20:], in) {
				t.Fatal("the inner packet was changed")
			}
			if d := deliver(Config{Destination: realserver}, b); d != drop.Accept || !bytes.Equal(b.Bytes(), in) {
				t.Fatalf("TOS %d: unwrapping gives %v, %x", tos, d, b.Bytes())
			}
		}
	}
}

func TestWrapLeavesSourceToKernel(t *testing.T) {
	tunnel := mustNew(t, Config{Source: netip.Addr{}, Destination: realserver})
	b := buf(inner(40, 0, 64, false))
	tunnel.Wrap(b, 0)
	if src := packet.IPv4(b.Bytes()).Src(); !src.IsUnspecified() {
		t.Errorf("outer source is %v, want 0.0.0.0", src)
	}
}

// TestECN is the table of RFC 6040, section 4.2: inner ECN down, outer ECN across; the rows are Not-ECT, ECT(1),
// ECT(0), CE in their codepoints' order.
func TestECN(t *testing.T) {
	const dropped = 9
	want := [4][4]byte{
		0: {0, 0, 0, dropped}, // inner Not-ECT
		1: {1, 1, 1, 3},       // inner ECT(1)
		2: {2, 1, 2, 3},       // inner ECT(0)
		3: {3, 3, 3, 3},       // inner CE
	}
	tunnel := mustNew(t, Config{Source: director, Destination: realserver})
	for in := range byte(4) {
		for out := range byte(4) {
			b := buf(inner(60, 0xb8|in, 64, false))
			tunnel.Wrap(b, 0)
			o := packet.IPv4(b.Bytes())
			o.SetTOS(0x20 | out) // another DSCP on the way is of no matter
			d := deliver(Config{Destination: realserver}, b)
			if want[in][out] == dropped {
				if d != drop.Congestion {
					t.Errorf("inner %d, outer %d: %v, want a drop", in, out, d)
				}
				continue
			}
			h := packet.IPv4(b.Bytes())
			if d != drop.Accept || h.TOS() != 0xb8|want[in][out] || h.Check() != drop.Accept {
				t.Errorf("inner %d, outer %d: %v TOS %02x, want ECN %d", in, out, d, h.TOS(), want[in][out])
			}
		}
	}
}

func TestUnwrapRefuses(t *testing.T) {
	good := inner(60, 0, 64, false)
	for name, c := range map[string]struct {
		b    []byte
		want drop.Reason
	}{
		"good":               {good, drop.Accept},
		"no inner packet":    {nil, drop.Truncated},
		"inner of 19 bytes":  {good[:19], drop.Truncated},
		"inner cut":          {good[:59], drop.Truncated},
		"bytes behind":       {append(bytes.Clone(good), 1), drop.Trailing},
		"inner is version 6": {append([]byte{0x60}, good[1:]...), drop.NotIPv4},
		"inner checksum":     {append([]byte{0x45, 4}, good[2:]...), drop.BadChecksum},
	} {
		if d := new(Decapsulator).Decap(buf(c.b), packet.ProtoIPIP, 0); d != c.want {
			t.Errorf("%s: %v, want %v", name, d, c.want)
		}
	}
}

func TestFragment(t *testing.T) {
	for _, mtu := range []int{MinMTU, 69, 576, 1400, 1500} {
		for _, size := range []int{mtu - 19, mtu, mtu + 1, 3 * mtu, 1480, 65515} {
			t.Run(fmt.Sprintf("%d-%d", mtu, size), func(t *testing.T) {
				tunnel := mustNew(t, Config{Source: director, Destination: realserver})
				b := buf(inner(size, 0x20, 9, false))
				tunnel.Wrap(b, 0)
				want := bytes.Clone(b.Bytes())
				room := make([]byte, packet.MaxPieces*packet.IPv4HeaderLen)
				segs := Fragment(nil, b.Bytes(), mtu, 77, room)
				if len(segs) > packet.MaxPieces {
					t.Fatalf("%d fragments", len(segs))
				}
				defrag := make([]byte, 0, len(want))
				for i, s := range segs {
					h := packet.IPv4(append(bytes.Clone(s.Head), s.Body...))
					more := h[6]&0x20 != 0
					offset := (int(h[6])&0x1f<<8 | int(h[7])) * 8
					if s.Len() > mtu || h.TotalLen() != s.Len() || h.ID() != 77 || h.Src() != director ||
						h.Dst() != realserver ||
						h.Protocol() != packet.ProtoIPIP || h.TTL() != 9 || h.TOS() != 0x20 || h.DF() ||
						more != (i < len(segs)-1) || offset != len(defrag) {
						t.Fatalf("fragment %d of %d: %x, %d bytes of payload", i, len(segs), s.Head, len(s.Body))
					}
					defrag = append(defrag, h[20:]...)
				}
				if !bytes.Equal(defrag, want[20:]) {
					t.Error("the fragments do not make the packet")
				}
			})
		}
	}
}

func TestWrapAllocatesNothing(t *testing.T) {
	tunnel := mustNew(t, Config{Source: director, Destination: realserver})
	in := inner(1000, 0, 64, true)
	b := buf(in)
	if n := testing.AllocsPerRun(100, func() {
		b.SetLen(copy(b.Room(), in))
		tunnel.Wrap(b, 0)
		deliver(Config{Destination: realserver}, b)
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

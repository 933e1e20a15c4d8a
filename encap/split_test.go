package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// super makes a TCP or UDP GSO packet from the client to the VIP, as a TUN device with offloads gives it: the
// transport checksum is that of the pseudo-header.
func super(t testing.TB, proto byte, n, size int, flags byte, tcpOptions int) (*packet.Buf, *packet.Info) {
	t.Helper()
	header := 8
	if proto == packet.ProtoTCP {
		header = 20 + tcpOptions
	}
	b := make(packet.IPv4, 20+header+n)
	tr := b[20:]
	binary.BigEndian.PutUint16(tr, 4711)
	binary.BigEndian.PutUint16(tr[2:], 80)
	o := packet.Offload{GSO: packet.GSOUDP, Size: uint16(size), Partial: true, CsumStart: 20, CsumOffset: 6}
	if proto == packet.ProtoTCP {
		binary.BigEndian.PutUint32(tr[4:], 0xffffff00) // wraps on the way
		tr[12], tr[13] = byte(header/4)<<4, flags
		o.GSO, o.CsumOffset = packet.GSOTCP, 16
		for i := range tcpOptions {
			tr[20+i] = 1
		}
	} else {
		binary.BigEndian.PutUint16(tr[4:], uint16(8+n))
	}
	for i := range n {
		tr[header+i] = byte(i * 31 >> 3)
	}
	packet.IPv4(b).Encode(packet.IPv4Fields{
		TOS: 0x28, TotalLen: len(b), TTL: 63, Protocol: proto, Src: client.As4(), Dst: vip.As4(),
	})
	binary.BigEndian.PutUint16(b[4:], 0xfffe)
	b[6] = 0x40
	b.SetChecksum()
	binary.BigEndian.PutUint16(tr[o.CsumOffset:], packet.Fold(b.PseudoSum(len(tr))))
	buf := buf(b)
	buf.Offload = o
	var p packet.Info
	if d := p.Parse(buf.Bytes()); d != drop.Accept {
		t.Fatal(d)
	}
	return buf, &p
}

// checkSegment decodes a sent packet with gopacket, checks all its checksums, and returns inner headers and payload.
func checkSegment(t *testing.T, s packet.Segment) (*layers.IPv4, gopacket.Packet, []byte) {
	t.Helper()
	b := append(bytes.Clone(s.Head), s.Body...)
	outer := packet.IPv4(b)
	if outer.TotalLen() != len(b) || outer.Protocol() != packet.ProtoIPIP {
		t.Fatalf("outer header %x of %d bytes", b[:20], len(b))
	}
	in := packet.IPv4(b[20:])
	if d := in.Check(); d != drop.Accept || in.TotalLen() != len(in) {
		t.Fatalf("inner header: %v %x", d, in[:20])
	}
	pseudo := in.PseudoSum(len(in) - 20)
	if sum := packet.Fold(packet.Sum(in[20:], pseudo)); sum != 0xffff {
		t.Fatalf("transport checksum: sum is %04x", sum)
	}
	p := gopacket.NewPacket(in, layers.LayerTypeIPv4, gopacket.Default)
	return p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p, p.ApplicationLayer().Payload()
}

func TestSplitTCP(t *testing.T) {
	tunnel := mustNew(t, Config{Source: director, Destination: realserver})
	const allFlags = packet.FlagFIN | packet.FlagPSH | packet.FlagACK | 0x80 // CWR
	for _, c := range []struct{ n, size, mtu, options, payload int }{
		{14480, 1448, 1500, 12, 1428}, // cut finer, as it has to fit
		{14280, 1428, 1480, 12, 1428},
		{14281, 1428, 1480, 12, 1428},
		{65000, 1440, 1480, 0, 1440},
		{100, 1440, 1480, 40, 100},
		{2880, 1440, 1480, 0, 1440},
		{65400, 48, 1480, 20, 48},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			b, p := super(t, packet.ProtoTCP, c.n, c.size, allFlags, c.options)
			want := bytes.Clone(b.Bytes()[40+c.options:])
			cut, d := packet.NewCut(b, p, c.mtu)
			if d != drop.Accept || cut.Headers != 40+c.options || cut.Payload != min(c.size, c.mtu-cut.Headers) {
				t.Fatal(cut, d)
			}
			tunnel.Wrap(b, 0)
			cut.Overhead = packet.IPv4HeaderLen
			segs, _ := packet.Split(nil, b, p, cut, make([]byte, packet.PieceRoom))
			if n := (c.n + cut.Payload - 1) / cut.Payload; len(segs) != n {
				t.Fatalf("%d segments, want %d", len(segs), n)
			}
			var got []byte
			seq := uint32(0xffffff00)
			for i, s := range segs {
				ip, pk, body := checkSegment(t, s)
				tcp := pk.Layer(layers.LayerTypeTCP).(*layers.TCP)
				last := i == len(segs)-1
				if tcp.Seq != seq || tcp.FIN != last || tcp.PSH != last || tcp.CWR != (i == 0) || !tcp.ACK ||
					ip.Id != uint16(0xfffe+i) ||
					ip.TOS != 0x28 || ip.TTL != 63 || ip.Flags != layers.IPv4DontFragment ||
					len(tcp.Contents) != 20+c.options || int(ip.Length) > c.mtu {
					t.Fatalf("segment %d of %d: %+v %+v", i, len(segs), ip, tcp)
				}
				if !last && len(body) != cut.Payload {
					t.Fatalf("segment %d has %d bytes of payload", i, len(body))
				}
				seq += uint32(len(body))
				got = append(got, body...)
			}
			if !bytes.Equal(got, want) {
				t.Error("the payload is not the same")
			}
		})
	}
}

func TestSplitUDP(t *testing.T) {
	tunnel := mustNew(t, Config{Source: director, Destination: realserver})
	for _, c := range []struct{ n, size int }{{1200 * 10, 1200}, {1200*10 + 1, 1200}, {100, 1200}, {65000, 1400}} {
		b, p := super(t, packet.ProtoUDP, c.n, c.size, 0, 0)
		want := bytes.Clone(b.Bytes()[28:])
		cut, d := packet.NewCut(b, p, 1480)
		if d != drop.Accept || cut.Headers != 28 || cut.Payload != c.size {
			t.Fatal(cut, d)
		}
		tunnel.Wrap(b, 0)
		cut.Overhead = packet.IPv4HeaderLen
		segs, _ := packet.Split(nil, b, p, cut, make([]byte, packet.PieceRoom))
		var got []byte
		for i, s := range segs {
			ip, pk, body := checkSegment(t, s)
			udp := pk.Layer(layers.LayerTypeUDP).(*layers.UDP)
			if int(udp.Length) != 8+len(body) || ip.Id != uint16(0xfffe+i) || i < len(segs)-1 && len(body) != c.size {
				t.Fatalf("datagram %d: %+v %+v", i, ip, udp)
			}
			got = append(got, body...)
		}
		if !bytes.Equal(got, want) {
			t.Error("the payload is not the same")
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	for name, edit := range map[string]func(b *packet.Buf, p *packet.Info){
		"size 0":              func(b *packet.Buf, _ *packet.Info) { b.Offload.Size = 0 },
		"TCP kind, UDP":       func(b *packet.Buf, _ *packet.Info) { b.Offload.GSO = packet.GSOUDP },
		"data offset of 16":   func(b *packet.Buf, _ *packet.Info) { b.Bytes()[32] = 0x40 },
		"header beyond end":   func(b *packet.Buf, p *packet.Info) { b.SetLen(45); b.Bytes()[32] = 0xf0 },
		"too many pieces":     func(b *packet.Buf, _ *packet.Info) { b.Offload.Size = 1 },
		"no GSO packet":       func(b *packet.Buf, _ *packet.Info) { b.Offload.GSO = packet.GSONone },
		"larger than the MTU": func(_ *packet.Buf, p *packet.Info) { p.Offset = 1480 - 12 },
	} {
		b, p := super(t, packet.ProtoTCP, 20000, 1440, 0, 0)
		edit(b, p)
		if _, d := packet.NewCut(b, p, 1480); d != drop.Offload {
			t.Errorf("%s: %v", name, d)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	tunnel := mustNew(b, Config{Source: director, Destination: realserver})
	buf, p := super(b, packet.ProtoTCP, 64000, 1428, packet.FlagACK, 12)
	room, segs := make([]byte, packet.PieceRoom), make([]packet.Segment, 0, 100)
	b.SetBytes(64000)
	for b.Loop() {
		cut, d := packet.NewCut(buf, p, 1480)
		if d != drop.Accept {
			b.Fatal(d)
		}
		tunnel.Wrap(buf, 0)
		cut.Overhead = packet.IPv4HeaderLen
		segs, _ = packet.Split(segs[:0], buf, p, cut, room)
		buf.Strip(packet.IPv4HeaderLen)
	}
}

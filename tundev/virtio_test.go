package tundev

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

var (
	client, vip   = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.80")
	client6, vip6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:f::80")
)

// gsoPacket is a GSO packet with n bytes of payload, whose checksum is left to the kernel. A TCP header has 12 bytes of
// options. Over IPv6 options is a destination options header, if it is not empty.
func gsoPacket(t testing.TB, six bool, proto byte, n, size int, options ...byte) *packet.Buf {
	t.Helper()
	o := packet.Offload{GSO: packet.GSOUDP, Size: uint16(size), Partial: true, CsumOffset: packet.UDPChecksumAt}
	header := packet.UDPHeaderLen
	if proto == packet.ProtoTCP {
		o.GSO, o.CsumOffset, header = packet.GSOTCP, packet.TCPChecksumAt, packet.TCPHeaderLen+12
	}
	start := packet.IPv4HeaderLen
	if six {
		start = packet.IPv6HeaderLen + len(options)
	}
	b := &packet.NewBufs(1)[0]
	b.SetLen(copy(b.Room(), make([]byte, start+header+n)))
	p := b.Bytes()
	if six {
		next := proto
		if len(options) > 0 {
			next = 60
			copy(p[packet.IPv6HeaderLen:], options)
		}
		packet.IPv6(p).Encode(packet.IPv6Fields{
			TotalLen: len(p), HopLimit: 63, NextHeader: next, Src: client6.As16(), Dst: vip6.As16(),
		})
	} else {
		packet.IPv4(p).Encode(packet.IPv4Fields{
			TOS: 0x28, TotalLen: len(p), TTL: 63, Protocol: proto, Src: client.As4(), Dst: vip.As4(),
		})
	}
	o.CsumStart = uint16(start)
	b.Offload = o
	if proto == packet.ProtoTCP {
		tcp := packet.TCP(p[start:])
		tcp.SetSrcPort(4711)
		tcp.SetDstPort(80)
		tcp.SetSeq(0xffffff00) // wraps on the way
		tcp.SetHeaderLen(header)
		tcp.SetFlags(packet.FlagFIN | packet.FlagPSH | packet.FlagACK | packet.FlagCWR)
	} else {
		udp := packet.UDP(p[start:])
		udp.SetSrcPort(4711)
		udp.SetDstPort(80)
		udp.SetLen(header + n)
	}
	for i := range p[start+header:] {
		p[start+header+i] = byte(i * 31 >> 3)
	}
	binary.BigEndian.PutUint16(p[start+int(o.CsumOffset):], packet.Fold(packet.PseudoSum(p, proto, header+n)))
	return b
}

// read puts a packet behind its struct virtio_net_hdr into b, as Queue.read does.
func read(b *packet.Buf, data []byte) {
	room := b.RoomBehind(packet.VirtioLen)
	b.SetLen(copy(room, data) - packet.VirtioLen)
	b.Offload = (*packet.VirtioHeader)(room).Offload()
}

// withVnet is the packet in b behind its struct virtio_net_hdr.
func withVnet(b *packet.Buf) []byte {
	var h packet.VirtioHeader
	h.Encode(b, 0)
	return append(h[:], b.Bytes()...)
}

// destOptions is a destination options header with a PadN option of 4 bytes, before a header of this kind.
func destOptions(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// TestVnet: the struct virtio_net_hdr of each kind and family is as linux/virtio_net.h has it, and reads back as it
// was. No step allocates.
func TestVnet(t *testing.T) {
	for _, c := range []struct {
		six     bool
		proto   byte
		kind    byte
		headers uint16
		options []byte
		size    uint16
	}{
		{false, packet.ProtoTCP, packet.VirtioTCPv4 | packet.VirtioECN, 52, nil, 1428},
		{true, packet.ProtoTCP, packet.VirtioTCPv6 | packet.VirtioECN, 72, nil, 1428},
		{true, packet.ProtoTCP, packet.VirtioTCPv6 | packet.VirtioECN, 80, destOptions(packet.ProtoTCP), 1428},
		{false, packet.ProtoUDP, packet.VirtioUDPL4, 28, nil, 1200},
		{true, packet.ProtoUDP, packet.VirtioUDPL4, 48, nil, 1200},
	} {
		b := gsoPacket(t, c.six, c.proto, 5000, int(c.size), c.options...)
		want, pk := b.Offload, bytes.Clone(b.Bytes())
		got := withVnet(b)
		h := got[:packet.VirtioLen]
		native := binary.NativeEndian
		if h[0] != packet.VirtioNeedsCsum || h[1] != c.kind || native.Uint16(h[2:]) != c.headers ||
			native.Uint16(h[4:]) != c.size || native.Uint16(h[6:]) != want.CsumStart ||
			native.Uint16(h[8:]) != want.CsumOffset || !bytes.Equal(got[packet.VirtioLen:], pk) {
			t.Errorf("%+v: %x", c, h)
		}
		back := &packet.NewBufs(1)[0]
		read(back, got)
		if back.Offload != want || !bytes.Equal(back.Bytes(), pk) {
			t.Errorf("read back: %+v, want %+v", back.Offload, want)
		}
		var vnet packet.VirtioHeader
		if n := testing.AllocsPerRun(20, func() {
			vnet.Encode(b, 0)
			back.Offload = vnet.Offload()
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// fix makes the version and the IPv4 checksum of p right: else hardly any packet passes.
func fix(p []byte) {
	if h := packet.IPv4(p); len(h) >= packet.IPv4HeaderLen && h.Version() == 4 &&
		h.HeaderLen() >= packet.IPv4HeaderLen && h.HeaderLen() <= len(h) {
		h.SetChecksum()
	}
}

// FuzzSplit: whatever bytes come with whatever struct virtio_net_hdr, nothing panics, and what is made of them in a
// tunnel is packets that together are no more than what came.
func FuzzSplit(f *testing.F) {
	tcp := gsoPacket(f, false, packet.ProtoTCP, 5000, 1428)
	udp := gsoPacket(f, false, packet.ProtoUDP, 5000, 1200)
	f.Add([]byte{1, 1, 54, 0, 148, 5, 20, 0, 16, 0}, tcp.Bytes())
	f.Add([]byte{1, 5, 28, 0, 176, 4, 20, 0, 6, 0}, udp.Bytes())
	room, segs := make([]byte, packet.PieceRoom), make([]packet.Segment, 0, packet.MaxPieces)
	bufs := packet.NewBufs(1)
	tunnel, err := encap.New(encap.Config{Source: netip.MustParseAddr("10.0.10.2"),
		Destination: netip.MustParseAddr("10.0.11.2")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, vnet, b []byte) {
		if len(vnet) != packet.VirtioLen || len(b) > packet.MaxLen {
			return
		}
		p := &bufs[0]
		read(p, slices.Concat(vnet, b))
		fix(p.Bytes())
		var info packet.Info
		if info.Parse(p.Bytes()) != drop.Accept {
			return
		}
		p.SetLen(info.Len)
		if p.Offload.GSO == packet.GSONone {
			p.Finish()
			new(packet.VirtioHeader).Encode(p, 0)
			return
		}
		cut, d := packet.NewCut(p, &info, 1480)
		if d != drop.Accept {
			return
		}
		whole := info.Len - cut.Headers
		tunnel.Wrap(p, 0)
		cut.Overhead = packet.IPv4HeaderLen
		segs, _ = packet.Split(segs[:0], p, &info, cut, room)
		for _, s := range segs {
			whole -= len(s.Body)
			if h := packet.IPv4(s.Head); h.TotalLen() != s.Len() || totalLen(s.Head[20:]) != s.Len()-20 {
				t.Fatalf("a segment of %d bytes says otherwise: %x", s.Len(), s.Head)
			}
		}
		if whole != 0 {
			t.Fatalf("%d bytes of payload are missing", whole)
		}
	})
}

// totalLen is the packet's length by the IP header in b, of either family.
func totalLen(b []byte) int {
	if packet.Version(b) == 6 {
		return packet.IPv6(b).TotalLen()
	}
	return packet.IPv4(b).TotalLen()
}

// FuzzSplit6: whatever bytes come with whatever struct virtio_net_hdr, nothing panics, and what is made of them is
// packets of the same flow that together are what came.
func FuzzSplit6(f *testing.F) {
	for _, proto := range []byte{packet.ProtoTCP, packet.ProtoUDP} {
		f.Add(withVnet(gsoPacket(f, true, proto, 5000, 1200, destOptions(proto)...)))
	}
	bufs, room := packet.NewBufs(1), make([]byte, packet.PieceRoom)
	segs := make([]packet.Segment, 0, packet.MaxPieces)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < packet.VirtioLen || len(data) > packet.MaxLen {
			return
		}
		b := &bufs[0]
		read(b, data)
		fix(b.Bytes())
		var p packet.Info
		if p.Parse(b.Bytes()) != drop.Accept {
			return
		}
		b.SetLen(p.Len)
		new(packet.VirtioHeader).Encode(b, 0)
		if b.Offload.GSO == packet.GSONone {
			b.Finish()
			return
		}
		cut, d := packet.NewCut(b, &p, 1460)
		if d != drop.Accept {
			return
		}
		want := bytes.Clone(b.Bytes()[cut.Headers:])
		segs, _ = packet.Split(segs[:0], b, &p, cut, room)
		for _, s := range segs {
			var q packet.Info
			if d := q.Parse(slices.Concat(s.Head, s.Body)); d != drop.Accept || q.Len != s.Len() || q.Flow != p.Flow ||
				!bytes.HasPrefix(want, s.Body) {
				t.Fatalf("%v %+v of %+v", d, q, p)
			}
			want = want[len(s.Body):]
		}
		if len(want) != 0 {
			t.Fatalf("%d bytes of payload are missing", len(want))
		}
	})
}

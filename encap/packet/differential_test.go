package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap/packet/drop"
)

// checkParsed compares what Parse made of b with gopacket's view, an implementation that has nothing in common with
// ours. It reports whether gopacket came as far as the transport header.
func checkParsed(t *testing.T, b []byte, p *Info) (complete bool) {
	t.Helper()
	if p.Len > len(b) || p.Offset > p.Len {
		t.Fatalf("%+v of %d bytes", p, len(b))
	}
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	pk := gopacket.NewPacket(b[:p.Len], first, gopacket.DecodeOptions{NoCopy: true})
	offset := 0
	for i, l := range pk.Layers() {
		if _, network := l.(gopacket.NetworkLayer); i > 0 && network {
			return false // a tunnel
		}
		switch l := l.(type) {
		case *layers.IPv4:
			if addr(l.SrcIP) != p.Flow.Src || addr(l.DstIP) != p.Flow.Dst || uint8(l.Protocol) != p.Flow.Proto {
				t.Errorf("%+v, gopacket says %+v", p, l)
			}
			offset += len(l.Contents)
			continue
		case *layers.IPv6:
			if addr(l.SrcIP) != p.Flow.Src || addr(l.DstIP) != p.Flow.Dst || !p.DF {
				t.Errorf("%+v, gopacket says %+v", p, l)
			}
			if h := IPv6(b); l.TrafficClass != h.TrafficClass() || l.FlowLabel != h.FlowLabel() ||
				l.HopLimit != h.HopLimit() {
				t.Errorf("%x, gopacket says %+v", b[:40], l)
			}
			offset += len(l.Contents)
			continue
		case *layers.IPv6HopByHop, *layers.IPv6Destination, *layers.IPSecAH, *layers.IPv6Routing:
			if first == layers.LayerTypeIPv4 {
				return false // those are IPv6's; gopacket takes them anywhere
			}
			offset += len(l.LayerContents())
			continue
		case *layers.TCP:
			check(t, p, ProtoTCP, offset, uint16(l.SrcPort), uint16(l.DstPort))
			if (p.TCPFlags&FlagSYN != 0) != l.SYN || (p.TCPFlags&FlagRST != 0) != l.RST {
				t.Errorf("%+v, gopacket says %+v", p, l)
			}
		case *layers.UDP:
			check(t, p, ProtoUDP, offset, uint16(l.SrcPort), uint16(l.DstPort))
		case *layers.SCTP:
			check(t, p, ProtoSCTP, offset, uint16(l.SrcPort), uint16(l.DstPort))
		case *layers.ICMPv4:
			check(t, p, ProtoICMP, offset, 0, 0)
		case *layers.ICMPv6:
			check(t, p, ProtoICMPv6, offset, 0, 0)
		default:
			return false
		}
		return true
	}
	return false
}

func check(t *testing.T, p *Info, proto uint8, offset int, src, dst uint16) {
	t.Helper()
	if p.Flow.Proto != proto || p.Offset != offset || p.Flow.SrcPort != src || p.Flow.DstPort != dst {
		t.Errorf("%+v, gopacket says protocol %d at %d, ports %d and %d", p, proto, offset, src, dst)
	}
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// randomPacket makes a right packet of a random family, protocol and, over IPv6, chain of extension headers.
func randomPacket(t testing.TB, rnd *rand.Rand) []byte {
	var l gopacket.SerializableLayer
	var proto layers.IPProtocol
	from, to, four := uint16(rnd.Uint32()), uint16(rnd.Uint32()), rnd.IntN(2) == 0
	switch rnd.IntN(4) {
	case 0:
		l, proto = &layers.TCP{SrcPort: layers.TCPPort(from), DstPort: layers.TCPPort(to), SYN: rnd.IntN(2) == 0,
			RST: rnd.IntN(2) == 0}, layers.IPProtocolTCP
	case 1:
		l, proto = &layers.UDP{SrcPort: layers.UDPPort(from), DstPort: layers.UDPPort(to)}, layers.IPProtocolUDP
	case 2:
		l, proto = &layers.SCTP{SrcPort: layers.SCTPPort(from), DstPort: layers.SCTPPort(to)}, layers.IPProtocolSCTP
	case 3:
		if four {
			l, proto = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, layers.IPProtocolICMPv4
		} else {
			l, proto = gopacket.Payload{ICMPv6Echo, 0, 0, 0, 0, 0, 0, 0}, layers.IPProtocolICMPv6
		}
	}
	payload := gopacket.Payload(make([]byte, 4+rnd.IntN(100)))
	if four {
		return build(t, &layers.IPv4{Protocol: proto, TOS: uint8(rnd.Uint32()),
			Options: []layers.IPv4Option{{OptionType: 1}}[:rnd.IntN(2)]}, l, payload)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{}, l, payload); err != nil {
		t.Fatal(err)
	}
	next, parts := byte(proto), [][]byte{buf.Bytes()}
	for range rnd.IntN(4) {
		if rnd.IntN(2) == 0 {
			parts, next = append(parts, options(next, 0x1e, 2, 1, 2)), extDestOpts
		} else {
			parts, next = append(parts, auth(next, 16+8*rnd.IntN(3))), extAuth
		}
	}
	if rnd.IntN(3) == 0 {
		parts, next = append(parts, options(next, 5, 2, 0, 0)), ExtHopByHop
	}
	slices.Reverse(parts)
	b := six(next, parts...)
	b.SetTrafficClass(byte(rnd.Uint32()))
	b[2] = byte(rnd.Uint32())
	return b
}

// TestParseAgainstGopacket: right packets are accepted and read alike. Of damaged ones, what we accept is read alike as
// far as gopacket goes.
func TestParseAgainstGopacket(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	accepted := 0
	for range 20000 {
		b := randomPacket(t, rnd)
		var p Info
		if d := p.Parse(b); d != drop.Accept {
			t.Fatalf("%v: %x", d, b)
		}
		if !checkParsed(t, b, &p) {
			t.Fatalf("gopacket does not understand %x", b)
		}
		for range 1 + rnd.IntN(3) {
			b[rnd.IntN(min(len(b), 80))] ^= 1 << rnd.IntN(8)
		}
		b = b[:len(b)-rnd.IntN(2)*rnd.IntN(len(b))]
		fixHeader(b)
		if p.Parse(b) == drop.Accept {
			accepted++
			checkParsed(t, b, &p)
		}
		if t.Failed() {
			t.Fatalf("%x", b)
		}
	}
	if accepted < 1000 {
		t.Errorf("of all damaged packets only %d were accepted", accepted)
	}
}

// fixHeader makes the checksum of an IPv4 header right: else hardly any random bytes pass.
func fixHeader(b []byte) {
	if len(b) >= IPv4HeaderLen && b[0]>>4 == 4 {
		if n := IPv4(b).HeaderLen(); n >= IPv4HeaderLen && n <= len(b) {
			IPv4(b).SetChecksum()
		}
	}
}

// FuzzParse compares with gopacket: what we accept it decodes alike. Nothing panics, and what is made about a packet is
// a packet.
func FuzzParse(f *testing.F) {
	f.Add(tcpPacket(f))
	f.Add([]byte(tcp6(80)))
	f.Add([]byte(six(ProtoFragment, fragment(ProtoUDP, 0, true, 1), ports(1, 2, 4))))
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		f.Add(randomPacket(f, rnd))
	}
	room := make([]byte, ICMPRoom)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		fixHeader(b)
		fragment, isFragment := ParseFragment(b)
		_, quotedDrop := QuotedFlow(b)
		may := MayAnswer(b)
		var p Info
		d := p.Parse(b)
		if isFragment && (d != drop.Fragment || !fragment.More && fragment.Offset == 0) {
			t.Fatalf("fragment %+v, but %v", fragment, d)
		}
		if quotedDrop == drop.Accept && (d != drop.Accept || may) {
			t.Fatalf("an ICMP error: %v, answered %v", d, may)
		}
		if d == drop.Accept {
			checkParsed(t, b, &p)
		}
		if may {
			from := vip6
			if b[0]>>4 == 4 {
				from = netip.AddrFrom4([4]byte{198, 51, 100, 80})
			}
			checkError(t, room[:PortUnreachable(room, b, from)], b)
		}
		if d == drop.Accept && (p.Flow.Proto == ProtoICMP || p.Flow.Proto == ProtoICMPv6) {
			c := bytes.Clone(b)
			if EchoReply(c) == drop.Accept && (p.Parse(c) != drop.Accept || EchoReply(c) != drop.ICMP) {
				t.Error("the answer to an echo request is none")
			}
		}
	})
}

// checkError: e is an ICMP error about b, whole, with right checksums, and itself nothing that may be answered.
func checkError(t *testing.T, e, b []byte) {
	t.Helper()
	var p Info
	if d := p.Parse(e); d != drop.Accept || p.Len != len(e) {
		t.Fatalf("%v: %x", d, e)
	}
	proto, limit, sum := uint8(ProtoICMP), 576, uint16(0)
	src, whole := IPv4(b).Src, IPv4(b).TotalLen
	if b[0]>>4 == 6 {
		proto, limit, sum = ProtoICMPv6, 1280, plainChecksum(e, ProtoICMPv6, e[40:])
		src, whole = IPv6(b).Src, IPv6(b).TotalLen
	} else {
		sum = Checksum(e[20:])
	}
	quote := e[p.Offset+8:]
	if p.Flow.Proto != proto || p.Flow.Dst != src() || sum != 0 || MayAnswer(e) || len(e) > limit ||
		!bytes.Equal(quote, b[:len(quote)]) || len(quote) < whole() && len(e) != limit {
		t.Fatalf("the error about %x is %x", b, e)
	}
}

// FuzzQuoted: nothing panics, and what is found is where it is said to be. The checksums are made right, else hardly
// anything passes.
func FuzzQuoted(f *testing.F) {
	room := make([]byte, ICMPRoom)
	four, six6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
	f.Add(bytes.Clone(room[:FragmentationNeeded(room, tcpPacket(f), four, 1400)]))
	f.Add(bytes.Clone(room[:PacketTooBig(room, tcp6(80), six6, 1400)]))
	f.Add(bytes.Clone(room[:ICMPError(room, six(ExtHopByHop, options(ProtoUDP), ports(1, 2, 4)), six6,
		ICMPFields{Type: ICMPv6TimeExceeded})]))
	f.Add(bytes.Clone(room[:PortUnreachable(room, six(ProtoFragment, fragment(ProtoUDP, 0, true, 1), ports(1, 2, 4)),
		six6)]))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		fixHeader(b)
		var p Info
		if p.Parse(b) != drop.Accept {
			if _, d := QuotedFlow(b); d == drop.Accept {
				t.Fatal("accepted, but no packet")
			}
			return
		}
		m := b[p.Offset:p.Len]
		switch p.Flow.Proto {
		case ProtoICMP:
			m[2], m[3] = 0, 0
			binary.BigEndian.PutUint16(m[2:], Checksum(m))
		case ProtoICMPv6:
			m[2], m[3] = 0, 0
			binary.BigEndian.PutUint16(m[2:], plainChecksum(b, ProtoICMPv6, m))
		}
		q, d := QuotedFlow(b)
		if d != drop.Accept {
			if q != (Quoted{}) {
				t.Fatalf("%v, but %+v", d, q)
			}
			return
		}
		if q.Offset != p.Offset+8 || q.Payload <= q.Offset || q.Payload > p.Len || q.Flow.Src != p.Flow.Dst ||
			q.MTU > MaxLen || q.MTU != 0 && !q.TooBig() {
			t.Fatalf("%+v of %+v", q, p)
		}
		if q.Flow.SrcPort != 0 && q.Flow.SrcPort != binary.BigEndian.Uint16(b[q.Payload:]) {
			t.Fatalf("%+v", q)
		}
		// As soon as what is quoted is a whole packet, Parse reads the same in it.
		in := b[q.Offset:p.Len]
		var i Info
		fixHeader(in)
		if i.Parse(in) == drop.Accept && (i.Flow != q.Flow || i.Offset != q.Payload-q.Offset) {
			t.Fatalf("%+v, but parsed %+v", q, i)
		}
	})
}

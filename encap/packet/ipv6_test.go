package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"vstun/encap/packet/drop"
)

var (
	client6 = netip.MustParseAddr("2001:db8::7")
	vip6    = netip.MustParseAddr("2001:db8:80::80")
)

// six is an IPv6 packet from the client to the VIP, next the protocol of the first of parts.
func six(next byte, parts ...[]byte) IPv6 {
	b := append(make(IPv6, IPv6HeaderLen), slices.Concat(parts...)...)
	IPv6(b).Encode(IPv6Fields{
		TrafficClass: 0xb8, TotalLen: len(b), HopLimit: 63, NextHeader: next, Src: client6.As16(), Dst: vip6.As16(),
	})
	return b
}

// Extension headers, next the protocol behind each.

func options(next byte, o ...byte) []byte {
	b := append([]byte{next, 0}, o...)
	for len(b)%8 != 0 {
		b = append(b, optPad1)
	}
	b[1] = byte(len(b)/8 - 1)
	return b
}

func routing(next, kind, left byte) []byte {
	return []byte{next, 2, kind, left, 0, 0, 0, 0, 23: 1}
}

func fragment(next byte, offset int, more bool, id uint32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, uint16(offset))
	if more {
		b[3] |= 1
	}
	return binary.BigEndian.AppendUint32(b, id)
}

func auth(next byte, n int) []byte {
	b := make([]byte, n)
	b[0], b[1] = next, byte(n/4-2)
	return b
}

// plainChecksum is the checksum of the upper-layer message t of packet h, as RFC 8200, section 8.1, draws it; with the
// checksum in place it is 0.
func plainChecksum(h IPv6, proto byte, t []byte) uint16 {
	b := slices.Concat(h[8:40], binary.BigEndian.AppendUint32(nil, uint32(len(t))), []byte{0, 0, 0, proto}, t)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	sum := 0
	for i := 0; i < len(b); i += 2 {
		sum += int(b[i])<<8 | int(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func ports(from, to uint16, rest int) []byte {
	return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to), make([]byte, rest)...)
}

func tcp6(port uint16) IPv6 {
	t := ports(4711, port, 21)
	t[12], t[13] = 0x50, FlagSYN|FlagACK
	b := six(ProtoTCP, t)
	binary.BigEndian.PutUint16(b[IPv6HeaderLen+TCPChecksumAt:], plainChecksum(b, ProtoTCP, b[IPv6HeaderLen:]))
	return b
}

func TestIPv6View(t *testing.T) {
	h := IPv6{0x6a, 0xbc, 0xde, 0xf1, 0x12, 0x34, 17, 64, 39: 9}
	h[8], h[24] = 0x20, 0xfd
	if h.Version() != 6 || h.TrafficClass() != 0xab || h.FlowLabel() != 0xcdef1 || h.PayloadLen() != 0x1234 ||
		h.TotalLen() != 0x1234+40 ||
		h.NextHeader() != 17 || h.HopLimit() != 64 || h.Src() != netip.MustParseAddr("2000::") ||
		h.Dst() != netip.MustParseAddr("fd00::9") {
		t.Errorf("%x", h)
	}
	h.SetTrafficClass(0x5e)
	h.SetPayloadLen(7)
	if !bytes.Equal(h[:8], []byte{0x65, 0xec, 0xde, 0xf1, 0, 7, 17, 64}) || h.TrafficClass() != 0x5e {
		t.Errorf("%x", h[:8])
	}
	b := six(ProtoUDP, make([]byte, 8))
	if b.Version() != 6 || b.TrafficClass() != 0xb8 || b.FlowLabel() != 0 || b.TotalLen() != 48 || b.HopLimit() != 63 ||
		b.Src() != client6 || b.Dst() != vip6 {
		t.Errorf("%x", b)
	}
}

func TestParse6(t *testing.T) {
	b := tcp6(80)
	var p Info
	if d := p.Parse(append(bytes.Clone(b), 0, 0, 0)); d != drop.Accept { // padding of a link
		t.Fatal(d)
	}
	want := Info{Len: len(b), Offset: 40, TCPFlags: FlagSYN | FlagACK, DF: true,
		Flow: Flow{Proto: ProtoTCP, SrcPort: 4711, DstPort: 80, Src: client6, Dst: vip6}}
	if p != want {
		t.Errorf("got %+v, want %+v", p, want)
	}
	if s := p.Flow.String(); s != "tcp [2001:db8::7]:4711 -> [2001:db8:80::80]:80" {
		t.Error(s)
	}
	if r := p.Flow.Reverse(); r != (Flow{Proto: ProtoTCP, SrcPort: 80, DstPort: 4711, Src: vip6, Dst: client6}) ||
		r.Reverse() != p.Flow {
		t.Error(r)
	}
	b = six(ExtHopByHop, options(extDestOpts), options(ProtoSCTP), ports(1, 2, 8), []byte{ChunkInit, 0, 0, 4})
	if d := p.Parse(b); d != drop.Accept || p.Offset != 56 || p.SCTPChunk != ChunkInit || p.Flow.DstPort != 2 ||
		p.TCPFlags != 0 {
		t.Errorf("%v %+v", d, p)
	}
	if d := p.Parse(six(ProtoICMPv6, []byte{ICMPv6Echo, 0, 0, 0, 1, 2, 3, 4})); d != drop.Accept ||
		p.Flow.Proto != ProtoICMPv6 ||
		p.Flow.SrcPort != 0 || p.SCTPChunk != 0 {
		t.Errorf("%v %+v", d, p)
	}
	if s := ProtoName(ProtoICMPv6); s != "icmpv6" {
		t.Error(s)
	}
}

func TestParse6Refuses(t *testing.T) {
	udp := six(ProtoUDP, ports(1, 2, 4))
	edit := func(fn func(IPv6)) []byte {
		c := bytes.Clone(udp)
		fn(c)
		return c
	}
	for name, c := range map[string]struct {
		b    []byte
		want drop.Reason
	}{
		"one byte":          {[]byte{0x60}, drop.Truncated},
		"39 bytes":          {udp[:39], drop.Truncated},
		"cut":               {udp[:47], drop.Truncated},
		"longer than there": {edit(func(h IPv6) { h.SetPayloadLen(9) }), drop.Truncated},
		"UDP of 7 bytes":    {edit(func(h IPv6) { h.SetPayloadLen(7) }), drop.Truncated},
		"no payload":        {edit(func(h IPv6) { h.SetPayloadLen(0) }), drop.Truncated},
		"TCP of 19 bytes":   {six(ProtoTCP, make([]byte, 19)), drop.Truncated},
		"TCP of 20 bytes":   {six(ProtoTCP, make([]byte, 20)), drop.Accept},
		"SCTP of 15 bytes":  {six(ProtoSCTP, make([]byte, 15)), drop.Truncated},
		"ICMPv6 of 7 bytes": {six(ProtoICMPv6, make([]byte, 7)), drop.Truncated},
		"mapped source": {edit(func(h IPv6) {
			copy(h[8:],
				"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff")
		}), drop.BadHeader},
		"mapped destination": {edit(func(h IPv6) {
			copy(h[24:],
				"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff")
		}), drop.BadHeader},
		"not quite mapped": {edit(func(h IPv6) {
			copy(h[8:],
				"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\xff\xff")
		}), drop.Accept},
		"IPv4's ICMP":           {six(ProtoICMP, make([]byte, 8)), drop.Protocol},
		"unknown protocol":      {six(200), drop.Accept},
		"no next header":        {six(protoNoNext), drop.Accept},
		"ESP":                   {six(protoESP, []byte{1}), drop.Accept},
		"fragment":              {six(ProtoFragment, fragment(ProtoUDP, 0, true, 1), ports(1, 2, 4)), drop.Fragment},
		"last fragment":         {six(ProtoFragment, fragment(ProtoUDP, 8, false, 1), []byte{0}), drop.Fragment},
		"atomic fragment":       {six(ProtoFragment, fragment(ProtoUDP, 0, false, 1), ports(1, 2, 4)), drop.Accept},
		"source route":          {six(extRouting, routing(ProtoUDP, 0, 1), ports(1, 2, 4)), drop.SourceRoute},
		"ended source route":    {six(extRouting, routing(ProtoUDP, 0, 0), ports(1, 2, 4)), drop.SourceRoute},
		"segment routing":       {six(extRouting, routing(ProtoUDP, 4, 1), ports(1, 2, 4)), drop.SourceRoute},
		"ended segment routing": {six(extRouting, routing(ProtoUDP, 4, 0), ports(1, 2, 4)), drop.Accept},
		"late hop-by-hop": {six(extDestOpts, options(ExtHopByHop), options(ProtoUDP), ports(1, 2, 4)),
			drop.BadHeader},
		"two fragment headers": {six(ProtoFragment, fragment(ProtoFragment, 0, false, 1), fragment(ProtoUDP, 0, false,
			1), ports(1, 2, 4)), drop.BadHeader},
		"extension of 7 bytes": {six(extDestOpts, options(ProtoUDP)[:7]), drop.Truncated},
		"extension beyond end": {six(extDestOpts, []byte{ProtoUDP, 1, 0, 0, 0, 0, 0, 0}), drop.Truncated},
		"nothing behind it":    {six(extDestOpts, options(ProtoUDP)), drop.Truncated},
		"option beyond its end": {six(extDestOpts, options(ProtoUDP, 1, 5, 0, 0, 0, 0), ports(1, 2, 4)),
			drop.BadHeader},
		"option of one byte": {six(extDestOpts, options(ProtoUDP, 1, 3, 0, 0, 0, 1), ports(1, 2, 4)),
			drop.BadHeader},
		"jumbogram": {six(ExtHopByHop, options(ProtoUDP, optJumbo, 4, 0, 1, 0, 0), ports(1, 2, 4)),
			drop.BadHeader},
		"unknown option": {six(ExtHopByHop, options(ProtoUDP, 0x1e, 4, 0, 1, 0, 0), ports(1, 2, 4)), drop.Accept},
		"AH":             {six(extAuth, auth(ProtoUDP, 24), ports(1, 2, 4)), drop.Accept},
		"AH of 12 bytes": {six(extAuth, auth(ProtoUDP, 12), ports(1, 2, 4)), drop.BadHeader},
		"AH of 20 bytes": {six(extAuth, auth(ProtoUDP, 20), ports(1, 2, 4)), drop.BadHeader},
		"AH beyond end":  {six(extAuth, auth(ProtoUDP, 24)[:16]), drop.Truncated},
		"8 extension headers": {six(extDestOpts, slices.Concat(slices.Repeat(options(extDestOpts), 7),
			options(ProtoUDP), ports(1, 2, 4))), drop.Accept},
		"9 extension headers": {six(extDestOpts, slices.Concat(slices.Repeat(options(extDestOpts), 8),
			options(ProtoUDP), ports(1, 2, 4))), drop.BadHeader},
		"first without all heads": {six(ProtoFragment, fragment(extDestOpts, 0, true, 1),
			[]byte{ProtoUDP, 1, 0, 0, 0, 0, 0, 0}), drop.Truncated},
	} {
		var p Info
		if got := p.Parse(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if c.want == drop.BadHeader || c.want == drop.SourceRoute {
			if got := IPv6(c.b).Check(); got != c.want {
				t.Errorf("%s: Check says %v, want %v", name, got, c.want)
			}
		}
	}
	if d := IPv6(tcpPacket(t)).Check(); d != drop.NotIPv4 {
		t.Error("IPv4:", d)
	}
}

func TestTransport(t *testing.T) {
	for name, c := range map[string]struct {
		b    IPv6
		want Transport
	}{
		"plain": {tcp6(80), Transport{Proto: ProtoTCP, Offset: 40}},
		"all": {six(ExtHopByHop, options(extDestOpts),
			options(extRouting, append([]byte{1, 12}, make([]byte, 12)...)...), routing(ProtoFragment, 3, 0),
			fragment(extAuth, 0, true, 0xdeadbeef),
			auth(extDestOpts, 24), options(ProtoUDP), ports(1, 2, 4)),
			Transport{Proto: ProtoUDP, Offset: 40 + 8 + 16 + 24 + 8 + 24 + 8, Fragment: true,
				FragHeader: 88, FragName: 64, FragProto: extAuth, FragID: 0xdeadbeef, More: true}},
		"atomic": {six(ProtoFragment, fragment(ProtoUDP, 0, false, 5), ports(1, 2, 4)),
			Transport{Proto: ProtoUDP, Offset: 48, FragHeader: 40, FragName: 6, FragProto: ProtoUDP, FragID: 5}},
		"later": {six(ProtoFragment, fragment(extDestOpts, 1400, true, 5), make([]byte, 8)), // no header, but data
			Transport{Proto: extDestOpts, Offset: 48, Fragment: true,
				FragHeader: 40, FragName: 6, FragProto: extDestOpts, FragOffset: 1400, FragID: 5, More: true}},
		"ESP": {six(extDestOpts, options(protoESP), []byte{1, 2, 3}), Transport{Proto: protoESP, Offset: 48}},
		"end": {six(extDestOpts, options(protoNoNext)), Transport{Proto: protoNoNext, Offset: 48}},
	} {
		if got, d := c.b.Transport(); d != drop.Accept || got != c.want {
			t.Errorf("%s: %v %+v, want %+v", name, d, got, c.want)
		}
	}
}

func TestParseFragment(t *testing.T) {
	four := func(field uint16, n int) []byte {
		b := make(IPv4, 20+n)
		IPv4(b).Encode(IPv4Fields{
			TotalLen: len(b), TTL: 64, Protocol: ProtoUDP, Src: [4]byte{192, 0, 2, 1}, Dst: [4]byte{198, 51, 100, 80},
		})
		binary.BigEndian.PutUint16(b[4:], 0xabcd)
		binary.BigEndian.PutUint16(b[6:], field)
		b.SetChecksum()
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want Fragment
	}{
		"first":          {four(flagMF, 16), Fragment{0xabcd, 0, true, ProtoUDP}},
		"middle":         {four(flagMF|2, 16), Fragment{0xabcd, 16, true, ProtoUDP}},
		"last":           {four(4, 3), Fragment{0xabcd, 32, false, ProtoUDP}},
		"whole":          {four(flagDF, 16), Fragment{}},
		"middle of 15":   {four(flagMF|2, 15), Fragment{}},
		"empty":          {four(4, 0), Fragment{}},
		"to the end":     {four(8189, 3), Fragment{0xabcd, 65512, false, ProtoUDP}},
		"beyond the end": {four(8189, 4), Fragment{}},
		"short":          {four(flagMF, 16)[:30], Fragment{}},
		"nothing":        {nil, Fragment{}},
		"6, first": {six(ProtoFragment, fragment(ProtoUDP, 0, true, 0xabcdef01), make([]byte, 16)),
			Fragment{0xabcdef01, 0, true, ProtoUDP}},
		"6, last": {six(ProtoFragment, fragment(ProtoUDP, 1400, false, 1), make([]byte, 3)),
			Fragment{1, 1400, false, ProtoUDP}},
		"6, atomic":       {six(ProtoFragment, fragment(ProtoUDP, 0, false, 1), make([]byte, 8)), Fragment{}},
		"6, whole":        {tcp6(80), Fragment{}},
		"6, middle of 15": {six(ProtoFragment, fragment(ProtoUDP, 8, true, 1), make([]byte, 15)), Fragment{}},
		"6, empty":        {six(ProtoFragment, fragment(ProtoUDP, 8, false, 1)), Fragment{}},
		"6, to the end": {six(ProtoFragment, fragment(ProtoUDP, 65528, false, 1), make([]byte, 7)),
			Fragment{1, 65528, false, ProtoUDP}},
		"6, beyond the end": {six(ProtoFragment, fragment(ProtoUDP, 65528, false, 1), make([]byte, 8)), Fragment{}},
		"6, beyond, by header": {six(extDestOpts, options(ProtoFragment), fragment(ProtoUDP, 65528, false, 1),
			make([]byte, 1)), Fragment{}},
		"6, headers behind": {six(ExtHopByHop, options(ProtoFragment), fragment(extDestOpts, 0, true, 1),
			options(ProtoUDP), ports(1, 2, 4)),
			Fragment{1, 0, true, extDestOpts}},
	} {
		if got, ok := ParseFragment(c.b); got != c.want || ok != (c.want != Fragment{}) {
			t.Errorf("%s: %+v %v, want %+v", name, got, ok, c.want)
		}
	}
}

func TestPseudoSum6(t *testing.T) {
	b := tcp6(443)
	if plainChecksum(b, ProtoTCP, b[40:]) != 0 || Fold(Sum(b[40:], b.PseudoSum(ProtoTCP, len(b)-40))) != 0xffff {
		t.Error("the sum of a right packet is not 0xffff")
	}
}

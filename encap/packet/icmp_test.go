package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap/packet/drop"
)

var vip4 = netip.MustParseAddr("198.51.100.80")

// icmp6 is an ICMPv6 message from the client to the VIP, with a right checksum.
func icmp6(kind, code byte, rest ...byte) IPv6 {
	b := six(ProtoICMPv6, append([]byte{kind, code, 0, 0}, rest...))
	binary.BigEndian.PutUint16(b[42:], plainChecksum(b, ProtoICMPv6, b[40:]))
	return b
}

func TestEchoReply6(t *testing.T) {
	request := icmp6(ICMPv6Echo, 0, 0, 77, 0, 3, 'o', 'd', 'd')
	request[3] = 0x11 // a flow label
	b := bytes.Clone(request)
	if d := EchoReply(b); d != drop.Accept {
		t.Fatal(d)
	}
	h := IPv6(b)
	if h.Check() != drop.Accept || h.Src() != vip6 || h.Dst() != client6 || h.HopLimit() != 64 ||
		h.TrafficClass() != 0xb8 ||
		h.FlowLabel() != 0 ||
		plainChecksum(h, ProtoICMPv6, b[40:]) != 0 || !bytes.Equal(b[44:], request[44:]) || b[40] != ICMPv6EchoReply ||
		b[41] != 0 {
		t.Errorf("answer is %x", b)
	}
	b = bytes.Clone(request)
	b[len(b)-1]++
	if d := EchoReply(b); d != drop.BadChecksum {
		t.Errorf("a damaged request: %v", d)
	}
	for name, b := range map[string][]byte{
		"a reply":                icmp6(ICMPv6EchoReply, 0, 0, 77, 0, 3),
		"code 1":                 icmp6(ICMPv6Echo, 1, 0, 77, 0, 3),
		"with extension headers": six(extDestOpts, options(ProtoICMPv6), request[40:]),
	} {
		if d := EchoReply(b); d != drop.ICMP {
			t.Errorf("%s: %v", name, d)
		}
	}
}

// TestICMPErrors: each maker's type, code and third field, its source, and the quote of small and large packets.
func TestICMPErrors(t *testing.T) {
	room := make([]byte, ICMPRoom)
	for _, size := range []int{0, 100, 519, 520, 521, 1183, 1184, 1185, 1472, 60000} {
		four := build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP}, &layers.UDP{SrcPort: 9, DstPort: 80},
			gopacket.Payload(make([]byte, size)))
		six := []byte(six(ProtoUDP, ports(9, 80, 4+size)))
		for _, c := range []struct {
			name string
			b    []byte
			put  func(b []byte, from netip.Addr) int
			want [8]byte // but for the checksum
		}{
			{"fragmentation needed", four, func(b []byte, from netip.Addr) int {
				return FragmentationNeeded(room, b,
					from, 1480)
			}, [8]byte{3, 4, 6: 5, 7: 0xc8}},
			{"too big", six, func(b []byte, from netip.Addr) int { return PacketTooBig(room, b, from, 70000) },
				[8]byte{2, 5: 1, 6: 0x11, 7: 0x70}},
			{"port unreachable", four, func(b []byte, from netip.Addr) int { return PortUnreachable(room, b, from) },
				[8]byte{3, 3}},
			{"port unreachable", six, func(b []byte, from netip.Addr) int { return PortUnreachable(room, b, from) },
				[8]byte{1, 4}},
			{"another", four,
				func(b []byte, from netip.Addr) int { return ICMPError(room, b, from, ICMPFields{12, 1, 7 << 24}) },
				[8]byte{12, 1, 4: 7}},
		} {
			from := vip4
			if c.b[0]>>4 == 6 {
				from = vip6
			}
			for i := range room {
				room[i] = 0xee
			}
			e := room[:c.put(c.b, from)]
			checkError(t, e, append(c.b, 1, 2, 3)) // behind the packet: not to be quoted
			var p Info
			p.Parse(e)
			got := [8]byte(e[p.Offset:])
			got[2], got[3] = 0, 0
			if got != c.want || p.Flow.Src != from {
				t.Errorf("%s, %d bytes: %x from %v, want %x", c.name, size, got, p.Flow.Src, c.want)
			}
			if tos := e[1]; from == vip4 && tos != 0xc0 || from == vip6 && tos != 0 {
				t.Errorf("%s: TOS %02x", c.name, tos)
			}
		}
	}
}

func TestMayAnswer(t *testing.T) {
	four := func(src, dst string, proto byte, frag uint16, payload ...byte) []byte {
		b := append(make(IPv4, IPv4HeaderLen), payload...)
		IPv4(b).Encode(IPv4Fields{
			TotalLen: len(b), TTL: 64, Protocol: proto, Src: netip.MustParseAddr(src).As4(),
			Dst: netip.MustParseAddr(dst).As4(),
		})
		binary.BigEndian.PutUint16(b[6:], frag)
		b.SetChecksum()
		return b
	}
	between := func(src, dst string) []byte {
		b := tcp6(80)
		from, to := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
		copy(b[8:], from[:])
		copy(b[24:], to[:])
		return b
	}
	const a, v = "192.0.2.1", "198.51.100.80"
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"UDP":                       {four(a, v, ProtoUDP, 0, ports(1, 2, 4)...), true},
		"unknown protocol":          {four(a, v, 200, 0), true},
		"first fragment":            {four(a, v, ProtoUDP, flagMF, ports(1, 2, 4)...), true},
		"later fragment":            {four(a, v, ProtoUDP, 1, ports(1, 2, 4)...), false},
		"echo request":              {four(a, v, ProtoICMP, 0, 8, 0, 0, 0), true},
		"timestamp":                 {four(a, v, ProtoICMP, 0, 13, 0, 0, 0), true},
		"unreachable":               {four(a, v, ProtoICMP, 0, 3, 0, 0, 0), false},
		"redirect":                  {four(a, v, ProtoICMP, 0, 5, 0, 0, 0), false},
		"parameter problem":         {four(a, v, ProtoICMP, 0, 12, 0, 0, 0), false},
		"unknown ICMP":              {four(a, v, ProtoICMP, 0, 99, 0, 0, 0), false},
		"ICMP of no bytes":          {four(a, v, ProtoICMP, 0), false},
		"from 0.0.0.0":              {four("0.0.0.0", v, ProtoUDP, 0), false},
		"from loopback":             {four("127.0.0.1", v, ProtoUDP, 0), false},
		"from multicast":            {four("224.0.0.1", v, ProtoUDP, 0), false},
		"from broadcast":            {four("255.255.255.255", v, ProtoUDP, 0), false},
		"from class E":              {four("240.0.0.1", v, ProtoUDP, 0), false},
		"to multicast":              {four(a, "239.1.2.3", ProtoUDP, 0), false},
		"to broadcast":              {four(a, "255.255.255.255", ProtoUDP, 0), false},
		"half a header":             {four(a, v, ProtoUDP, 0)[:10], false},
		"nothing":                   {nil, false},
		"6, TCP":                    {tcp6(80), true},
		"6, no next header":         {six(protoNoNext), true},
		"6, first fragment":         {six(ProtoFragment, fragment(ProtoUDP, 0, true, 1), ports(1, 2, 4)), true},
		"6, later fragment":         {six(ProtoFragment, fragment(ProtoUDP, 8, false, 1), ports(1, 2, 4)), false},
		"6, echo request":           {icmp6(ICMPv6Echo, 0, 0, 0, 0, 0), true},
		"6, unreachable":            {icmp6(ICMPv6Unreachable, 0, 0, 0, 0, 0), false},
		"6, unknown error":          {icmp6(127, 0, 0, 0, 0, 0), false},
		"6, redirect":               {icmp6(icmp6Redirect, 0, 0, 0, 0, 0), false},
		"6, error behind options":   {six(extDestOpts, options(ProtoICMPv6), []byte{ICMPv6TooBig, 0, 0, 0}), false},
		"6, error as fragment":      {six(ProtoFragment, fragment(ProtoICMPv6, 0, true, 1), make([]byte, 8)), false},
		"6, ICMPv6 of no bytes":     {six(ProtoICMPv6), false},
		"6, from ::":                {between("::", "2001:db8::1"), false},
		"6, from ::1":               {between("::1", "2001:db8::1"), false},
		"6, from multicast":         {between("ff02::1", "2001:db8::1"), false},
		"6, to multicast":           {between("2001:db8::1", "ff02::1"), false},
		"6, from a mapped address":  {between("::ffff:192.0.2.1", "2001:db8::1"), false},
		"6, from a compatible one":  {between("::192.0.2.1", "2001:db8::1"), true},
		"6, source route":           {six(extRouting, routing(ProtoUDP, 0, 1), ports(1, 2, 4)), false},
		"6, shorter than it should": {tcp6(80)[:50], false},
	} {
		if got := MayAnswer(c.b); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestQuotedFlow: errors about a realserver's answer from the VIP, as routers towards the client send them.
func TestQuotedFlow(t *testing.T) {
	room := make([]byte, ICMPRoom)
	router4, router6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ff::1")
	client := netip.MustParseAddr("192.0.2.1")
	answer4 := build(t, &layers.IPv4{Protocol: layers.IPProtocolTCP, SrcIP: vip4.AsSlice(), DstIP: client.AsSlice()},
		&layers.TCP{SrcPort: 80, DstPort: 4711}, gopacket.Payload(make([]byte, 1000)))
	reversed := func(b IPv6) IPv6 {
		src, dst := b.Src().As16(), b.Dst().As16()
		copy(b[8:], dst[:])
		copy(b[24:], src[:])
		return b
	}
	answer6 := reversed(six(ProtoTCP, ports(80, 4711, 1000)))
	flow4 := Flow{Src: vip4, Dst: client, SrcPort: 80, DstPort: 4711, Proto: ProtoTCP}
	flow6 := Flow{Src: vip6, Dst: client6, SrcPort: 80, DstPort: 4711, Proto: ProtoTCP}
	about := func(b []byte, kind, code uint8, rest uint32) []byte {
		from := router4
		if b[0]>>4 == 6 {
			from = router6
		}
		return bytes.Clone(room[:ICMPError(room, b, from, ICMPFields{kind, code, rest})])
	}
	fix := func(b []byte) []byte { // after the ICMP message has been changed or cut
		if b[0]>>4 == 6 {
			IPv6(b).SetPayloadLen(len(b) - 40)
			b[42], b[43] = 0, 0
			binary.BigEndian.PutUint16(b[42:], plainChecksum(b, ProtoICMPv6, b[40:]))
			return b
		}
		IPv4(b).SetTotalLen(len(b))
		IPv4(b).SetChecksum()
		b[22], b[23] = 0, 0
		binary.BigEndian.PutUint16(b[22:], Checksum(b[20:]))
		return b
	}
	edit := func(b []byte, fn func(b []byte)) []byte { fn(b); return b }
	quote4, quote6 := about(answer4, 3, 4, 1400), about(answer6, 2, 0, 1280)
	for name, c := range map[string]struct {
		b    []byte
		want Quoted
		drop drop.Reason
	}{
		"fragmentation needed": {quote4, Quoted{flow4, 3, 4, 1400, 28, 48}, drop.Accept},
		"of an old router":     {about(answer4, 3, 4, 0), Quoted{flow4, 3, 4, 0, 28, 48}, drop.Accept},
		"port unreachable":     {about(answer4, 3, 3, 1400), Quoted{flow4, 3, 3, 0, 28, 48}, drop.Accept},
		"source quench":        {about(answer4, 4, 0, 0), Quoted{flow4, 4, 0, 0, 28, 48}, drop.Accept},
		"time exceeded":        {about(answer4, 11, 0, 0), Quoted{flow4, 11, 0, 0, 28, 48}, drop.Accept},
		"quote of 24 bytes":    {fix(bytes.Clone(quote4[:52])), Quoted{flow4, 3, 4, 1400, 28, 48}, drop.Accept},
		"quote of 23 bytes":    {fix(bytes.Clone(quote4[:51])), Quoted{}, drop.Truncated},
		"quote of 19 bytes":    {fix(bytes.Clone(quote4[:47])), Quoted{}, drop.Truncated},
		"no quote":             {fix(bytes.Clone(quote4[:28])), Quoted{}, drop.Truncated},
		"ICMP of 7 bytes":      {fix(bytes.Clone(quote4[:27])), Quoted{}, drop.Truncated},
		"cut":                  {quote4[:100], Quoted{}, drop.Truncated},
		"checksum":             {edit(bytes.Clone(quote4), func(b []byte) { b[100]++ }), Quoted{}, drop.BadChecksum},
		"redirect":             {about(answer4, 5, 0, 0), Quoted{}, drop.ICMP},
		"echo":                 {about(answer4, 8, 0, 0), Quoted{}, drop.ICMP},
		"TCP":                  {answer4, Quoted{}, drop.ICMP},
		"quotes IPv6": {fix(edit(bytes.Clone(quote4), func(b []byte) { b[28] = 0x65 })), Quoted{},
			drop.BadHeader},
		"quotes header of 16": {fix(edit(bytes.Clone(quote4), func(b []byte) { b[28] = 0x44 })), Quoted{},
			drop.BadHeader},
		"quotes long header": {fix(edit(bytes.Clone(quote4[:60]), func(b []byte) { b[28] = 0x4f })), Quoted{},
			drop.Truncated},
		"quotes fragment": {fix(edit(bytes.Clone(quote4), func(b []byte) { b[35] = 1 })), Quoted{}, drop.Fragment},
		"quotes the first": {fix(edit(bytes.Clone(quote4), func(b []byte) { b[34] = 0x20 })),
			Quoted{flow4, 3, 4, 1400, 28, 48}, drop.Accept},
		"from another VIP": {fix(edit(bytes.Clone(quote4), func(b []byte) { b[43]++ })), Quoted{}, drop.ICMP},
		"is a fragment": {fix(edit(bytes.Clone(quote4), func(b []byte) { b[6] = 0x20 })), Quoted{},
			drop.Fragment},
		"quotes options": {about(build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP, SrcIP: vip4.AsSlice(),
			DstIP:   client.AsSlice(),
			Options: []layers.IPv4Option{{OptionType: 1}}}, &layers.UDP{SrcPort: 53, DstPort: 5}), 3, 1, 0),
			Quoted{Flow{vip4, client, 53, 5, ProtoUDP}, 3, 1, 0, 28, 52}, drop.Accept},
		"quotes a tunnel": {fix(edit(bytes.Clone(quote4[:48]), func(b []byte) { b[37] = ProtoIPIP })),
			Quoted{Flow{Src: vip4, Dst: client, Proto: ProtoIPIP}, 3, 4, 1400, 28, 48}, drop.Accept},

		"6, too big":           {quote6, Quoted{flow6, 2, 0, 1280, 48, 88}, drop.Accept},
		"6, MTU out of reason": {about(answer6, 2, 0, 0xffffffff), Quoted{flow6, 2, 0, MaxLen, 48, 88}, drop.Accept},
		"6, unreachable":       {about(answer6, 1, 3, 7), Quoted{flow6, 1, 3, 0, 48, 88}, drop.Accept},
		"6, time exceeded":     {about(answer6, 3, 0, 7), Quoted{flow6, 3, 0, 0, 48, 88}, drop.Accept},
		"6, parameter problem": {about(answer6, 4, 1, 40), Quoted{flow6, 4, 1, 0, 48, 88}, drop.Accept},
		"6, unknown error":     {about(answer6, 5, 0, 0), Quoted{}, drop.ICMP},
		"6, echo":              {about(answer6, 128, 0, 0), Quoted{}, drop.ICMP},
		"6, TCP":               {answer6, Quoted{}, drop.ICMP},
		"6, quote of 44 bytes": {fix(bytes.Clone(quote6[:92])), Quoted{flow6, 2, 0, 1280, 48, 88}, drop.Accept},
		"6, quote of 43 bytes": {fix(bytes.Clone(quote6[:91])), Quoted{}, drop.Truncated},
		"6, quote of 39 bytes": {fix(bytes.Clone(quote6[:87])), Quoted{}, drop.Truncated},
		"6, ICMPv6 of 7 bytes": {fix(bytes.Clone(quote6[:47])), Quoted{}, drop.Truncated},
		"6, checksum":          {edit(bytes.Clone(quote6), func(b []byte) { b[100]++ }), Quoted{}, drop.BadChecksum},
		"6, quotes IPv4": {fix(edit(bytes.Clone(quote6), func(b []byte) { b[48] = 0x45 })), Quoted{},
			drop.BadHeader},
		"6, from another VIP": {fix(edit(bytes.Clone(quote6), func(b []byte) { b[71]++ })), Quoted{}, drop.ICMP},
		"6, quotes mapped": {fix(edit(bytes.Clone(quote6), func(b []byte) {
			copy(b[72:], make([]byte, 10))
			b[82],
				b[83] = 0xff, 0xff
		})),
			Quoted{}, drop.BadHeader},
		"6, is a fragment": {reversed(six(ProtoFragment, fragment(ProtoICMPv6, 0, true, 1), quote6[40:])), Quoted{},
			drop.Fragment},
		"6, quotes a fragment": {about(reversed(six(ProtoFragment, fragment(ProtoTCP, 8, true, 1),
			ports(80, 4711, 100))), 3, 0, 0), Quoted{}, drop.Fragment},
		"6, quotes source rout": {about(reversed(six(extRouting, routing(ProtoTCP, 0, 1), ports(80, 4711, 100))), 3, 0,
			0), Quoted{}, drop.SourceRoute},
		"6, quotes headers": {about(reversed(six(extDestOpts, options(ProtoFragment), fragment(ProtoTCP, 0, true, 1),
			ports(80, 4711, 100))), 3, 0, 0),
			Quoted{flow6, 3, 0, 0, 48, 48 + 56}, drop.Accept},
		"6, headers end outside": {fix(about(reversed(six(extDestOpts, options(extDestOpts), options(ProtoTCP),
			ports(80, 4711, 100))), 3, 0, 0)[:48+52]),
			Quoted{}, drop.Truncated},
		"6, quotes ICMPv6": {about(reversed(icmp6(ICMPv6EchoReply, 0, 0, 0, 0, 1)), 1, 0, 0),
			Quoted{Flow{Src: vip6, Dst: client6, Proto: ProtoICMPv6}, 1, 0, 0, 48, 88}, drop.Accept},
		"nothing": {nil, Quoted{}, drop.Truncated},
	} {
		got, d := QuotedFlow(c.b)
		if d != c.drop || got != c.want {
			t.Errorf("%s: %v %+v, want %v %+v", name, d, got, c.drop, c.want)
		}
		if d == drop.Accept {
			if big := got.Type == 2 && got.Flow.Src.Is6() || got.Type == 3 && got.Code == 4; got.TooBig() != big {
				t.Errorf("%s: too big is %v", name, got.TooBig())
			}
		}
	}
	if got, _ := QuotedFlow(quote4); got.Flow.Reverse() != (Flow{Src: client, Dst: vip4, SrcPort: 4711, DstPort: 80,
		Proto: ProtoTCP}) {
		t.Error("the client's direction is", got.Flow.Reverse())
	}
}

// TestNoAllocations: the functions that a worker calls for a packet, and for an error, do not allocate.
func TestNoAllocations(t *testing.T) {
	four, room := tcpPacket(t), make([]byte, ICMPRoom)
	chain := []byte(six(ExtHopByHop, options(ProtoFragment), fragment(ProtoTCP, 0, false, 1), tcp6(80)[40:]))
	quote4 := bytes.Clone(room[:FragmentationNeeded(room, four, vip4, 1400)])
	quote6 := bytes.Clone(room[:PacketTooBig(room, chain, vip6, 1400)])
	var p Info
	n := testing.AllocsPerRun(100, func() {
		for _, b := range [][]byte{four, chain, quote4, quote6} {
			p.Parse(b)
			ParseFragment(b)
			QuotedFlow(b)
			MayAnswer(b)
		}
		PortUnreachable(room, four, vip4)
		PortUnreachable(room, chain, vip6)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestQuotedPacket: QuotedPacket reads the flow from the shortest quote of an ICMP error, and does not read past its
// end.
func TestQuotedPacket(t *testing.T) {
	four := build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP, Options: []layers.IPv4Option{{OptionType: 1}}},
		&layers.UDP{SrcPort: 9, DstPort: 80}, gopacket.Payload("hello"))
	for name, c := range map[string]struct {
		b       []byte
		payload int
	}{
		"IPv4":                        {four, 24},
		"IPv6":                        {six(ProtoUDP, ports(9, 80, 9)), 40},
		"IPv6 with extension headers": {six(extDestOpts, options(ProtoUDP), ports(9, 80, 9)), 48},
	} {
		var whole Info
		if d := whole.Parse(c.b); d != drop.Accept {
			t.Fatal(d)
		}
		for n := range len(c.b) + 1 {
			q, d := QuotedPacket(c.b[:n])
			if want := n >= c.payload+4; (d == drop.Accept) != want {
				t.Errorf("%s, %d bytes: %v", name, n, d)
			} else if want && (q.Flow != whole.Flow || q.Payload != c.payload || q.Offset != 0) {
				t.Errorf("%s, %d bytes: %+v", name, n, q)
			}
		}
	}
	later := IPv4(append([]byte{}, four...))
	later[7] = 1
	for name, b := range map[string][]byte{"a later fragment": later, "version 5": {0x55, 39: 0},
		"an impossible header length": {0x44, 39: 0}} {
		if _, d := QuotedPacket(b); d == drop.Accept {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestEndOfTTL: a packet whose TTL or hop limit has ended is not forwarded.
func TestEndOfTTL(t *testing.T) {
	four := IPv4(build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP}, &layers.UDP{SrcPort: 9, DstPort: 80},
		gopacket.Payload("hello")))
	six := six(ProtoUDP, ports(9, 80, 9))
	var i Info
	for ttl, want := range map[byte]drop.Reason{0: drop.BadHeader, 1: drop.Accept, 255: drop.Accept} {
		four[8], six[7] = ttl, ttl
		four.SetChecksum()
		if d := i.Parse(four); d != want {
			t.Errorf("TTL %d: %v", ttl, d)
		}
		if d := i.Parse(six); d != want {
			t.Errorf("hop limit %d: %v", ttl, d)
		}
	}
}

// TestErrorKeepsTOS: an ICMP error has precedence 6, and the rest of the TOS that the packet had.
func TestErrorKeepsTOS(t *testing.T) {
	b := IPv4(build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP, TOS: 0x7f}, &layers.UDP{SrcPort: 9, DstPort: 80},
		gopacket.Payload("hello")))
	room := make([]byte, ICMPRoom)
	if n := PortUnreachable(room, b, vip4); IPv4(room[:n]).TOS() != 0xde {
		t.Errorf("TOS is %#x, want 0xde", IPv4(room[:n]).TOS())
	}
}

package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap/packet/drop"
)

// build makes a packet with gopacket, an implementation that has nothing in common with ours.
func build(t testing.TB, ip *layers.IPv4, rest ...gopacket.SerializableLayer) []byte {
	t.Helper()
	ip.Version = 4
	if ip.TTL == 0 {
		ip.TTL = 63
	}
	if ip.SrcIP == nil {
		ip.SrcIP, ip.DstIP = []byte{192, 0, 2, 1}, []byte{198, 51, 100, 80}
	}
	ls := []gopacket.SerializableLayer{ip}
	for _, l := range rest {
		switch l := l.(type) {
		case *layers.TCP:
			l.SetNetworkLayerForChecksum(ip)
		case *layers.UDP:
			l.SetNetworkLayerForChecksum(ip)
		}
		ls = append(ls, l)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func tcpPacket(t testing.TB) []byte {
	return build(t, &layers.IPv4{Protocol: layers.IPProtocolTCP, Flags: layers.IPv4DontFragment, TOS: 0xb8, Id: 7},
		&layers.TCP{SrcPort: 4711, DstPort: 80, SYN: true, ACK: true}, gopacket.Payload("hello"))
}

func TestParse(t *testing.T) {
	b := tcpPacket(t)
	var p Info
	if d := p.Parse(append(bytes.Clone(b), 0, 0, 0)); d != drop.Accept { // padding of a link
		t.Fatal(d)
	}
	want := Info{Len: len(b), Offset: 20, TCPFlags: FlagSYN | FlagACK, DF: true, Flow: Flow{Proto: ProtoTCP,
		SrcPort: 4711, DstPort: 80,
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("198.51.100.80")}}
	if p != want {
		t.Errorf("got %+v, want %+v", p, want)
	}
	if s := p.Flow.String(); s != "tcp 192.0.2.1:4711 -> 198.51.100.80:80" {
		t.Error(s)
	}
	b = build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP, Options: []layers.IPv4Option{{OptionType: 1},
		{OptionType: 1}, {OptionType: 1}, {OptionType: 0}}},
		&layers.UDP{SrcPort: 1, DstPort: 65535})
	if d := p.Parse(b); d != drop.Accept || p.Flow.SrcPort != 1 || p.Flow.DstPort != 65535 || p.Offset != 24 ||
		p.TCPFlags != 0 {
		t.Errorf("%v %+v", d, p)
	}
}

func TestParseRefuses(t *testing.T) {
	good := tcpPacket(t)
	udp := build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP}, &layers.UDP{SrcPort: 1, DstPort: 2})
	edit := func(b []byte, fix bool, fn func(IPv4)) []byte {
		c := IPv4(bytes.Clone(b))
		fn(c)
		if fix {
			c.SetChecksum()
		}
		return c
	}
	options := func(opts ...byte) []byte {
		b := make(IPv4, 20+len(opts)+8)
		copy(b, udp[:20])
		b[0] = byte(0x40 | (20+len(opts))/4)
		copy(b[20:], opts)
		b.SetTotalLen(len(b))
		b.SetChecksum()
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want drop.Reason
	}{
		"empty":             {nil, drop.Truncated},
		"19 bytes":          {good[:19], drop.Truncated},
		"cut":               {good[:len(good)-1], drop.Truncated},
		"version 5":         {edit(good, true, func(h IPv4) { h[0] = 0x55 }), drop.NotIPv4},
		"short version 5":   {edit(good[:24], true, func(h IPv4) { h[0] = 0x55 }), drop.NotIPv4},
		"ICMPv6":            {edit(good, true, func(h IPv4) { h[9] = ProtoICMPv6 }), drop.Protocol},
		"header of 16":      {edit(good, false, func(h IPv4) { h[0] = 0x44 }), drop.BadHeader},
		"total below head":  {edit(good, true, func(h IPv4) { h.SetTotalLen(19) }), drop.BadHeader},
		"head beyond end":   {edit(udp[:20], false, func(h IPv4) { h[0] = 0x4f; h.SetTotalLen(20) }), drop.BadHeader},
		"checksum":          {edit(good, false, func(h IPv4) { h[10]++ }), drop.BadChecksum},
		"more fragments":    {edit(good, true, func(h IPv4) { h[6] = 0x20 }), drop.Fragment},
		"last fragment":     {edit(good, true, func(h IPv4) { h[7] = 1 }), drop.Fragment},
		"TCP of 19 bytes":   {edit(good[:39], true, func(h IPv4) { h.SetTotalLen(39) }), drop.Truncated},
		"UDP of 7 bytes":    {edit(udp[:27], true, func(h IPv4) { h.SetTotalLen(27) }), drop.Truncated},
		"loose route":       {options(131, 3, 4, 0), drop.SourceRoute},
		"strict route":      {options(1, 137, 3, 4), drop.SourceRoute},
		"option of 0 bytes": {options(7, 0, 0, 0), drop.BadHeader},
		"option too long":   {options(7, 5, 0, 0), drop.BadHeader},
		"option cut":        {options(1, 1, 1, 7), drop.BadHeader},
		"end of options":    {options(0, 131, 3, 4), drop.Accept},
		"record route":      {options(7, 4, 4, 0), drop.Accept},
	} {
		var p Info
		if got := p.Parse(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestChecksumAgainstPlainSum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		b := make([]byte, rnd.IntN(400))
		for i := range b {
			b[i] = byte(rnd.Uint32())
			if rnd.IntN(3) == 0 {
				b[i] = 0xff
			}
		}
		var sum uint32
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
		for sum>>16 != 0 {
			sum = sum>>16 + sum&0xffff
		}
		if got := Checksum(b); got != ^uint16(sum) {
			t.Fatalf("%x: %04x, want %04x", b, got, ^uint16(sum))
		}
	}
}

func TestEchoReply(t *testing.T) {
	request := build(t, &layers.IPv4{Protocol: layers.IPProtocolICMPv4, TOS: 4},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77, Seq: 3}, gopacket.Payload("odd"))
	b := bytes.Clone(request)
	if d := EchoReply(b); d != drop.Accept {
		t.Fatal(d)
	}
	got := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default)
	ip, icmp := got.Layer(layers.LayerTypeIPv4).(*layers.IPv4), got.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if ip.SrcIP.String() != "198.51.100.80" || ip.DstIP.String() != "192.0.2.1" || icmp.TypeCode.Type() != 0 ||
		icmp.Id != 77 || icmp.Seq != 3 ||
		string(icmp.Payload) != "odd" || ip.TTL != 64 {
		t.Errorf("answer is %v", got)
	}
	if IPv4(b).Check() != drop.Accept || Checksum(IPv4(b).Payload()) != 0 {
		t.Error("a checksum of the answer is wrong")
	}
	b = bytes.Clone(request)
	b[len(b)-1]++
	if d := EchoReply(b); d != drop.BadChecksum {
		t.Errorf("a damaged request: %v", d)
	}
	if d := EchoReply(build(t, &layers.IPv4{Protocol: layers.IPProtocolICMPv4},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(0, 0)})); d != drop.ICMP {
		t.Errorf("an echo reply: %v", d)
	}
}

func TestFragmentationNeeded(t *testing.T) {
	for _, size := range []int{0, 100, 1472} {
		b := build(t, &layers.IPv4{Protocol: layers.IPProtocolUDP, Flags: layers.IPv4DontFragment},
			&layers.UDP{SrcPort: 9, DstPort: 80},
			gopacket.Payload(make([]byte, size)))
		e := make([]byte, 576)
		e = e[:FragmentationNeeded(e, b, netip.MustParseAddr("198.51.100.80"), 1480)]
		if IPv4(e).Check() != drop.Accept || IPv4(e).TOS() != 0xc0 || Checksum(IPv4(e).Payload()) != 0 {
			t.Fatalf("%d bytes: the error is not well formed: %x", size, e)
		}
		if IPv4(e).Dst() != netip.MustParseAddr("192.0.2.1") || e[20] != 3 || e[21] != 4 ||
			binary.BigEndian.Uint16(e[26:]) != 1480 {
			t.Errorf("%d bytes: %x", size, e)
		}
		if !bytes.Equal(e[28:], b[:min(len(b), 548)]) {
			t.Errorf("%d bytes: the quote is not the packet's beginning", size)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	pk := tcpPacket(b)
	var p Info
	for b.Loop() {
		if p.Parse(pk) != drop.Accept {
			b.Fatal()
		}
	}
}

func BenchmarkParse6(b *testing.B) {
	for name, pk := range map[string][]byte{"plain": tcp6(80), "options": six(extDestOpts, options(ProtoTCP),
		tcp6(80)[IPv6HeaderLen:])} {
		b.Run(name, func(b *testing.B) {
			var p Info
			for b.Loop() {
				if p.Parse(pk) != drop.Accept {
					b.Fatal()
				}
			}
		})
	}
}

func BenchmarkSum(b *testing.B) {
	p := make([]byte, 1440)
	b.SetBytes(1440)
	for b.Loop() {
		Sum(p, 1)
	}
}

func TestHeaderChecksum(t *testing.T) {
	header := IPv4{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	if got := Checksum(header); got != 0xb861 {
		t.Errorf("%#x, want 0xb861", got)
	}
	if header.SetChecksum(); Checksum(header) != 0 {
		t.Errorf("%x", []byte(header))
	}
}

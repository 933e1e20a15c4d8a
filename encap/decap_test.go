package encap

import (
	"bytes"
	"encoding/binary"
	"testing"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// TestUnwrapRefusesTunnelHeaders goes through what is wrong with GRE, GUE and FOU.
func TestUnwrapRefusesTunnelHeaders(t *testing.T) {
	in4, in6 := []byte(inner(60, 0, 64, false)), inner6(60, 0, 64)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	checked := func(b []byte) []byte {
		b = bytes.Clone(b)
		packet.PutChecksum(b[4:], packet.Sum(b, 0), false)
		return b
	}
	damaged := checked(join([]byte{0x80, 0, 8, 0, 0, 0, 0, 0}, in4))
	damaged[40] ^= 1
	// As a kernel on the same machine leaves it: the checksum of TCP inside is that of the pseudo-header.
	tcp4, tcp6 := bytes.Clone(in4), bytes.Clone(in6)
	tcp4[9], tcp6[6] = packet.ProtoTCP, packet.ProtoTCP
	packet.IPv4(tcp4).SetChecksum()
	binary.BigEndian.PutUint16(tcp4[20+16:], packet.Fold(packet.IPv4(tcp4).PseudoSum(len(tcp4)-20)))
	binary.BigEndian.PutUint16(tcp6[40+16:], packet.Fold(packet.IPv6(tcp6).PseudoSum(packet.ProtoTCP, len(tcp6)-40)))
	keyed, plain := Decapsulator{Kind: KindGRE, HasKey: true, Key: 0x01020304}, Decapsulator{Kind: KindGRE}
	gue, fou, ipip := Decapsulator{Kind: KindGUE}, Decapsulator{Kind: KindFOU}, Decapsulator{Kind: KindIPIP}
	const accept = drop.Accept
	for name, c := range map[string]struct {
		exit  Decapsulator
		proto byte
		b     []byte
		want  drop.Reason
	}{
		"gre":           {plain, 47, join([]byte{0, 0, 8, 0}, in4), accept},
		"gre, IPv6":     {plain, 47, join([]byte{0, 0, 0x86, 0xdd}, in6), accept},
		"gre, checksum": {plain, 47, checked(join([]byte{0x80, 0, 8, 0, 0, 0, 0, 0}, in4)), accept},
		"gre, key":      {keyed, 47, join([]byte{0x20, 0, 8, 0, 1, 2, 3, 4}, in4), accept},
		"gre, checksum and key": {keyed, 47, checked(join([]byte{0xa0, 0, 8, 0, 0, 0, 0, 0, 1, 2, 3, 4}, in4)),
			accept},
		"gre, ignored bits":     {plain, 47, join([]byte{0x03, 0xf8, 8, 0}, in4), accept},
		"gre, damaged":          {plain, 47, damaged, drop.TunnelChecksum},
		"gre, unfinished":       {plain, 47, join([]byte{0x80, 0, 8, 0, 0x12, 0x34, 0, 0}, tcp4), accept},
		"gre, unfinished, IPv6": {plain, 47, join([]byte{0x80, 0, 0x86, 0xdd, 0x12, 0x34, 0, 0}, tcp6), accept},
		"gre, left to a card":   {plain, 47, join([]byte{0x80, 0, 8, 0, 0, 0, 0, 0}, in4), accept},
		"gre, damaged and cut": {plain, 47, join([]byte{0x80, 0, 8, 0, 0x12, 0x34, 0, 0}, tcp4[:59]),
			drop.TunnelChecksum},
		"gre, damaged, IPv6": {plain, 47, join([]byte{0x80, 0, 0x86, 0xdd, 0x12, 0x34, 0, 0}, in6),
			drop.TunnelChecksum},
		"gre, damaged, no packet":  {plain, 47, []byte{0x80, 0, 8, 0, 0x12, 0x34, 0, 0}, drop.TunnelChecksum},
		"gre, another key":         {keyed, 47, join([]byte{0x20, 0, 8, 0, 1, 2, 3, 5}, in4), drop.TunnelKey},
		"gre, no key":              {keyed, 47, join([]byte{0, 0, 8, 0}, in4), drop.TunnelKey},
		"gre, key unasked":         {plain, 47, join([]byte{0x20, 0, 8, 0, 0, 0, 0, 0}, in4), drop.TunnelKey},
		"gre, routing":             {plain, 47, join([]byte{0x40, 0, 8, 0, 0, 0, 0, 0}, in4), drop.TunnelHeader},
		"gre, sequence":            {plain, 47, join([]byte{0x10, 0, 8, 0, 0, 0, 0, 1}, in4), drop.TunnelHeader},
		"gre, strict source route": {plain, 47, join([]byte{0x08, 0, 8, 0}, in4), drop.TunnelHeader},
		"gre, bit 5":               {plain, 47, join([]byte{0x04, 0, 8, 0}, in4), drop.TunnelHeader},
		"gre, version 1":           {plain, 47, join([]byte{0, 1, 8, 0}, in4), drop.TunnelHeader},
		"gre, Ethernet":            {plain, 47, join([]byte{0, 0, 0x65, 0x58}, in4), drop.TunnelHeader},
		"gre, keepalive":           {plain, 47, []byte{0, 0, 0, 0}, drop.TunnelHeader},
		"gre, of 3 bytes":          {plain, 47, []byte{0, 0, 8}, drop.TunnelHeader},
		"gre, key cut":             {keyed, 47, []byte{0x20, 0, 8, 0, 1, 2, 3}, drop.TunnelHeader},
		"gre, checksum cut":        {plain, 47, []byte{0x80, 0, 8, 0, 1, 2}, drop.TunnelHeader},
		"gre, empty":               {plain, 47, []byte{0, 0, 8, 0}, drop.Truncated},
		"gre, IPv6 as IPv4":        {plain, 47, join([]byte{0, 0, 8, 0}, in6), drop.NotIPv4},
		"gre, IPv4 as IPv6":        {plain, 47, join([]byte{0, 0, 0x86, 0xdd}, in4), drop.NotIPv4},
		"gre, cut":                 {plain, 47, join([]byte{0, 0, 0x86, 0xdd}, in6[:59]), drop.Truncated},
		"gre, bytes behind":        {plain, 47, join([]byte{0, 0, 0x86, 0xdd}, in6, []byte{0}), drop.Trailing},
		"gre, by another socket":   {plain, 4, join([]byte{0, 0, 8, 0}, in4), drop.Outer},

		"gue":                    {gue, 17, join([]byte{0, 4, 0, 0}, in4), accept},
		"gue, IPv6":              {gue, 17, join([]byte{0, 41, 0, 0}, in6), accept},
		"gue, variant 1":         {gue, 17, in4, accept},
		"gue, variant 1, IPv6":   {gue, 17, in6, accept},
		"gue, variant 1, IPv5":   {gue, 17, join([]byte{0x55}, in4[1:]), drop.NotIPv4},
		"gue, variant 1, IPv7":   {gue, 17, join([]byte{0x75}, in4[1:]), drop.NotIPv4},
		"gue, variant 1, behind": {gue, 17, join(in4, []byte{0}), drop.Trailing},
		"gue, variant 2":         {gue, 17, join([]byte{0x80, 4, 0, 0}, in4), drop.TunnelHeader},
		"gue, variant 3":         {gue, 17, join([]byte{0xc0, 4, 0, 0}, in4), drop.TunnelHeader},
		"gue, control":           {gue, 17, join([]byte{0x20, 4, 0, 0}, in4), drop.TunnelHeader},
		"gue, extension":         {gue, 17, join([]byte{0x01, 4, 0, 0, 0, 0, 0, 0}, in4), drop.TunnelHeader},
		"gue, flags":             {gue, 17, join([]byte{0, 4, 0, 1}, in4), drop.TunnelHeader},
		"gue, no next header":    {gue, 17, join([]byte{0, 59, 0, 0}, in4), drop.TunnelHeader},
		"gue, of 3 bytes":        {gue, 17, []byte{0, 4, 0}, drop.TunnelHeader},
		"gue, nothing":           {gue, 17, nil, drop.TunnelHeader},
		"gue, empty":             {gue, 17, []byte{0, 4, 0, 0}, drop.Truncated},
		"gue, IPv6 as IPv4":      {gue, 17, join([]byte{0, 4, 0, 0}, in6), drop.NotIPv4},
		"gue, IPv4 as IPv6":      {gue, 17, join([]byte{0, 41, 0, 0}, in4), drop.NotIPv4},
		"gue, bytes behind":      {gue, 17, join([]byte{0, 4, 0, 0}, in4, []byte{0}), drop.Trailing},
		"gue, by another socket": {gue, 47, join([]byte{0, 4, 0, 0}, in4), drop.Outer},

		"fou":                    {fou, 17, in4, accept},
		"fou, IPv6":              {fou, 17, in6, accept},
		"fou, nothing":           {fou, 17, nil, drop.Truncated},
		"fou, IPv6 cut":          {fou, 17, in6[:39], drop.Truncated},
		"fou, no IP":             {fou, 17, join([]byte{0x05}, in4[1:]), drop.NotIPv4},
		"fou, by another socket": {fou, 4, in4, drop.Outer},

		"ipip":                    {ipip, 4, in4, accept},
		"ipip, IPv6":              {ipip, 41, in6, accept},
		"ipip, IPv6 as IPv4":      {ipip, 4, in6, drop.NotIPv4},
		"ipip, IPv4 as IPv6":      {ipip, 41, in4, drop.NotIPv4},
		"ipip, by another socket": {ipip, 47, in4, drop.Outer},
		"no kind":                 {Decapsulator{Kind: 9}, 4, in4, drop.Outer},
	} {
		b := buf(c.b)
		if d := c.exit.Decap(b, c.proto, 0); d != c.want {
			t.Errorf("%s: %v (%d), want %v (%d)", name, d, d, c.want, c.want)
		} else if p := b.Bytes(); d == accept && !bytes.Equal(p, in4) && !bytes.Equal(p, in6) &&
			!bytes.Equal(p, tcp4) && !bytes.Equal(p, tcp6) {
			t.Errorf("%s: %x", name, p)
		}
	}
}

// TestECN6 is TestECN for IPv6 inside.
func TestECN6(t *testing.T) {
	const dropped = 9
	want := [4][4]byte{{0, 0, 0, dropped}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}}
	for in := range byte(4) {
		for out := range byte(4) {
			p := inner6(60, 0xb8|in, 64)
			b := buf(p)
			d := (&Decapsulator{Kind: KindIPIP}).Decap(b, packet.ProtoIPv6, 0x20|out)
			if want[in][out] == dropped {
				if d != drop.Congestion {
					t.Errorf("inner %d, outer %d: %v, want a drop", in, out, d)
				}
				continue
			}
			packet.IPv6(p).SetTrafficClass(0xb8 | want[in][out])
			if d != drop.Accept || !bytes.Equal(b.Bytes(), p) {
				t.Errorf("inner %d, outer %d: %v %x, want %x", in, out, d, b.Bytes()[:2], p[:2])
			}
		}
	}
}

// wellFormed fails when what an exit has let through isn't exactly one whole packet.
func wellFormed(t *testing.T, p []byte) {
	t.Helper()
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		if h := packet.IPv4(p); h.Check() != drop.Accept || h.TotalLen() != len(p) {
			t.Errorf("accepted, but not well formed: %x", p)
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		if packet.IPv6(p).TotalLen() != len(p) {
			t.Errorf("accepted, but not well formed: %x", p)
		}
	default:
		t.Errorf("accepted, but no IP: %x", p)
	}
}

// fuzzDecap lets f find packets that a Decapsulator should have refused. seeds are wrapped packets, of which strip
// bytes are not delivered.
func fuzzDecap(f *testing.F, kinds ...Kind) {
	for _, c := range configs() {
		for _, k := range kinds {
			if c.Kind != k || !c.Destination.Is4() {
				continue
			}
			tunnel := mustNew(f, c)
			strip := packet.IPv4HeaderLen
			if k.UDP() {
				strip += packet.UDPHeaderLen
			}
			for _, in := range [][]byte{inner(60, 3, 64, true), inner6(60, 1, 64)} {
				b := buf(in)
				tunnel.Wrap(b, 1)
				f.Add(bytes.Clone(b.Bytes()[strip:]), tunnel.protocol(), byte(k), byte(1), c.HasKey, c.Key)
			}
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, proto, kind, class byte, hasKey bool, key uint32) {
		if len(p) > packet.MaxLen {
			return
		}
		e := Decapsulator{Kind: kinds[int(kind)%len(kinds)], HasKey: hasKey, Key: key}
		b := buf(p)
		if e.Decap(b, proto, class) == drop.Accept {
			wellFormed(t, b.Bytes())
			if b.Len() > len(p) || !bytes.Equal(b.Bytes()[20:], p[len(p)-b.Len()+20:]) {
				t.Errorf("%x came out of %x", b.Bytes(), p)
			}
		}
	})
}

func FuzzUnwrapIPIP(f *testing.F) { fuzzDecap(f, KindIPIP) }
func FuzzUnwrapGRE(f *testing.F)  { fuzzDecap(f, KindGRE) }
func FuzzUnwrapUDP(f *testing.F)  { fuzzDecap(f, KindGUE, KindFOU) }

// TestHops goes through headers that are no hops: they are refused as any other private data.
func TestHops(t *testing.T) {
	inner := make([]byte, 20)
	packet.IPv4(inner).Encode(packet.IPv4Fields{TotalLen: 20, TTL: 64, Protocol: 6})
	e := Decapsulator{Kind: KindGUE}
	for name, c := range map[string]struct {
		header []byte
		n      int
		want   drop.Reason
	}{
		"one hop":         {[]byte{2, 4, 0, 0, 0, 0, 0, 1, 10, 0, 0, 1}, 12, drop.Accept},
		"no hop":          {[]byte{1, 4, 0, 0, 0, 0, 0, 0}, 8, drop.Accept},
		"no private data": {[]byte{0, 4, 0, 0}, 0, drop.Accept},
		"another type":    {[]byte{2, 4, 0, 0, 0, 1, 0, 1, 10, 0, 0, 1}, 0, drop.TunnelHeader},
		"another count":   {[]byte{2, 4, 0, 0, 0, 0, 0, 2, 10, 0, 0, 1}, 0, drop.TunnelHeader},
		"flags":           {[]byte{2, 4, 0, 1, 0, 0, 0, 1, 10, 0, 0, 1}, 0, drop.TunnelHeader},
		"control":         {[]byte{0x22, 4, 0, 0, 0, 0, 0, 1, 10, 0, 0, 1}, 0, drop.TunnelHeader},
		"of no IP packet": {[]byte{2, 6, 0, 0, 0, 0, 0, 1, 10, 0, 0, 1}, 0, drop.TunnelHeader},
		"too long":        {[]byte{31, 4, 0, 0, 0, 0, 0, 30, 10, 0, 0, 1}, 0, drop.TunnelHeader},
	} {
		bufs := packet.NewBufs(1)
		b := &bufs[0]
		b.SetLen(copy(b.Room(), append(c.header, inner...)))
		n, d := e.DecapHops(b, packet.ProtoUDP, 0)
		if n != c.n || d != c.want || d == drop.Accept && b.Len() != len(inner) {
			t.Errorf("%s: %d bytes of hops, %v", name, n, d)
		}
	}
}

package endpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// unwrap takes the tunnel's headers off the packet in b, and applies the policy to the inner packet.
func (p *Policy) unwrap(b *packet.Buf) (inside, drop.Reason) {
	t, d := p.outer(b)
	if d != drop.Accept {
		return inside{}, d
	}
	return p.inner(b, &t)
}

// The packets in the tunnel, and what becomes of them whatever tunnel they are in.
func TestPolicyInside(t *testing.T) {
	addr := netip.MustParseAddr
	some := make([]byte, 28)
	udp := func(to uint16) []byte {
		u := make([]byte, 8)
		binary.BigEndian.PutUint16(u[2:], to)
		binary.BigEndian.PutUint16(u[4:], 8)
		return u
	}
	edited := func(b []byte, edit func(b []byte)) []byte {
		edit(b)
		if b[0]>>4 == 4 {
			packet.IPv4(b).SetChecksum()
		}
		return b
	}
	routing := func(kind, left byte) []byte {
		return append([]byte{packet.ProtoTCP, 2, kind, left, 0, 0, 0, 0}, make([]byte, 16+28)...)
	}
	fragment6 := func(next byte, offset uint16, rest []byte) []byte {
		return append([]byte{next, 0, byte(offset >> 8), byte(offset) | 1, 0, 0, 0, 1}, rest...)
	}
	options := func(next byte, rest []byte) []byte { return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, rest...) }
	type kase struct {
		b    []byte
		want drop.Reason
	}
	cases := map[string]kase{
		"good":             {ip(client, vip, 6, some), drop.Accept},
		"other VIP":        {ip(client, addr("198.51.100.81"), 17, some), drop.Accept},
		"ICMP":             {ip(client, vip, 1, some), drop.Accept},
		"ESP":              {ip(client, vip, 50, some), drop.Accept},
		"fragment":         {edited(ip(client, vip, 17, udp(9)), func(b []byte) { b[6] = 0x20 }), drop.Accept},
		"later fragment":   {edited(ip(client, vip, 17, udp(port)), func(b []byte) { b[7] = 5 }), drop.Accept},
		"UDP":              {ip(client, vip, 17, udp(port+1)), drop.Accept},
		"6 good":           {ip(client6, vip6, 6, some), drop.Accept},
		"6 other VIP":      {ip(client6, addr("2001:db8:f::81"), 17, some), drop.Accept},
		"6 ICMPv6":         {ip(client6, vip6, 58, some), drop.Accept},
		"6 options":        {ip(client6, vip6, 0, options(60, options(6, some))), drop.Accept},
		"6 fragment":       {ip(client6, vip6, 44, fragment6(17, 0, udp(9))), drop.Accept},
		"6 later fragment": {ip(client6, vip6, 44, fragment6(17, 8, udp(port))), drop.Accept},
		// as a host takes it, RFC 8200, section 4.4
		"6 a spent routing": {ip(client6, vip6, 43, routing(4, 0)), drop.Accept},

		"UDP to the tunnel's port": {ip(client, vip, 17, udp(port)), drop.InnerProtocol},
		"UDP without ports":        {ip(client, vip, 17, []byte{0, 0, 1}), drop.InnerProtocol},
		"fragment to the tunnel's port": {edited(ip(client, vip, 17, udp(port)), func(b []byte) { b[6] = 0x20 }),
			drop.InnerProtocol},
		"6 UDP to the tunnel's port": {ip(client6, vip6, 60, options(17, udp(port))),
			drop.InnerProtocol},
		"6 fragment to the tunnel's port": {ip(client6, vip6, 44, fragment6(17, 0, udp(port))),
			drop.InnerProtocol},
		"6 tunnel behind options": {ip(client6, vip6, 60, options(41, some)), drop.InnerProtocol},
		"6 tunnel in a fragment":  {ip(client6, vip6, 44, fragment6(4, 0, some)), drop.InnerProtocol},
		"6 tunnel in a later fragment": {ip(client6, vip6, 44, fragment6(47, 8, some)),
			drop.InnerProtocol},
		"6 routing header of type 0":          {ip(client6, vip6, 43, routing(0, 0)), drop.SourceRoute},
		"6 routing header with segments left": {ip(client6, vip6, 43, routing(4, 1)), drop.SourceRoute},
		"6 hop-by-hop options twice": {ip(client6, vip6, 0, options(0, options(6, some))),
			drop.BadHeader},
		"6 too many headers": {ip(client6, vip6, 60,
			options(60, options(60, options(60, options(60, options(60, options(60, options(60, options(60, options(60,
				options(6, some))))))))))), drop.BadHeader},
		"6 header that ends behind the packet": {ip(client6, vip6, 60, []byte{6, 9, 1, 4, 0, 0, 0, 0}),
			drop.Truncated},
		"6 jumbogram": {ip(client6, vip6, 0, append([]byte{6, 0, 0xc2, 4, 0, 1, 0, 0},
			some...)), drop.BadHeader},

		"source route": {edited(append(ip(client, vip, 6, nil), 131, 3, 4, 0),
			func(b []byte) { b[0] = 0x46; packet.IPv4(b).SetTotalLen(24) }), drop.SourceRoute},
		"wrong checksum": {func() []byte { b := ip(client, vip, 6, some); b[10] ^= 1; return b }(),
			drop.BadChecksum},
		"shorter than it says":     {ip(client, vip, 6, some)[:47], drop.Truncated},
		"longer than it says":      {append(ip(client, vip, 6, some), 0), drop.Trailing},
		"6 shorter than it says":   {ip(client6, vip6, 6, some)[:67], drop.Truncated},
		"6 longer than it says":    {append(ip(client6, vip6, 6, some), 0), drop.Trailing},
		"6 half a header":          {ip(client6, vip6, 6, some)[:39], drop.Truncated},
		"nothing":                  {nil, drop.Truncated},
		"6 to the 4 VIP as mapped": {ip(client6, addr("::ffff:198.51.100.80"), 6, some), drop.BadHeader},
	}
	for _, dst := range []string{"198.51.100.82", "10.0.11.2", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"} {
		cases["to "+dst] = kase{ip(client, addr(dst), 6, some), drop.InnerDestination}
	}
	for _, dst := range []string{"2001:db8:f::82", "2001:db8:11::2", "::1", "ff02::1", "fe80::1", "::",
		"::198.51.100.80"} {
		cases["to "+dst] = kase{ip(client6, addr(dst), 6, some), drop.InnerDestination}
	}
	for _, src := range []string{"198.51.100.80", "198.51.100.81", "10.0.11.2", "127.0.0.1", "127.9.9.9", "224.0.0.1",
		"239.1.2.3", "255.255.255.255", "240.0.0.1",
		"0.0.0.0", "0.1.2.3"} {
		cases["from "+src] = kase{ip(addr(src), vip, 6, some), drop.InnerSource}
	}
	for _, src := range []string{"2001:db8:f::80", "2001:db8:f::81", "2001:db8:11::2", "::1", "::", "::2",
		"::192.0.2.1", "ff02::1", "ff0e::9", "fe80::1", "febf::1"} {
		cases["from "+src] = kase{ip(addr(src), vip6, 6, some), drop.InnerSource}
	}
	cases["from ::ffff:192.0.2.1"] = kase{ip(addr("::ffff:192.0.2.1"), vip6, 6, some), drop.BadHeader}
	for _, src := range []string{"64:ff9b::192.0.2.1", "fd00::1", "2002::1", "fec0::1"} {
		cases["from "+src] = kase{ip(addr(src), vip6, 6, some), drop.Accept}
	}
	for _, proto := range []byte{4, 41, 47, 55, 94, 97, 98, 115, 137, 143} {
		cases[fmt.Sprintf("protocol %d", proto)] = kase{ip(client, vip, proto, some), drop.InnerProtocol}
		cases[fmt.Sprintf("6 protocol %d", proto)] = kase{ip(client6, vip6, proto, some), drop.InnerProtocol}
	}
	p := policy()
	for name, c := range cases {
		for _, kind := range []encap.Kind{encap.KindIPIP, encap.KindGRE, encap.KindGUE} {
			for _, from := range []netip.Addr{director, director6} {
				b := buf(wrap(kind, from, c.b))
				if _, d := p.unwrap(b); d != c.want {
					t.Errorf("%s in %v from %v: %v, want %v", name, kind, from, d, c.want)
				} else if d == drop.Accept && !bytes.Equal(b.Bytes(), c.b) {
					t.Errorf("%s in %v from %v: %x came out of %x", name, kind, from, b.Bytes(), c.b)
				}
			}
		}
	}
}

// The tunnel packets, whatever is in them.
func TestPolicyOutside(t *testing.T) {
	addr := netip.MustParseAddr
	inner := ip(client, vip, 6, make([]byte, 28))
	edited := func(b []byte, edit func(b []byte)) []byte {
		edit(b)
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want drop.Reason
	}{
		"director":               {wrap(encap.KindIPIP, director, inner), drop.Accept},
		"director of a prefix":   {wrap(encap.KindGRE, addr("10.9.255.255"), inner), drop.Accept},
		"6 director of a prefix": {wrap(encap.KindGUE, addr("2001:db8:9::7"), inner), drop.Accept},
		"stranger":               {wrap(encap.KindIPIP, addr("10.0.2.3"), inner), drop.NotDirector},
		"beside the prefix":      {wrap(encap.KindGRE, addr("10.8.255.255"), inner), drop.NotDirector},
		"6 stranger":             {wrap(encap.KindGUE, addr("2001:db8:2::3"), inner), drop.NotDirector},
		"6 beside the prefix":    {wrap(encap.KindIPIP, addr("2001:db8:a::"), inner), drop.NotDirector},
		"6 mapped director":      {wrap(encap.KindIPIP, addr("::ffff:10.0.2.2"), inner), drop.NotDirector},
		"empty":                  {nil, drop.Outer},
		"19 bytes":               {wrap(encap.KindIPIP, director, inner)[:19], drop.Outer},
		"6 39 bytes":             {wrap(encap.KindIPIP, director6, inner)[:39], drop.Outer},
		"version 5": {edited(wrap(encap.KindIPIP, director, inner), func(b []byte) { b[0] = 0x55 }),
			drop.Outer},
		"stranger, rest nonsense": {append(wrap(encap.KindIPIP, addr("10.0.2.3"), inner)[:20], 1, 2, 3),
			drop.NotDirector},
		"options": {edited(append(append(wrap(encap.KindIPIP, director, inner)[:20:20], 1, 1, 1, 1), inner...),
			func(b []byte) {
				b[0] = 0x46
				packet.IPv4(b).SetTotalLen(len(b))
			}), drop.Accept},
		"header longer than it": {edited(wrap(encap.KindIPIP, director, nil), func(b []byte) { b[0] = 0x4f }),
			drop.Outer},
		"says less": {edited(wrap(encap.KindIPIP, director, inner), func(b []byte) { b[3]-- }),
			drop.Outer},
		"says more": {edited(wrap(encap.KindIPIP, director, inner), func(b []byte) { b[3]++ }),
			drop.Outer},
		"short header": {edited(wrap(encap.KindIPIP, director, inner), func(b []byte) { b[0] = 0x44 }),
			drop.Outer},
		"nothing in it":         {wrap(encap.KindIPIP, director, nil)[:20], drop.Truncated},
		"longer than it says":   {append(wrap(encap.KindIPIP, director, inner), 0), drop.Outer},
		"6 longer than it says": {append(wrap(encap.KindGRE, director6, inner), 0), drop.Outer},
		"another protocol":      {ip(director, realserver, 6, inner), drop.Outer},
		"6 another protocol":    {ip(director6, realserver6, 58, inner), drop.Outer},
		"half a UDP header":     {ip(director, realserver, 17, make([]byte, 7)), drop.Outer},
		"only a UDP header":     {ip(director6, realserver6, 17, make([]byte, 8)), drop.TunnelHeader},
		"GRE with a key": {ip(director6, realserver6, 47, append([]byte{0x20, 0, 8, 0, 0, 0, 0, 7}, inner...)),
			drop.TunnelKey},
		"protocol 41 with IPv4": {ip(director, realserver, 41, inner), drop.NotIPv4},
	} {
		if _, d := policy().unwrap(buf(c.b)); d != c.want {
			t.Errorf("%s: %v, want %v", name, d, c.want)
		}
	}
}

// TestPolicyOfSealed: a packet from an address that only WireGuard brings is refused where it comes otherwise, also if
// a prefix has the address.
func TestPolicyOfSealed(t *testing.T) {
	inner, other := ip(client, vip, 6, make([]byte, 28)), netip.MustParseAddr("10.0.2.3")
	rules := Rules{Directors: []netip.Prefix{netip.PrefixFrom(director, 32), netip.MustParsePrefix("10.0.2.0/24")},
		VIPs: []netip.Addr{vip}, Decapsulators: []encap.Decapsulator{{Kind: encap.KindIPIP}},
		Sealed: []netip.Addr{director}}
	for from, want := range map[netip.Addr]drop.Reason{director: drop.NotDirector, other: drop.Accept} {
		if _, d := NewPolicy(rules).unwrap(buf(wrap(encap.KindIPIP, from, inner))); d != want {
			t.Errorf("%v: %v, want %v", from, d, want)
		}
	}
	rules.Sealed, rules.Directors = nil, rules.Directors[:1]
	rules.Decapsulators = []encap.Decapsulator{{Kind: encap.KindWireGuard}}
	for from, want := range map[netip.Addr]drop.Reason{director: drop.Accept, other: drop.NotDirector} {
		if _, d := NewPolicy(rules).unwrap(buf(wrap(encap.KindIPIP, from, inner))); d != want {
			t.Errorf("by WireGuard, %v: %v, want %v", from, d, want)
		}
	}
	if _, d := NewPolicy(rules).unwrap(buf(wrap(encap.KindGRE, director, inner))); d != drop.Outer {
		t.Errorf("gre in WireGuard: %v", d)
	}
}

// TestPolicyOfOneTunnel: packets of another tunnel are refused.
func TestPolicyOfOneTunnel(t *testing.T) {
	inner := ip(client, vip, 6, make([]byte, 28))
	p := NewPolicy(Rules{Directors: []netip.Prefix{netip.PrefixFrom(director, 32)}, VIPs: []netip.Addr{vip},
		Decapsulators: []encap.Decapsulator{{Kind: encap.KindGRE, Key: 7, HasKey: true}}})
	for kind, want := range map[encap.Kind]drop.Reason{encap.KindIPIP: drop.Outer,
		encap.KindGRE: drop.TunnelKey, encap.KindGUE: drop.Outer} {
		if _, d := p.unwrap(buf(wrap(kind, director, inner))); d != want {
			t.Errorf("%v: %v, want %v", kind, d, want)
		}
	}
	if _, d := p.unwrap(buf(ip(director, realserver, 47, append([]byte{0x20, 0, 8, 0, 0, 0, 0, 7},
		inner...)))); d != drop.Accept {
		t.Errorf("with the key: %v", d)
	}
	// Without UDP tunnels, no UDP port is the agent's.
	if _, d := p.unwrap(buf(ip(director, realserver, 47, append([]byte{0x20, 0, 8, 0, 0, 0, 0, 7},
		ip(client, vip, 17, make([]byte, 8))...)))); d != drop.Accept {
		t.Errorf("UDP to port 0: %v", d)
	}
}

// TestOwn: nothing comes in from an address of the host.
func TestOwn(t *testing.T) {
	p := policyOf(client)
	enter := func(src netip.Addr) drop.Reason {
		_, d := p.unwrap(buf(wrap(encap.KindIPIP, director, ip(src, vip, 6, make([]byte, 20)))))
		return d
	}
	for src, want := range map[netip.Addr]drop.Reason{client: drop.InnerSource, realserver: drop.Accept,
		vip: drop.InnerSource} {
		if d := enter(src); d != want {
			t.Errorf("%v: %v, want %v", src, d, want)
		}
	}
}

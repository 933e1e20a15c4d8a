package encap

import (
	"fmt"
	"net/netip"
	"testing"

	"vstun/encap/packet"
)

// TestInner: what Wrap makes is found again in every quote of it, and in no tunnel that differs in anything.
func TestInner(t *testing.T) {
	to4, to6 := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("2001:db8:11::2")
	from4, from6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("2001:db8:2::2")
	four := make(packet.IPv4, 60)
	packet.IPv4(four).Encode(packet.IPv4Fields{
		TotalLen: len(four), TTL: 63, Protocol: packet.ProtoUDP, Src: [4]byte{192, 0, 2, 1},
		Dst: [4]byte{198, 51, 100, 80},
	})
	six := make(packet.IPv6, 80)
	packet.IPv6(six).Encode(packet.IPv6Fields{
		TotalLen: len(six), HopLimit: 63, NextHeader: packet.ProtoUDP, Src: netip.MustParseAddr("2001:db8::1").As16(),
		Dst: netip.MustParseAddr("2001:db8::80").As16(),
	})

	var tunnels []Tunnel
	for _, c := range []Config{
		{Kind: KindIPIP}, {Kind: KindGRE}, {Kind: KindGRE, HasKey: true, Key: 7}, {Kind: KindGRE, HasKey: true, Key: 8},
		{Kind: KindGRE, Checksum: true},
		{Kind: KindGUE, Port: 6080}, {Kind: KindGUE, Port: 6081},
		{Kind: KindGUE, Port: 6080, Hop: true}, {Kind: KindFOU, Port: 5555},
		{Kind: KindFOU, Port: 5556, Checksum: true},
	} {
		for _, way := range [][2]netip.Addr{{from4, to4}, {from4, to4.Next()}, {from4.Next(), to4}, {from6, to6},
			{from6, to6.Next()}, {from6.Next(), to6}} {
			if c.Source, c.Destination = way[0], way[1]; c.Hop && !way[0].Is4() {
				continue
			}
			tunnel, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			tunnels = append(tunnels, tunnel)
		}
	}
	for i := range tunnels {
		made := &tunnels[i]
		for _, in := range [][]byte{four, six} {
			b := buf(in)
			made.Wrap(b, 40000)
			whole := b.Bytes()
			payload := int(made.ip)
			for j := range tunnels {
				name := fmt.Sprintf("packet of tunnel %d in tunnel %d", i, j)
				inner, ok := tunnels[j].MatchQuoted(whole, payload)
				if ok != (i == j) || ok && string(inner) != string(in) {
					t.Errorf("%s: %v, %x", name, ok, inner)
				}
			}
			for n := payload; n < len(whole); n++ {
				inner, ok := made.MatchQuoted(whole[:n], payload)
				if !ok || len(inner) != max(0, n-made.Overhead()) {
					t.Errorf("%d bytes quoted of a packet of tunnel %d: %v, %d bytes inside", n, i, ok, len(inner))
				}
			}
		}
	}
}

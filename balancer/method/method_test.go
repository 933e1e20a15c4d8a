package method

import (
	"bytes"
	"net/netip"
	"testing"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// TestTUN: over both families and in every format, Out adds Overhead bytes, Seal finishes what Out leaves open of a GSO
// packet, and Quoted finds the packet again. A configuration without a source that is needed is refused.
func TestTUN(t *testing.T) {
	request := make(packet.IPv4, 60)
	request.Encode(packet.IPv4Fields{TotalLen: len(request), TTL: 63, Protocol: packet.ProtoTCP,
		Src: [4]byte{192, 0, 2, 1}, Dst: [4]byte{198, 51, 100, 80}})
	copy(request[20:], []byte{0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 5 << 4, packet.FlagSYN})
	for _, address := range []string{"10.0.11.2", "fd00::2"} {
		for kind := encap.KindIPIP; kind <= encap.KindWireGuard; kind++ {
			c := Config{Encap: kind, Source: netip.MustParseAddr("10.0.2.2"), MTU: 1500}
			if kind.UDP() {
				c.EncapPort = 6080
			}
			to := netip.MustParseAddr(address)
			if to.Is6() {
				if _, err := New(to, c); err == nil {
					t.Error("a source of the other family is accepted")
				}
				c.Source = netip.MustParseAddr("fd00::1")
			}
			m, err := New(to, c)
			if err != nil {
				t.Fatal(err)
			}
			var p packet.Info
			b := &packet.NewBufs(1)[0]
			b.SetLen(copy(b.Room(), request))
			if d := p.Parse(b.Bytes()); d != drop.Accept {
				t.Fatal(d)
			}
			h := m.Out(b, &p, 40000)
			if (h.Kind == egress.UDP) != kind.UDP() || (h.Kind == egress.WireGuard) != kind.Sealed() ||
				h.To.DstPort != c.EncapPort || h.SrcPort != 40000 ||
				h.To.Dst != to || h.To.Src != c.Source || h.Class != 0 || h.TTL != 63 || h.DF != to.Is6() {
				t.Errorf("%v to %v: hop %+v", kind, to, h)
			}
			n := b.Len() - len(request)
			if m.Kind() != TUN || n != m.Overhead() || !bytes.Equal(b.Bytes()[n:], request) {
				t.Fatalf("%v to %v: %x", kind, to, b.Bytes())
			}
			whole := bytes.Clone(b.Bytes())
			b.SetLen(n + len(request))
			m.Seal(packet.Segment{Head: b.Bytes()[:n+40], Body: b.Bytes()[n+40:]})
			if !bytes.Equal(b.Bytes(), whole) {
				t.Errorf("%v to %v: Seal has made %x of %x", kind, to, b.Bytes(), whole)
			}
			ip := packet.IPv4HeaderLen
			if to.Is6() {
				ip = packet.IPv6HeaderLen
			}
			inner, ok := m.Quoted(whole, ip)
			if kind.Sealed() { // no router sees the packet
				if ok {
					t.Errorf("%v to %v: a quote of it is accepted", kind, to)
				}
				continue
			}
			if !ok || !bytes.Equal(inner, request) {
				t.Errorf("%v to %v: quoted is %x, %v", kind, to, inner, ok)
			}
		}
	}
}

package encap

import (
	"encoding/binary"
	"net/netip"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// Hops is a GUE header whose private data names the hosts that a packet may go on to, as GitHub's GLB director writes
// it (github/glb-director, docs/development/gue-header.md):
//
//	GUE header without flags, its Hlen is the number of hops + 1
//	type, 0 (2 bytes), index of the next hop (1), number of hops (1)
//	hops, an IPv4 address each
type Hops []byte

// Offsets in Hops.
const (
	hopsType  = packet.GUEHeaderLen
	hopsIndex = hopsType + 2
	hopsCount = hopsType + 3
	hopsList  = hopsType + 4
)

// HopLen is what one hop adds to a GUE header, in bytes.
const HopLen = hopsList - hopsType + 4

// encodeHop makes the GUE header in h one with a hop, and returns the number of bytes that it has more.
func encodeHop(h []byte) int {
	h[0], h[hopsCount] = HopLen/4, 1 // the rest is 0
	return HopLen
}

// parseHops returns the Hops at the front of b. ok is false if there are none.
func parseHops(b []byte) (h Hops, ok bool) {
	if len(b) < hopsList || b[0]&^0x1f != 0 || binary.BigEndian.Uint16(b[2:]) != 0 ||
		binary.BigEndian.Uint16(b[hopsType:]) != 0 {
		return nil, false
	}
	words := int(b[0] & 0x1f)
	if n := packet.GUEHeaderLen + 4*words; words == int(b[hopsCount])+1 && len(b) >= n {
		return b[:n], true
	}
	return nil, false
}

// Next returns the host that the packet may go on to. ok is false if there is none left.
func (h Hops) Next() (to netip.Addr, ok bool) {
	if h[hopsIndex] >= h[hopsCount] {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(h[hopsList+4*int(h[hopsIndex]):])), true
}

// DecapHops is Decap for a packet of KindGUE that may have hops. n is the length of the Hops, which are then in front
// of b; 0: it has none.
func (e *Decapsulator) DecapHops(b *packet.Buf, protocol, class byte) (n int, d drop.Reason) {
	h, ok := parseHops(b.Bytes())
	if !ok || e.Kind != KindGUE || protocol != packet.ProtoUDP || packet.GUE(h).Version() == 0 {
		return 0, e.Decap(b, protocol, class)
	}
	b.Strip(len(h))
	return len(h), checkInner(b, packet.GUE(h).Version(), class)
}

// Forward makes b the packet inner on its way to next, in place of the next of its hops. from and to are UDP ports. The
// kernel fills in source, ID and checksum of the outer IPv4 header. There is no UDP checksum. It returns drop.TooBig
// for a packet that no IP packet can carry.
func (h Hops) Forward(b *packet.Buf, inner []byte, next netip.Addr, from, to uint16) drop.Reason {
	const headers = packet.IPv4HeaderLen + packet.UDPHeaderLen
	n := headers + len(h) + len(inner)
	if n > packet.MaxLen {
		return drop.TooBig
	}
	p := b.Room()
	class, ttl, df, _ := outerFields(inner)
	ip := packet.IPv4(p)
	ip.Encode(packet.IPv4Fields{TotalLen: n, TTL: ttl, Protocol: packet.ProtoUDP, Dst: next.As4()})
	ip.SetTOS(class)
	ip.SetDF(df)
	ip.ClearChecksum()
	u := packet.UDP(p[packet.IPv4HeaderLen:headers])
	clear(u)
	u.SetSrcPort(from)
	u.SetDstPort(to)
	u.SetLen(n - packet.IPv4HeaderLen)
	copy(p[headers:], h)
	p[headers+hopsIndex]++
	copy(p[headers+len(h):], inner)
	b.SetLen(n)
	return drop.Accept
}

package encap

import (
	"net/netip"

	"vstun/encap/packet"
)

// MatchQuoted finds the packet in outer, the front of a packet as an ICMP error quotes it, which packet.QuotedPacket or
// QuotedFlow has accepted: as much of it as is there, which may be nothing. payload is the offset of what follows the
// outer IP headers. ok reports whether Wrap of this tunnel can have made the packet, as far as it is there: source,
// destination, protocol, UDP destination port, and GRE's and GUE's header.
func (t *Tunnel) MatchQuoted(outer []byte, payload int) (inner []byte, ok bool) {
	if t.overhead == 0 {
		return nil, false
	}
	up := outer[payload:]
	proto, version := t.protocol(), 0 // version: that the headers name, 0 where they name none
	if t.outerIs4() {
		h, ours := packet.IPv4(outer), packet.IPv4(t.header[:])
		if h.Version() != 4 || h.Dst() != ours.Dst() || !sourceMatches(h.Src(), ours.Src()) {
			return nil, false
		}
		if t.kind == KindIPIP && h.Protocol() == packet.ProtoIPv6 {
			proto, version = packet.ProtoIPv6, 6
		}
		ok = h.Protocol() == proto
	} else {
		h, ours := packet.IPv6(outer), packet.IPv6(t.header[:])
		if h.Version() != 6 || h.Dst() != ours.Dst() || !sourceMatches(h.Src(), ours.Src()) {
			return nil, false
		}
		next := h.NextHeader()
		if next == packet.ProtoFragment && payload == Fragment6HeadLen {
			next = packet.IPv6Fragment(outer[packet.IPv6HeaderLen:]).NextHeader() // of a packet that Fragment6 has cut
		}
		if t.kind == KindIPIP && next == packet.ProtoIPv6 {
			proto, version = packet.ProtoIPv6, 6
		}
		ok = next == proto
	}
	if !ok {
		return nil, false
	}
	n := int(t.overhead - t.ip) // of what stands between the IP headers
	made := t.header[t.ip:t.overhead]
	switch t.kind {
	case KindIPIP:
		if version == 0 {
			version = 4
		}
	case KindGRE:
		if len(up) >= packet.GREMinLen {
			h, ours := packet.GRE(up), packet.GRE(made)
			version = h.Version()
			if version == 0 || h.Flags() != ours.Flags() {
				return nil, false
			}
			if len(up) >= n && h.Flags()&packet.GREKey != 0 && h.Key() != ours.Key() {
				return nil, false
			}
		}
	case KindGUE, KindFOU:
		if len(up) >= 4 && packet.UDP(up).DstPort() != packet.UDP(made).DstPort() {
			return nil, false
		}
		if t.kind == KindGUE && len(up) >= n {
			h := packet.GUE(up[packet.UDPHeaderLen:])
			version = h.Version()
			if version == 0 || !h.Plain() || h.Variant() != 0 {
				return nil, false
			}
		}
	}
	if len(up) <= n {
		return nil, true
	}
	inner = up[n:]
	if v := packet.Version(inner); v != 4 && v != 6 || version != 0 && v != version {
		return nil, false
	}
	return inner, true
}

// sourceMatches reports whether a packet with this source can be the tunnel's. The tunnel's header names none where the
// kernel puts in the source of the route.
func sourceMatches(source, ours netip.Addr) bool { return ours.IsUnspecified() || source == ours }

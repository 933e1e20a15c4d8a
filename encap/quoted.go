package encap

import (
	"net/netip"

	"vstun/encap/packet"
)

// MatchQuoted finds the inner packet in outer, a tunnel packet that an ICMP error quotes. outer may be cut short.
// packet.QuotedPacket or QuotedFlow has accepted it. payload is the offset of the bytes behind the outer IP headers.
// inner is the part of the inner packet that outer has; it may be empty. ok reports whether Wrap of this tunnel can
// have made the tunnel packet. MatchQuoted compares the fields that outer has: source, destination, protocol, UDP
// destination port, and the GRE or GUE header.
func (t *Tunnel) MatchQuoted(outer []byte, payload int) (inner []byte, ok bool) {
	if t.overhead == 0 || t.kind.Sealed() { // no router has seen the packet inside WireGuard
		return nil, false
	}
	proto, ok := t.matchIP(outer, payload)
	if !ok {
		return nil, false
	}
	up := outer[payload:]
	version, ok := t.matchHeader(up, proto)
	if !ok {
		return nil, false
	}
	n := int(t.overhead - t.ip)
	if len(up) <= n {
		return nil, true
	}
	inner = up[n:]
	if v := packet.Version(inner); v != 4 && v != 6 || version != 0 && v != version {
		return nil, false
	}
	return inner, true
}

// matchIP returns the protocol behind the outer IP headers. ok reports whether they can be the tunnel's.
func (t *Tunnel) matchIP(outer []byte, payload int) (proto uint8, ok bool) {
	var source, ours netip.Addr
	if t.outerIs4() {
		h, made := packet.IPv4(outer), packet.IPv4(t.header[:])
		if h.Version() != 4 || h.Dst() != made.Dst() {
			return 0, false
		}
		source, ours, proto = h.Src(), made.Src(), h.Protocol()
	} else {
		h, made := packet.IPv6(outer), packet.IPv6(t.header[:])
		if h.Version() != 6 || h.Dst() != made.Dst() {
			return 0, false
		}
		source, ours, proto = h.Src(), made.Src(), h.NextHeader()
		if proto == packet.ProtoFragment && payload == Fragment6HeadLen { // Fragment6 cut the packet
			proto = packet.IPv6Fragment(outer[packet.IPv6HeaderLen:]).NextHeader()
		}
	}
	return proto, sourceMatches(source, ours) &&
		(proto == t.protocol() || t.kind.bare() && proto == packet.ProtoIPv6)
}

// matchHeader returns the IP version that the tunnel header at the front of up names, 0 for none. proto is the protocol
// number in the outer IP header. ok reports whether the header, which up may have only in part, can be the tunnel's.
func (t *Tunnel) matchHeader(up []byte, proto uint8) (version int, ok bool) {
	made := t.header[t.ip:t.overhead]
	whole := len(up) >= len(made)
	switch t.kind {
	case KindIPIP, KindWireGuard:
		if proto == packet.ProtoIPv6 {
			return 6, true
		}
		return 4, true
	case KindGRE:
		if len(up) < packet.GREMinLen {
			return 0, true
		}
		h, ours := packet.GRE(up), packet.GRE(made)
		if h.Version() == 0 || h.Flags() != ours.Flags() {
			return 0, false
		}
		return h.Version(), !whole || h.Flags()&packet.GREKey == 0 || h.Key() == ours.Key()
	case KindGUE, KindFOU:
		if len(up) >= 4 && packet.UDP(up).DstPort() != packet.UDP(made).DstPort() {
			return 0, false
		}
		if t.kind == KindGUE && whole {
			h := packet.GUE(up[packet.UDPHeaderLen:])
			if t.hop {
				hops, ok := parseHops(h)
				return h.Version(), ok && h.Version() != 0 && len(hops) == packet.GUEHeaderLen+HopLen
			}
			return h.Version(), h.Version() != 0 && h.Plain() && h.Variant() == 0
		}
	}
	return 0, true
}

// sourceMatches reports whether a packet with this source can be the tunnel's. ours is unspecified if the kernel fills
// in the source.
func sourceMatches(source, ours netip.Addr) bool { return ours.IsUnspecified() || source == ours }

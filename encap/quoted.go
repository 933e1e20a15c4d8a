package encap

import (
	"bytes"
	"encoding/binary"

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
	ip, up := t.header[:t.ip], outer[payload:]
	proto, version := t.protocol(), 0 // version: that the headers name, 0 where they name none
	if t.outerIs4() {
		h := packet.IPv4(outer)
		if h.Version() != 4 || !bytes.Equal(h[16:20], ip[16:20]) || !from(h[12:16], ip[12:16]) {
			return nil, false
		}
		if t.kind == KindIPIP && h.Protocol() == packet.ProtoIPv6 {
			proto, version = packet.ProtoIPv6, 6
		}
		ok = h.Protocol() == proto
	} else {
		h := packet.IPv6(outer)
		if h.Version() != 6 || !bytes.Equal(h[24:40], ip[24:40]) || !from(h[8:24], ip[8:24]) {
			return nil, false
		}
		next := h.NextHeader()
		if next == protoFragment && payload == Fragment6HeadLen {
			next = outer[packet.IPv6HeaderLen] // the first fragment of what Fragment6 has cut
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
		if len(up) >= greMinLen {
			h := gre(up)
			version = h.version()
			if version == 0 || h.flags() != gre(made).flags() {
				return nil, false
			}
			if len(up) >= n && h.flags()&greKey != 0 && h.key() != gre(made).key() {
				return nil, false
			}
		}
	case KindGUE, KindFOU:
		if len(up) >= 4 && binary.BigEndian.Uint16(up[2:]) != binary.BigEndian.Uint16(made[2:]) {
			return nil, false
		}
		if t.kind == KindGUE && len(up) >= n {
			h := gue(up[packet.UDPHeaderLen:])
			version = h.version()
			if version == 0 || !h.plain() || h.variant() != 0 {
				return nil, false
			}
		}
	}
	if len(up) <= n {
		return nil, true
	}
	inner = up[n:]
	if v := int(inner[0] >> 4); v != 4 && v != 6 || version != 0 && v != version {
		return nil, false
	}
	return inner, true
}

// from reports whether a packet of that source can be one of the tunnel's: its header names none where the kernel puts
// in the route's.
func from(source, ours []byte) bool {
	for _, b := range ours {
		if b != 0 {
			return bytes.Equal(source, ours)
		}
	}
	return true
}

package neigh

import (
	"encoding/binary"
	"net/netip"
)

// ndPacket is an IPv6 packet with a neighbour solicitation or advertisement (RFC 4861, sections 4.3 and 4.4):
//
//	+-------------------------------+
//	| IPv6 header (40): next header 58 at 6, hop limit 255 at 7, source at 8, destination at 24
//	+---------------+---------------+-------------------------------+
//	| 135, 136 (NA) |    code: 0    |           checksum            |  40
//	+-+-+-+---------+---------------+-------------------------------+
//	|R|S|O| reserved; flags in an advertisement only                |  44
//	+-+-+-+---------------------------------------------------------+
//	| target (16)                                                   |  48
//	+---------------+---------------+-------------------------------+
//	| options: 1, 2 | length 1 (8)  | MAC                              64
type ndPacket struct {
	kind     uint8 // solicitation or advertisement
	flags    uint8
	src, dst netip.Addr
	target   netip.Addr
	mac      MAC  // of the source (solicitation) or target (advertisement) link-layer option
	hasMAC   bool // it has that option
}

const (
	solicitation  = 135
	advertisement = 136

	solicited = 0x40 // S: it answers a solicitation
	override  = 0x20 // O: it replaces the neighbours' entries

	ipv6Len    = 40
	icmpv6     = 58
	hopLimit   = 255 // RFC 4861, section 7.1: the packet has passed no router
	ndTarget   = 48
	ndOptions  = 64
	sourceMAC  = 1 // options
	targetMAC  = 2
	optionUnit = 8 // bytes
)

var (
	allNodes    = netip.IPv6LinkLocalAllNodes()
	unspecified = netip.IPv6Unspecified()
)

// parseND returns b as a valid solicitation or advertisement: RFC 4861, sections 7.1.1 and 7.1.2.
func parseND(b []byte) (p ndPacket, ok bool) {
	if len(b) < ndOptions || b[0]>>4 != 6 || b[6] != icmpv6 || b[7] != hopLimit {
		return p, false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < ndOptions-ipv6Len || n > len(b)-ipv6Len {
		return p, false
	}
	b = b[:ipv6Len+n]
	p = ndPacket{kind: b[40], flags: b[44], src: netip.AddrFrom16([16]byte(b[8:])),
		dst: netip.AddrFrom16([16]byte(b[24:])), target: netip.AddrFrom16([16]byte(b[ndTarget:]))}
	if b[41] != 0 || p.target.IsMulticast() || p.src.IsMulticast() || ndChecksum(b) != 0 {
		return p, false
	}
	wanted := byte(sourceMAC)
	if p.kind == advertisement {
		wanted = targetMAC
	}
	for o := b[ndOptions:]; len(o) > 0; {
		if len(o) < optionUnit || o[1] == 0 || int(o[1])*optionUnit > len(o) {
			return p, false
		}
		if o[0] == wanted && o[1] == 1 {
			p.mac, p.hasMAC = MAC(o[2:]), true
		}
		o = o[int(o[1])*optionUnit:]
	}
	switch p.kind {
	case solicitation:
		return p, p.src != unspecified || p.dst == solicitedNode(p.target) && !p.hasMAC
	case advertisement:
		return p, !p.dst.IsMulticast() || p.flags&solicited == 0
	}
	return p, false
}

// bytes returns the packet, with its option if it has one.
func (p *ndPacket) bytes() []byte {
	b := make([]byte, ndOptions, ndOptions+optionUnit)
	if p.hasMAC {
		kind := byte(sourceMAC)
		if p.kind == advertisement {
			kind = targetMAC
		}
		b = append(append(b, kind, 1), p.mac[:]...)
	}
	b[0], b[6], b[7] = 0x60, icmpv6, hopLimit
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Len))
	copy(b[8:], p.src.AsSlice())
	copy(b[24:], p.dst.AsSlice())
	b[40], b[44] = p.kind, p.flags
	copy(b[ndTarget:], p.target.AsSlice())
	binary.BigEndian.PutUint16(b[42:], ndChecksum(b))
	return b
}

// ndChecksum returns the checksum of the ICMPv6 message in b, an IPv6 packet (RFC 4443, section 2.3). It is 0 if b has
// the right one.
func ndChecksum(b []byte) uint16 {
	sum := uint32(len(b)-ipv6Len) + icmpv6
	for _, part := range [][]byte{b[8:ipv6Len], b[ipv6Len:]} {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ndProbe returns the solicitation by which a host asks whether another one has a: RFC 4862, section 5.4.2.
func ndProbe(a netip.Addr) []byte {
	return (&ndPacket{kind: solicitation, src: unspecified, dst: solicitedNode(a), target: a}).bytes()
}

// ndAnnouncement returns the unsolicited advertisement of a (RFC 4861, section 7.2.6).
func ndAnnouncement(mac MAC, a netip.Addr) []byte {
	return (&ndPacket{kind: advertisement, flags: override, src: a, dst: allNodes, target: a, mac: mac, hasMAC: true}).
		bytes()
}

// answer returns the advertisement that answers the solicitation p, and the MAC address to send it to: RFC 4861,
// section 7.2.4; RFC 4862, section 5.4.3. p came in a frame from the address from.
func (p *ndPacket) answer(mac, from MAC) (b []byte, to MAC) {
	a := ndPacket{kind: advertisement, flags: override, src: p.target, dst: allNodes, target: p.target, mac: mac,
		hasMAC: true}
	if p.src == unspecified {
		return a.bytes(), groupMAC(allNodes)
	}
	a.flags |= solicited
	a.dst = p.src
	if p.hasMAC && p.mac.isHost() {
		from = p.mac
	}
	return a.bytes(), from
}

// solicitedNode returns the multicast group of the hosts that may have a: RFC 4291, section 2.7.1.
func solicitedNode(a netip.Addr) netip.Addr {
	g := [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff}
	of := a.As16()
	copy(g[13:], of[13:])
	return netip.AddrFrom16(g)
}

// groupMAC returns the MAC address of an IPv6 multicast group: RFC 2464, section 7.
func groupMAC(group netip.Addr) MAC {
	g := group.As16()
	return MAC{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

package encap

import (
	"vstun/encap/packet"
)

// The smallest MTU of a link, in bytes.
const (
	MinMTU  = 68   // IPv4: RFC 791, section 3.2
	MinMTU6 = 1280 // IPv6: RFC 8200, section 5
)

// Fragment6HeadLen is the room that Fragment6 needs for each piece, in bytes.
const Fragment6HeadLen = packet.IPv6HeaderLen + packet.IPv6FragmentLen

// Fragment cuts an outer IPv4 packet without options, whatever tunnel it is of, into pieces of at most mtu bytes (RFC
// 791, section 3.2) and appends them to segs. The headers of all but the first stand in room, 20 bytes each; the
// payload is not copied. id is the packet's ID, not 0, else the kernel would give each piece one of its own. mtu is at
// least MinMTU. The realserver's kernel puts the pieces together before its socket sees them. A packet that is a
// fragment itself becomes smaller ones of the same packet, if id is its own.
func Fragment(segs []packet.Segment, outer packet.IPv4, mtu int, id uint16, room []byte) []packet.Segment {
	const hl = packet.IPv4HeaderLen
	step := (mtu - hl) &^ 7
	payload := outer[hl:]
	more, first := outer.More(), outer.FragOffset()
	outer.SetID(id)
	for off := 0; off < len(payload); off += step {
		h := packet.IPv4(outer[:hl])
		if off > 0 {
			h = packet.IPv4(room[:hl:hl])
			room = room[hl:]
			copy(h, outer[:hl])
		}
		body := payload[off:min(off+step, len(payload))]
		h.SetTotalLen(hl + len(body))
		h.SetFragment(first+off, more || off+step < len(payload))
		segs = append(segs, packet.Segment{Head: h, Body: body})
	}
	return segs
}

// Fragment6 is Fragment for an outer IPv6 packet without extension headers (RFC 8200, section 4.5), larger than mtu,
// which is at least MinMTU6. The headers of all pieces stand in room, Fragment6HeadLen bytes each. id must not come
// again soon for the same addresses. The kernel fills in nothing.
func Fragment6(segs []packet.Segment, outer []byte, mtu int, id uint32, room []byte) []packet.Segment {
	step := (mtu - Fragment6HeadLen) &^ 7
	payload := outer[packet.IPv6HeaderLen:]
	for off := 0; off < len(payload); off += step {
		h := room[:Fragment6HeadLen:Fragment6HeadLen]
		room = room[Fragment6HeadLen:]
		copy(h, outer[:packet.IPv6HeaderLen])
		body := payload[off:min(off+step, len(payload))]
		ip, f := packet.IPv6(h), packet.IPv6Fragment(h[packet.IPv6HeaderLen:])
		ip.SetPayloadLen(packet.IPv6FragmentLen + len(body))
		f.Encode(packet.IPv6FragmentFields{
			NextHeader: ip.NextHeader(), Offset: off, More: off+step < len(payload), ID: id,
		})
		ip.SetNextHeader(packet.ProtoFragment)
		segs = append(segs, packet.Segment{Head: h, Body: body})
	}
	return segs
}

package encap

import (
	"encoding/binary"

	"vstun/encap/packet"
)

// MinMTU is the smallest MTU of an IPv4 link (RFC 791, section 3.2), in bytes.
const MinMTU = 68

// Fragment cuts an outer IPv4 packet without options into pieces of at most mtu bytes (RFC 791, section 3.2) and appends them to segs. The
// headers of all but the first stand in room, 20 bytes each; the payload is not copied. id is the packet's ID, not 0, else the kernel
// would give each piece one of its own. mtu is at least MinMTU. The realserver's kernel puts the pieces together before its raw
// socket sees them.
func Fragment(segs []packet.Segment, outer packet.IPv4, mtu int, id uint16, room []byte) []packet.Segment {
	const hl = packet.IPv4HeaderLen
	step := (mtu - hl) &^ 7
	payload := outer[hl:]
	binary.BigEndian.PutUint16(outer[4:], id)
	for off := 0; off < len(payload); off += step {
		h := packet.IPv4(outer[:hl])
		if off > 0 {
			h = packet.IPv4(room[:hl:hl])
			room = room[hl:]
			copy(h, outer[:hl])
		}
		body := payload[off:min(off+step, len(payload))]
		frag := uint16(off / 8)
		if off+step < len(payload) {
			frag |= 0x2000
		}
		h.SetTotalLen(hl + len(body))
		binary.BigEndian.PutUint16(h[6:], frag)
		segs = append(segs, packet.Segment{Head: h, Body: body})
	}
	return segs
}

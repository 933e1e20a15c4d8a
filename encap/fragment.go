package encap

import (
	"vstun/encap/packet"
)

// The smallest MTU of a link, in bytes.
const (
	MinMTU  = 68   // IPv4: RFC 791, section 3.2
	MinMTU6 = 1280 // IPv6: RFC 8200, section 5
)

// Fragment6HeadLen is the length of the headers of each piece that Fragment6 makes, in bytes.
const Fragment6HeadLen = packet.IPv6HeaderLen + packet.IPv6FragmentLen

// Fragment cuts an IPv4 packet into fragments of at most mtu bytes (RFC 791, section 3.2) and appends them to segs. It
// writes the headers of all fragments but the first to room, with options as long as the packet's own. It does not copy
// the payload. id is the packet's ID. It is not 0: the kernel would replace 0 by another ID in each fragment. mtu is at
// least MinMTU. The receiver's kernel reassembles the fragments before its socket gets them. A packet that is itself a
// fragment becomes smaller fragments of the same packet if id is its own ID.
func Fragment(segs []packet.Segment, outer packet.IPv4, mtu int, id uint16, room []byte) []packet.Segment {
	hl := outer.HeaderLen()
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
			clearOptions(h)
		}
		body := payload[off:min(off+step, len(payload))]
		h.SetTotalLen(hl + len(body))
		h.SetFragment(first+off, more || off+step < len(payload))
		segs = append(segs, packet.Segment{Head: h, Body: body})
	}
	return segs
}

// clearOptions replaces the options of h that only the first fragment has by "no operation" (RFC 791, section 3.1;
// Linux net/ipv4/ip_options.c, ip_options_fragment).
func clearOptions(h packet.IPv4) {
	const end, none, copied = 0, 1, 0x80
	for o := h[packet.IPv4HeaderLen:]; len(o) > 0 && o[0] != end; {
		n := 1
		if o[0] != none {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				return
			}
			n = int(o[1])
		}
		if o[0]&copied == 0 {
			for i := range n {
				o[i] = none
			}
		}
		o = o[n:]
	}
}

// Fragment6 is Fragment for an IPv6 packet without extension headers (RFC 8200, section 4.5) that is larger than mtu.
// mtu is at least MinMTU6. Fragment6 writes the headers of all fragments to room, Fragment6HeadLen bytes each. The
// caller must not reuse id soon for the same addresses. The kernel fills in nothing.
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

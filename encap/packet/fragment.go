package packet

import "vstun/encap/packet/drop"

// FragmentInfo tells what who puts packets together has to know of the packet in b, of either family, which has been
// checked or not. ok is false for a packet that is whole, for a bad one, and for a fragment that fits no packet: not
// the last one, but with a number of bytes that is no multiple of 8, or reaching beyond the 65,535 bytes that a packet
// may have (RFC 8200, section 4.5; for IPv4, RFC 791, section 3.2).
//
// offset is that of the fragment's data in the data of the whole packet, in bytes. With source, destination and id, for
// IPv4 with proto too, it names its place. proto is what the fragment names: over IPv6 that may be an extension header,
// and only the first fragment's counts. Where the data is, IPv4's Payload and IPv6's Transport say.
func FragmentInfo(b []byte) (id uint32, offset int, more bool, proto uint8, ok bool) {
	var size, before int // of the data here; of headers in the packet's length field
	if len(b) > 0 && b[0]>>4 == 6 {
		h := IPv6(b)
		t, d := h.parse()
		if d != drop.Accept || !t.Fragment {
			return 0, 0, false, 0, false
		}
		data := t.FragHeader + fragmentLen
		size, before = h.TotalLen()-data, data-fragmentLen-IPv6HeaderLen
		id, offset, more, proto = t.FragID, t.FragOffset, t.More, t.FragProto
	} else {
		h := IPv4(b)
		if h.Check() != drop.Accept || !h.Fragment() {
			return 0, 0, false, 0, false
		}
		field := h.frag()
		size, before = len(h.Payload()), h.HeaderLen()
		id, offset, more, proto = uint32(h.ID()), int(field&fragOffset)*8, field&flagMF != 0, h.Protocol()
	}
	if size == 0 || more && size%8 != 0 || before+offset+size > MaxLen {
		return 0, 0, false, 0, false
	}
	return id, offset, more, proto, true
}

package packet

import "vstun/encap/packet/drop"

// Fragment is the fields of a fragment that reassembly uses. Source, destination and ID identify its packet; over IPv4
// Proto does, too.
type Fragment struct {
	ID     uint32
	Offset int   // of the fragment's data in the data of the whole packet, in bytes
	More   bool  // not the last fragment
	Proto  uint8 // over IPv6 possibly an extension header, and only the first fragment's counts
}

// ParseFragment reads the fragment in b, of either family, which may be any bytes. Its data is at IPv4's Payload or
// IPv6's Transport. ok is false for a whole packet, for a bad packet, and for a fragment that cannot be part of a
// packet: one without data, one before the last whose data is not a multiple of 8 bytes, or one that ends beyond the
// 65,535 bytes of the largest packet (RFC 8200, section 4.5; for IPv4, RFC 791, section 3.2).
func ParseFragment(b []byte) (f Fragment, ok bool) {
	var size, before int // of the data here; of headers in the packet's length field
	if Version(b) == 6 {
		h := IPv6(b)
		t, d := h.parse()
		if d != drop.Accept || !t.Fragment {
			return Fragment{}, false
		}
		data := t.FragHeader + IPv6FragmentLen
		size, before = h.TotalLen()-data, data-IPv6FragmentLen-IPv6HeaderLen
		f = Fragment{ID: t.FragID, Offset: t.FragOffset, More: t.More, Proto: t.FragProto}
	} else {
		h := IPv4(b)
		if h.Check() != drop.Accept || !h.Fragment() {
			return Fragment{}, false
		}
		size, before = len(h.Payload()), h.HeaderLen()
		f = Fragment{ID: uint32(h.ID()), Offset: h.FragOffset(), More: h.More(), Proto: h.Protocol()}
	}
	if size == 0 || f.More && size%8 != 0 || before+f.Offset+size > MaxLen {
		return Fragment{}, false
	}
	return f, true
}

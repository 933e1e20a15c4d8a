package packet

import "vstun/encap/packet/drop"

// Extension headers (RFC 8200, section 4; IANA).
const (
	ExtHopByHop   = 0
	extRouting    = 43
	ProtoFragment = 44
	extAuth       = 51 // RFC 4302
	extDestOpts   = 60
	protoNoNext   = 59 // nothing follows
	protoESP      = 50 // the rest is encrypted
	optPad1       = 0
	optJumbo      = 0xc2 // RFC 2675
	maxExtension  = 8    // headers in one packet; RFC 8200, section 4.1, has six places
)

// Transport is the place of an IPv6 packet's transport header, and the contents of the extension headers before it.
type Transport struct {
	Proto    uint8 // of the header at Offset; also ESP (50) and "no next header" (59), which end the walk
	Offset   int   // from the IPv6 header on, in bytes
	Fragment bool  // a part of a packet, not a whole one with a fragment header (RFC 6946)

	// These are 0 without a fragment header. For a fragment that is not the first, Offset is the offset of its data.
	FragHeader int    // offset of the fragment header, in bytes
	FragName   int    // offset of the Next Header byte that names the fragment header; reassembly overwrites that byte
	FragProto  uint8  // the next header that the fragment header names, an extension header or the protocol
	FragOffset int    // of the data in the whole packet's fragmentable part, in bytes
	FragID     uint32 // the same for all fragments of a packet
	More       bool   // not the last fragment
}

// Transport walks over the extension headers of a whole packet.
//
// It returns drop.Truncated for a header that ends behind the packet, also in a first fragment, which must hold all
// headers (RFC 7112, section 5). It returns drop.SourceRoute for a routing header of type 0 (RFC 5095), or of another
// type that has segments left. It returns drop.BadHeader for headers in an impossible order or number, broken options,
// and jumbograms.
func (h IPv6) Transport() (Transport, drop.Reason) { return h.walk(h.TotalLen()) }

// extension reports whether proto is an extension header that can be walked over.
func extension(proto uint8) bool {
	switch proto {
	case ExtHopByHop, extRouting, ProtoFragment, extAuth, extDestOpts:
		return true
	}
	return false
}

// walk is Transport for the first end bytes of a packet.
func (h IPv6) walk(end int) (t Transport, d drop.Reason) {
	t.Proto, t.Offset = h.NextHeader(), IPv6HeaderLen
	name := 6 // offset of the byte that names the header at t.Offset
	for count := 0; extension(t.Proto); count++ {
		x := h[t.Offset:end]
		if count == maxExtension {
			return t, drop.BadHeader
		}
		if len(x) < 8 { // the shortest of each kind
			return t, drop.Truncated
		}
		n := 8 + int(x[1])*8
		switch t.Proto {
		case ProtoFragment:
			n = IPv6FragmentLen
		case extAuth:
			n = 8 + int(x[1])*4
			if n < 16 || n%8 != 0 { // RFC 4302, sections 2.2 and 3.3.3.2.1
				return t, drop.BadHeader
			}
		}
		if n > len(x) {
			return t, drop.Truncated
		}
		switch t.Proto {
		case ExtHopByHop:
			if count > 0 { // RFC 8200, section 4.1
				return t, drop.BadHeader
			}
			d = checkOptions6(x[2:n])
		case extDestOpts:
			d = checkOptions6(x[2:n])
		case extRouting:
			if kind, left := x[2], x[3]; kind == 0 || left > 0 {
				d = drop.SourceRoute
			}
		case ProtoFragment:
			if t.FragHeader != 0 {
				return t, drop.BadHeader
			}
			f := IPv6Fragment(x)
			t.FragHeader, t.FragName, t.FragProto = t.Offset, name, f.NextHeader()
			t.FragOffset, t.More, t.FragID = f.Offset(), f.More(), f.ID()
			t.Fragment = t.More || t.FragOffset > 0
		}
		if d != drop.Accept {
			return t, d
		}
		t.Proto, name, t.Offset = x[0], t.Offset, t.Offset+n
		if t.FragOffset > 0 {
			break // what follows is no header
		}
	}
	return t, drop.Accept
}

// checkOptions6 walks the options of a hop-by-hop or destination options header (RFC 8200, section 4.2).
func checkOptions6(o []byte) drop.Reason {
	for len(o) > 0 {
		if o[0] == optPad1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1])+2 > len(o) || o[0] == optJumbo {
			return drop.BadHeader
		}
		o = o[int(o[1])+2:]
	}
	return drop.Accept
}

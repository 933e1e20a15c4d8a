package encap

import (
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// unfinishedGRE reports whether the checksum of a header that has one may be wrong without damage. Packets that have
// met no wire since a kernel sent them, and GSO packets that GRO has made, come out of a raw socket with unfinished
// checksums. A GRE checksum that a network card was to compute is 0 then (gre_build_header in include/net/gre.h). One
// that was computed already becomes right when the checksum of the TCP or UDP packet inside is finished (lco_csum in
// include/linux/skbuff.h); that of a GSO packet is none at all. In both of these cases the checksum inside is the sum
// of the pseudo-header.
func unfinishedGRE(h packet.GRE) bool {
	if h.Checksum() == 0 {
		return true
	}
	p := h.Payload()
	var t []byte
	var proto byte
	var pseudo uint64
	switch h.Version() {
	case 4:
		in := packet.IPv4(p)
		if in.Check() != drop.Accept || in.Fragment() {
			return false
		}
		proto, t = in.Protocol(), in.Payload()
		pseudo = in.PseudoSum(len(t))
	case 6:
		in := packet.IPv6(p)
		if in.Check() != drop.Accept {
			return false
		}
		at, d := in.Transport()
		if d != drop.Accept || at.Fragment {
			return false
		}
		proto, t = at.Proto, in[at.Offset:in.TotalLen()]
		pseudo = in.PseudoSum(proto, len(t))
	}
	switch {
	case proto == packet.ProtoTCP && len(t) >= packet.TCPHeaderLen:
		return packet.TCP(t).Checksum() == packet.Fold(pseudo)
	case proto == packet.ProtoUDP && len(t) >= packet.UDPHeaderLen:
		return packet.UDP(t).Checksum() == packet.Fold(pseudo)
	}
	return false
}

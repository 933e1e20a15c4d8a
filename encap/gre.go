package encap

import (
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// unfinishedGRE reports whether the checksum of a header that has one may be wrong without damage. A raw socket
// delivers two kinds of packets with unfinished checksums: packets from a kernel on the same machine, and GSO packets
// that GRO has made. A GRE checksum that was left to the network card is 0 (gre_build_header in include/net/gre.h). A
// GRE checksum that the kernel computed is right only once the inner TCP or UDP checksum is finished (lco_csum in
// include/linux/skbuff.h). The GRE checksum of a GSO packet has no meaning. In the last two cases the inner checksum is
// the sum of the pseudo-header.
func unfinishedGRE(h packet.GRE) bool {
	if h.Checksum() == 0 {
		return true
	}
	p, version := h.Payload(), h.Version()
	if h.Type() == packet.EtherTypeTEB && len(p) >= packet.EthernetHeaderLen {
		var at int
		at, version = packet.Ethernet(p).IP()
		p = p[at:]
	}
	var t []byte
	var proto byte
	var pseudo uint64
	switch version {
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

package encap

import (
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// ECN codepoints, the low two bits of TOS and traffic class (RFC 3168, section 5).
const (
	ecnMask = 0x03
	ecnNot  = 0x00
	ecnECT1 = 0x01
	ecnECT0 = 0x02
	ecnCE   = 0x03
)

// exitECN returns the inner class with the congestion mark of the outer one (RFC 6040, section 4.2). A packet that
// cannot carry the mark is dropped.
func exitECN(outer, inner byte) (class byte, d drop.Reason) {
	o, i := outer&ecnMask, inner&ecnMask
	switch {
	case o == ecnCE && i == ecnNot:
		return inner, drop.Congestion
	case o == ecnCE, o == ecnECT1 && i == ecnECT0:
		return inner&^ecnMask | o, drop.Accept
	}
	return inner, drop.Accept
}

// mergeECN applies exitECN to the IPv4 packet inner, and updates the header's checksum.
func mergeECN(outer byte, inner packet.IPv4) drop.Reason {
	class, d := exitECN(outer, inner.TOS())
	if class != inner.TOS() {
		inner.SetTOS(class)
		inner.SetChecksum()
	}
	return d
}

// mergeECN6 is mergeECN for IPv6.
func mergeECN6(outer byte, inner packet.IPv6) drop.Reason {
	class, d := exitECN(outer, inner.TrafficClass())
	inner.SetTrafficClass(class)
	return d
}

// mergeFrameECN applies exitECN to the IP packet in an Ethernet frame, if there is one whose header is right. A frame
// without IP packet has no mark, and is not dropped.
func mergeFrameECN(outer byte, frame packet.Ethernet) drop.Reason {
	if outer&ecnMask == ecnNot {
		return drop.Accept
	}
	at, version := frame.IP()
	switch p := frame[at:]; {
	case version == 4 && packet.IPv4(p).Check() == drop.Accept:
		return mergeECN(outer, packet.IPv4(p))
	case version == 6 && packet.IPv6(p).Check() == drop.Accept:
		return mergeECN6(outer, packet.IPv6(p))
	}
	return drop.Accept
}

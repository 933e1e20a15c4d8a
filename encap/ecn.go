package encap

import "vstun/encap/packet"
import "vstun/encap/packet/drop"

// ECN codepoints, the low two bits of TOS and traffic class (RFC 3168, section 5).
const (
	ecnMask = 0x03
	ecnNot  = 0x00
	ecnECT1 = 0x01
	ecnECT0 = 0x02
	ecnCE   = 0x03
)

// exitECN returns the class with which a packet leaves a tunnel: congestion on the tunnel's path is marked in it, as
// RFC 6040, section 4.2, prescribes for every tunnel exit. A packet that cannot carry the mark is dropped.
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

// mergeECN gives the IPv4 packet inner the class it leaves the tunnel with. The header's checksum follows.
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

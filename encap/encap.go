// Package encap is the tunnel formats: it puts a tunnel's header before a packet and takes it off again, in place.
package encap

import "vstun/encap/packet"

// ECN codepoints, the low two bits of TOS (RFC 3168, section 5).
const (
	ecnMask = 0x03
	ecnNot  = 0x00
	ecnCE   = 0x03
)

// mergeECN brings what the tunnel's path said about congestion into the inner IPv4 packet, as RFC 6040, section 4.2, prescribes for every
// tunnel exit. The inner header's checksum follows.
func mergeECN(outerTOS byte, inner packet.IPv4) packet.Drop {
	o, i := outerTOS&ecnMask, inner.TOS()&ecnMask
	const ect0, ect1 = 0x02, 0x01
	switch {
	case o == ecnCE && i == ecnNot:
		return packet.DropCongestion
	case o == ecnCE && i != ecnCE, o == ect1 && i == ect0:
		inner.SetTOS(inner.TOS()&^ecnMask | o)
		inner.SetChecksum()
	}
	return packet.Accept
}

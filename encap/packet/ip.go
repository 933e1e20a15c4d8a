package packet

import "encoding/binary"

// Version is the first four bits of the packet in b: 4 or 6 for a known IP version. It is 0 for an empty b.
func Version(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return int(b[0] >> 4)
}

// LowerTTL decrements the TTL or hop limit of the packet in b, of either family. It returns false, and changes nothing,
// if the packet may not be forwarded: its TTL is 1 or 0 (RFC 1812, section 5.3.1; RFC 8200, section 3).
func LowerTTL(b []byte) bool {
	if h := IPv6(b); h.Version() == 6 {
		if h.HopLimit() <= 1 {
			return false
		}
		h.SetHopLimit(h.HopLimit() - 1)
		return true
	}
	h := IPv4(b)
	if h.TTL() <= 1 {
		return false
	}
	h.SetTTL(h.TTL() - 1)
	sum := uint32(binary.BigEndian.Uint16(h[10:])) + 0x100 // the TTL is the high byte of its word (RFC 1624)
	if sum >= 0xffff {
		sum++
	}
	binary.BigEndian.PutUint16(h[10:], uint16(sum))
	return true
}

// PseudoSum is the sum of the pseudo-header of the packet in b, of either family, for the checksum of TCP or UDP: proto
// is that protocol, n the length of its header and payload in bytes.
func PseudoSum(b []byte, proto uint8, n int) uint64 {
	if Version(b) == 6 {
		return IPv6(b).PseudoSum(proto, n)
	}
	return IPv4(b).PseudoSum(n)
}

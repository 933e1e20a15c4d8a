package packet

// Version is the first four bits of the packet in b: 4 or 6 for a known IP version. It is 0 for an empty b.
func Version(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return int(b[0] >> 4)
}

// PseudoSum is the sum of the pseudo-header of the packet in b, of either family, for the checksum of TCP or UDP: proto
// is that protocol, n the length of its header and payload in bytes.
func PseudoSum(b []byte, proto uint8, n int) uint64 {
	if Version(b) == 6 {
		return IPv6(b).PseudoSum(proto, n)
	}
	return IPv4(b).PseudoSum(n)
}

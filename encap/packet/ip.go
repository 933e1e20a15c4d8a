package packet

// Version is the IP version that the packet in b has by its first four bits, 4 or 6 for a known one; 0 for no bytes.
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

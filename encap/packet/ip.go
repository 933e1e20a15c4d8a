package packet

// Version is the IP version that the packet in b has by its first four bits, 4 or 6 for a known one; 0 for no bytes.
func Version(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return int(b[0] >> 4)
}

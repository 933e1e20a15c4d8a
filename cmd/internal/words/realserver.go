package words

import "net/netip"

// Realserver writes the ID of a realserver within its service: its address, and its own port, where it has one.
func Realserver(id netip.AddrPort) string {
	if id.Port() == 0 {
		return id.Addr().String()
	}
	return id.String()
}

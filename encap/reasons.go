package encap

import "vstun/encap/packet"

// Reasons of the realserver's agent that package packet does not name yet.
const (
	DropTunnelHeader   = packet.NumDrops + iota // a GRE or GUE header that is cut short, or says what no Exit understands
	DropTunnelKey                               // another GRE key than the one that is configured, or none, or one where none is
	DropTunnelChecksum                          // a wrong GRE checksum
)

package neigh

import "net"

const macLen = 6

// MAC is an Ethernet address.
type MAC [macLen]byte

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// isHost reports whether m can be the address of one host.
func (m MAC) isHost() bool { return m[0]&1 == 0 && m != MAC{} }

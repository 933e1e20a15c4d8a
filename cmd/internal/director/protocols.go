package director

import "vstun/encap/packet"

// protocols are the numbers of the protocols that a service can have in the configuration.
var protocols = map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "sctp": packet.ProtoSCTP}

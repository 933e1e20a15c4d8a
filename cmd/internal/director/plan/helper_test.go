package plan

import (
	"net/netip"

	"vstun/cmd/internal/config"
)

// running is a configuration to change.
func running() *config.Director {
	rs := func(last byte) config.RealserverRef {
		return config.RealserverRef{Address: netip.AddrFrom4([4]byte{10, 0, 11, last}),
			Tunnel: config.Tunnel{Encap: "ipip"}, Weight: 1}
	}
	vip := netip.MustParseAddr("198.51.100.80")
	return &config.Director{TUN: "vs0", Services: []config.Service{
		{Name: "web", VIPs: []netip.Addr{vip}, Protocol: "tcp", Ports: []config.PortRange{{First: 80, Last: 80}},
			Scheduler: "wlc", EncapPort: 6080, Quorum: 1,
			Realservers: []config.RealserverRef{rs(1), rs(2)}},
		{Name: "dns", VIPs: []netip.Addr{vip}, Protocol: "udp", Ports: []config.PortRange{{First: 53, Last: 53}},
			Scheduler: "rr", EncapPort: 6080, Quorum: 1},
	}}
}

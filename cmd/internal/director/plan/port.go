package plan

import (
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/routing"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// Port is the director's port of an Ethernet network: its TAP device. The zero value stands for a TUN device.
type Port struct {
	Device int     // index of the TAP device
	MAC    [6]byte // that neighbours know
	MTU    int     // of the network, in bytes
	// Own is the director's own addresses in the network: a link-local one, and those of source that the host does not
	// have.
	Own []netip.Addr
}

// portMTU is the largest MTU of a TAP device. It leaves its bridge the MTU that it has: the smallest of all ports'.
const portMTU = 65535 - 14

// announceOnPort is Announce for a TAP device. The network's hosts find each VIP there, whatever the host's subnets
// are. They find the director's own addresses in any case.
func announceOnPort(in Inputs) []neigh.Device {
	d := neigh.Device{Name: in.Config.TUN, Index: in.Port.Device, MAC: in.Port.MAC,
		Addrs: unique(slices.Clone(in.Port.Own)), Elected: len(in.Config.VRRP) > 0}
	if !in.Config.Announce.Off {
		d.Addrs, d.Former = unique(slices.Concat(in.active(VIPs(in.Config)), in.Port.Own)), in.RetiredVIPs
	}
	for _, on := range []string{in.Config.TUN, in.Config.Bridge} {
		if i := slices.IndexFunc(in.Devices, func(d query.Device) bool { return d.Name == on }); i >= 0 {
			d.Losses += in.Devices[i].Losses
		}
	}
	return []neigh.Device{d}
}

// portMachine is Machine for a TAP device. The host forwards no packet for it: it needs neither forwarding nor routes
// of VIPs. Only the host's own packets to VIPs have routes, as with a TUN device, and only if there are checks that
// send such packets.
func portMachine(in Inputs) routing.State {
	cfg := in.Config
	port := routing.Link{Name: cfg.TUN, TxQueueLen: queueLen, Bridge: cfg.Bridge, Up: true}
	if cfg.Bridge != "" {
		port.MTU = portMTU
	}
	s := routing.State{Links: []routing.Link{port}, Sysctls: deviceSysctls(cfg.TUN, false), Loose: in.ReplyLinks,
		Addrs: in.owned()}
	var vips []netip.Addr // that are checked
	tunnelChecks(cfg, func(s *config.Service, _ *config.RealserverRef) { vips = append(vips, s.VIPs...) })
	if len(vips) == 0 {
		return s
	}
	vips = unique(vips)
	s.Links = append(s.Links, routing.Link{Name: cfg.LocalTUN(), MTU: deviceMTU, TxQueueLen: queueLen, Up: true})
	s.Sysctls = append(s.Sysctls, deviceSysctls(cfg.LocalTUN(), slices.ContainsFunc(vips, netip.Addr.Is6))...)
	for _, six := range []bool{false, true} {
		has := func(vip netip.Addr) bool { return vip.Is6() == six }
		table := 0 // without rules
		if rules := in.Rules.IPv4 && !six || in.Rules.IPv6 && six; rules && slices.ContainsFunc(vips, has) {
			table = cfg.Table
			s.Rules = append(s.Rules, routing.Rule{IPv6: six, Table: table, Priority: localPriority})
		}
		for _, vip := range vips {
			if has(vip) {
				s.Routes = append(s.Routes, routing.Route{Dst: netip.PrefixFrom(vip, vip.BitLen()),
					Link: cfg.LocalTUN(), Table: table})
			}
		}
	}
	return s
}

package plan

import (
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/routing/announce"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// Speaker returns the configuration of the BGP speaker. Peers that get VIPs of the family that the session does not
// have get the next hop of this family from the device by which they are neighbours, unless they have one.
func Speaker(in Inputs) announce.Config {
	c := in.Config.BGP.Config
	c.Peers = slices.Clone(c.Peers)
	for i := range c.Peers {
		p := &c.Peers[i]
		if other := p.Addr.Is4() && p.IPv6 || p.Addr.Is6() && p.IPv4; other && !p.NextHop.IsValid() {
			p.NextHop = nextHop(p, in.Devices, in.Config.VRRP)
		}
	}
	return c
}

// nextHop returns an address of the family that the session with p does not have, of the device by which p is a
// neighbour; the zero Addr: there is none. Of several it is the least: the kernel lists new ones of IPv6 first. It is
// none that the master of an instance of VRRP has, since that moves.
func nextHop(p *announce.Peer, devices []query.Device, roles []config.VRRP) (hop netip.Addr) {
	moves := func(a netip.Addr) bool {
		return slices.ContainsFunc(roles, func(v config.VRRP) bool {
			return slices.ContainsFunc(v.Owned, func(o config.Owned) bool { return o.Prefix.Addr() == a })
		})
	}
	for i := range devices {
		d := &devices[i]
		if !slices.ContainsFunc(d.Addrs, func(a netip.Prefix) bool { return neighbour(a, p.Addr) }) {
			continue
		}
		for _, a := range d.Addrs {
			at := a.Addr()
			if at.Is4() != p.Addr.Is4() && !at.IsLinkLocalUnicast() && !moves(at) && (!hop.IsValid() || at.Less(hop)) {
				hop = at
			}
		}
	}
	return hop
}

// Routes returns the VIPs for routers, in ascending order: those of a service that has its quorum, or that is always
// announced. VRRP decides about the VIPs of its instances: the master announces them, and backups yield them. The
// others are announced by each director that does not stand by.
func Routes(in Inputs, services map[string]ServiceState) (all []announce.Route) {
	cfg := in.Config
	if !cfg.BGP.On() {
		return nil
	}
	var vips []netip.Addr
	for i := range cfg.Services {
		s := &cfg.Services[i]
		if st := services[s.Name]; s.AnnounceAlways || st.Up && st.Known {
			vips = append(vips, s.VIPs...)
		}
	}
	configured := make(map[netip.Addr]announce.Route, len(cfg.BGP.VIPs))
	for _, r := range cfg.BGP.VIPs {
		configured[r.VIP] = r
	}
	roles := in.vipRoles()
	for _, vip := range unique(vips) {
		r := configured[vip]
		r.VIP = vip
		switch role, elected := roles[vip]; {
		case elected && role < vrrp.Backup, !elected && in.Held:
			continue
		case elected:
			r.Yielded = role == vrrp.Backup
		default:
			r.Yielded = in.Standby
		}
		all = append(all, r)
	}
	return all
}

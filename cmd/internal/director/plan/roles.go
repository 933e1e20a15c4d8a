package plan

import (
	"maps"
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/routing"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// mastered returns the instances of VRRP whose master this director is.
func (in *Inputs) mastered() (all []*config.VRRP) {
	for i := range in.Config.VRRP {
		if v := &in.Config.VRRP[i]; in.Roles[v.Name] == vrrp.Master {
			all = append(all, v)
		}
	}
	return all
}

// vipRoles returns this director's roles for the VIPs that instances of VRRP have: the best one, if several have a VIP.
func (in *Inputs) vipRoles() map[netip.Addr]vrrp.Role {
	all := map[netip.Addr]vrrp.Role{}
	for i := range in.Config.VRRP {
		v := &in.Config.VRRP[i]
		for _, vip := range v.VIPs {
			all[vip] = max(all[vip], in.Roles[v.Name])
		}
	}
	return all
}

// Elsewhere returns those of vips that another director is to have: it is the master of their instance.
func (in *Inputs) Elsewhere(vips []netip.Addr) []netip.Addr {
	roles := in.vipRoles()
	return slices.DeleteFunc(slices.Clone(vips), func(vip netip.Addr) bool {
		role, elected := roles[vip]
		return !elected || role == vrrp.Master
	})
}

// active returns those of vips that this director has the role for: all without [[vrrp]].
func (in *Inputs) active(vips []netip.Addr) []netip.Addr {
	if len(in.Config.VRRP) == 0 {
		return vips
	}
	roles := in.vipRoles()
	return slices.DeleteFunc(slices.Clone(vips), func(vip netip.Addr) bool { return roles[vip] != vrrp.Master })
}

// elected returns the addresses of VRRP that neighbours on a device are to learn of: VIPs of the instances there, also
// those outside of its subnets, and the addresses that this host has as the master.
func (in *Inputs) elected(device string) (all []netip.Addr) {
	for _, v := range in.mastered() {
		if v.Device == device && Announces(in.Config, device) {
			all = append(all, v.VIPs...)
		}
		for _, o := range v.Owned {
			if o.Device == device && !in.Unowned {
				all = append(all, o.Prefix.Addr())
			}
		}
	}
	return all
}

// owned returns the addresses that this host has as the master, on devices that exist.
func (in *Inputs) owned() (all []routing.Addr) {
	if in.Unowned {
		return nil
	}
	for _, v := range in.mastered() {
		for _, o := range v.Owned {
			if slices.ContainsFunc(in.Devices, func(d query.Device) bool { return d.Name == o.Device }) {
				all = append(all, routing.Addr{Link: o.Device, Prefix: o.Prefix, Global: true})
			}
		}
	}
	return all
}

// SameOwned reports whether in and o need the same addresses of this host.
func (in *Inputs) SameOwned(o *Inputs) bool { return slices.Equal(in.owned(), o.owned()) }

// SameRoles reports whether in and o have the same roles.
func (in *Inputs) SameRoles(o *Inputs) bool { return maps.Equal(in.Roles, o.Roles) }

// SameDevices reports whether in and o have the same devices, as far as the election of VRRP depends on them.
func (in *Inputs) SameDevices(o *Inputs) bool {
	return len(in.Config.VRRP) == 0 || slices.EqualFunc(in.Devices, o.Devices, func(a, b query.Device) bool {
		return a.Name == b.Name && a.Index == b.Index && a.Running == b.Running && a.Removals == b.Removals &&
			slices.Equal(a.Addrs, b.Addrs)
	})
}

// Unlisted returns the VIPs in a subnet of this host, or in the network of the TAP device, that no instance of VRRP
// has, in ascending order, with the device of the subnet. There are none without [[vrrp]]. Each director would answer
// for such a VIP.
func Unlisted(cfg *config.Director, devices []query.Device) (all []netip.Addr, on []string) {
	if len(cfg.VRRP) == 0 || cfg.Announce.Off {
		return nil, nil
	}
	var listed []netip.Addr
	for i := range cfg.VRRP {
		listed = append(listed, cfg.VRRP[i].VIPs...)
	}
	for _, vip := range VIPs(cfg) {
		if cfg.TAP && !slices.Contains(listed, vip) {
			all, on = append(all, vip), append(on, cfg.TUN)
			continue
		}
		at := slices.IndexFunc(devices, func(d query.Device) bool {
			return d.Neighbours && Announces(cfg, d.Name) && len(onLink(&d, []netip.Addr{vip})) > 0
		})
		if at >= 0 && !slices.Contains(listed, vip) {
			all, on = append(all, vip), append(on, devices[at].Name)
		}
	}
	return all, on
}

// Tracks returns the states of what the instances depend on, by the instances' names. gateway reports whether a gateway
// answers, and whether that is known.
func Tracks(cfg *config.Director, devices []query.Device, d *Desired,
	gateway func(netip.Addr) (up, known bool)) map[string][]vrrp.Track {
	all := map[string][]vrrp.Track{}
	for i := range cfg.VRRP {
		v := &cfg.VRRP[i]
		for n := range v.Track {
			k := &v.Track[n]
			up, known := false, true
			switch {
			case k.Device != "":
				up = slices.ContainsFunc(devices, func(d query.Device) bool {
					return d.Name == k.Device && d.Running
				})
			case k.Realserver.IsValid():
				id := RealserverID{k.Service, k.Realserver}
				up, known = !d.Down[id], !d.Unconfirmed[id]
			case k.Service != "":
				up, known = d.Services[k.Service].Up, d.Services[k.Service].Known
			default:
				up, known = gateway(k.Gateway)
			}
			all[v.Name] = append(all[v.Name],
				vrrp.Track{Name: k.Name(), Up: up || !known, Unknown: !known, Weight: k.Weight})
		}
	}
	return all
}

// Gateways returns the gateways that instances depend on, in ascending order, each once.
func Gateways(cfg *config.Director) (all []netip.Addr) {
	for i := range cfg.VRRP {
		for _, k := range cfg.VRRP[i].Track {
			if k.Gateway.IsValid() {
				all = append(all, k.Gateway)
			}
		}
	}
	return unique(all)
}

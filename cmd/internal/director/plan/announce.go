package plan

import (
	"bytes"
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// Announce returns the devices on which the director answers ARP and neighbour discovery, with the VIPs in their
// subnets. Neighbours there look for the VIPs themselves, and send no packets for them to a router. Retired VIPs are
// given up: another host may have them now. With [[vrrp]] the director's roles decide.
func Announce(in Inputs) (all []neigh.Device) {
	cfg := in.Config
	if cfg.TAP {
		return announceOnPort(in)
	}
	vips, own := in.active(VIPs(cfg)), ownMACs(in.Devices)
	for i := range in.Devices {
		d := &in.Devices[i]
		if !d.Running || !d.Neighbours {
			continue
		}
		row := neigh.Device{Name: d.Name, Index: d.Index, MAC: d.MAC, Own: own, Losses: d.Losses,
			Addrs: in.elected(d.Name), Elected: len(cfg.VRRP) > 0}
		if Announces(cfg, d.Name) {
			row.Addrs = unique(append(row.Addrs, onLink(d, vips)...))
			row.Former = onLink(d, in.RetiredVIPs)
		}
		if len(row.Addrs)+len(row.Former) > 0 {
			all = append(all, row)
		}
	}
	return all
}

// ownMACs returns the MAC addresses of the devices by which this host uses IP, in ascending order. Two of them may be
// on the same link, where they are not another host.
func ownMACs(devices []query.Device) (all []neigh.MAC) {
	for i := range devices {
		if d := &devices[i]; d.Neighbours && len(d.Addrs) > 0 {
			all = append(all, d.MAC)
		}
	}
	slices.SortFunc(all, func(a, b neigh.MAC) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(all)
}

// Announces reports whether cfg lets the director announce VIPs on a device.
func Announces(cfg *config.Director, device string) bool {
	if cfg.Announce.Off || device == cfg.TUN || device == cfg.LocalTUN() {
		return false
	}
	return len(cfg.Announce.Devices) == 0 || slices.Contains(cfg.Announce.Devices, device)
}

// onLink returns those of vips that lie in a subnet of d.
func onLink(d *query.Device, vips []netip.Addr) (all []netip.Addr) {
	for _, vip := range vips {
		if slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return neighbour(p, vip) }) {
			all = append(all, vip)
		}
	}
	return all
}

// neighbour reports whether a can be another host in the subnet of an address: it is not the subnet's broadcast address
// or number (RFC 919, section 7). A subnet of IPv4 with two addresses has neither (RFC 3021).
func neighbour(of netip.Prefix, a netip.Addr) bool {
	if !of.Contains(a) || of.IsSingleIP() || a == of.Addr() {
		return false
	}
	if !a.Is4() || of.Bits() == 31 {
		return true
	}
	return a != of.Masked().Addr() && of.Contains(a.Next())
}

// Added returns the VIPs of is, by device, that are not announced there in was.
func Added(was, is []neigh.Device) (all []neigh.Device) {
	for _, d := range is {
		at := slices.IndexFunc(was, func(o neigh.Device) bool { return o.Index == d.Index })
		if at >= 0 {
			d.Addrs = slices.DeleteFunc(slices.Clone(d.Addrs), func(a netip.Addr) bool {
				return slices.Contains(was[at].Addrs, a)
			})
		}
		d.Former = nil
		if len(d.Addrs) > 0 {
			all = append(all, d)
		}
	}
	return all
}

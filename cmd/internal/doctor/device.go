package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/words"
	"vstun/routing/kernel"
	"vstun/routing/query"
)

// vipRoutes examines whether the VIPs' packets get to the director. Packets from the network use the device tun. This
// host's own packets, such as health checks, use the device local.
func (res *result) vipRoutes(tun, local string, vips []netip.Addr) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	for _, name := range []string{tun, local} {
		at := slices.IndexFunc(devices, func(d query.Device) bool { return d.Name == name })
		if at >= 0 && devices[at].Up {
			continue
		}
		why := "no packet gets to the director"
		if name == local {
			why = "health checks share the clients' queues: a flood makes them fail"
		}
		res.find(Finding{Severity: Error, Where: name, What: "the device is gone, or down", Why: why,
			Fix:     fmt.Sprintf("ip link set %s up", name),
			Remarks: []string{"if it is gone: systemctl restart vstun-director"}})
	}
	if len(res.findings) > 0 {
		return
	}
	good := true
	for _, vip := range vips {
		for _, p := range res.paths(tun, local, vip, devices) {
			hop, ok, err := p.lookup()
			if res.failed(err) {
				return
			}
			if ok && hop.Link == p.device {
				continue
			}
			good = false
			f := Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", vip), What: "there is no route to it" + p.of,
				Why: p.why, Fix: p.fix, Remarks: []string{"remove the route or rule that leads elsewhere"}}
			if ok {
				f.What = fmt.Sprintf("%s go to %s, not to %s", p.packets, hop.Link, p.device)
				if hop.Gateway.IsValid() {
					f.What = fmt.Sprintf("%s go to %s by %s, not to %s", p.packets, hop.Gateway, hop.Link, p.device)
				}
			}
			res.find(f)
			break // the other path has the same cause
		}
	}
	if good {
		res.fine("%s is up, and takes the packets of %s; %s takes this host's own", tun, words.Count(len(vips), "VIP"),
			local)
	}
}

// vipPath is a path of packets to a VIP.
type vipPath struct {
	lookup  func() (query.Path, bool, error)
	device  string // the device that they must reach
	packets string
	of      string // " for …", if it is not all packets
	why     string // the effect of its fault
	fix     string
}

// paths returns the paths of packets to vip: from the network, if the kernel can be asked about it, and from this host.
func (res *result) paths(tun, local string, vip netip.Addr, devices []query.Device) (all []vipPath) {
	if from, link, ok := exampleClient(vip.Is6(), devices); ok {
		all = append(all, vipPath{
			lookup: func() (query.Path, bool, error) { return query.LookupForwarded(vip, from, link) },
			device: tun, packets: "its packets", why: "its packets never get to the director",
			fix: fmt.Sprintf("ip route get %s from %s iif %s; ip rule", vip, from, link),
		})
	}
	if query.HasRules(vip.Is6()) {
		all = append(all, vipPath{
			lookup: func() (query.Path, bool, error) { return query.Lookup(vip, netip.Addr{}) },
			device: local, packets: "this host's own packets", of: " for this host's own packets",
			why: "health checks fail, or share the clients' queues", fix: fmt.Sprintf("ip route get %s; ip rule", vip),
		})
	}
	return all
}

// exampleClient returns the address of a client and the device on which its packets arrive and are forwarded: by the
// default route, or from a subnet of this host. The kernel shows no route for a device that does not forward: see
// forwarding.
func exampleClient(six bool, devices []query.Device) (from netip.Addr, link string, ok bool) {
	if hop, ok, err := query.Lookup(outside[six], netip.Addr{}); err == nil && ok && forwards(hop.Link, six) {
		return outside[six], hop.Link, true
	}
	for _, d := range devices {
		for _, p := range d.Addrs {
			if near := neighbour(p); d.Up && !d.Loopback && p.Addr().Is6() == six && p.Addr().IsGlobalUnicast() &&
				near.IsValid() && forwards(d.Name, six) {
				return near, d.Name, true
			}
		}
	}
	return netip.Addr{}, "", false
}

// neighbour returns an address in p's subnet that is not p's own; the zero Addr if there is none.
func neighbour(p netip.Prefix) netip.Addr {
	for _, a := range []netip.Addr{p.Addr().Next(), p.Addr().Prev()} {
		if a.IsValid() && p.Contains(a) && a != p.Masked().Addr() {
			return a
		}
	}
	return netip.Addr{}
}

// forwards reports whether the kernel forwards packets that arrive on a device.
func forwards(link string, six bool) bool {
	key := "net/ipv4/conf/" + link + "/forwarding"
	if six {
		key = "net/ipv6/conf/" + link + "/forwarding"
	}
	value, err := kernel.ReadSysctl(key)
	return err == nil && value == "1"
}

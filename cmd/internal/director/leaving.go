package director

import (
	"cmp"
	"net/netip"

	"vstun/balancer"
	"vstun/routing"
)

// refreshLeaving takes over what the kernel has learned about the ways to realservers that have left, and have
// connections still.
func (d *director) refreshLeaving() {
	var all []netip.Addr
	for _, l := range d.bal.Leaving() {
		all = append(all, l.Address)
	}
	if len(all) == 0 {
		return
	}
	ways, err := routing.Paths(all)
	if err != nil {
		return // the configured ones' are asked for as well, and the log says so
	}
	known := make(map[netip.Addr]balancer.Path, len(ways))
	for a := range ways {
		known[a] = balancer.Path{MTU: pathMTU(ways, a), Source: cmp.Or(d.cfg.Source.For(a), ownAddress(ways, a))}
	}
	d.bal.Reroute(known)
}

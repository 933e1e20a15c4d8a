package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"
)

// Network is how the hosts of a lab are connected.
type Network int

const (
	// Routed gives each host a subnet of its own behind the router.
	Routed Network = iota
	// LAN puts the director, the web servers and the virtual address into one subnet behind the router, as VS/DR needs
	// it. No host answers ARP or neighbour solicitations for the virtual address.
	LAN
	// NAT puts the web servers into a private subnet behind the director, as VS/NAT needs it. The director is their
	// gateway, and forwards packets.
	NAT
)

// layout is a lab before it is built: its hosts, the links between them, and the router's routes.
type layout struct {
	router, client, director *Host
	bridge                   *Host // with the bridge of a LAN or NAT network
	backup                   *Host // the second director of a LAN
	insider                  *Host
	webs                     []*Host
	hosts                    []*Host // all of them
	wires                    []*wire
	routes                   []route
	vip                      [2]netip.Addr // IPv4, IPv6
}

// wire is a link between two hosts: a veth pair.
type wire struct {
	name      string // in Spec.Links
	near, far *end   // near is the end at the router, or at the bridge
	Link
}

// end is one end of a wire. A port of the bridge has no address.
type end struct {
	host    *Host
	name    string
	addr    [2]netip.Addr // IPv4, IPv6
	gateway *end          // of the host's default routes; nil: this link has none
}

// route is a route of the router, to a network of either family.
type route struct {
	to  [2]netip.Prefix
	via *end
}

// plan checks the spec and lays out the lab.
func plan(spec Spec) (*layout, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$`).MatchString(spec.Prefix) {
		return nil, fmt.Errorf("prefix %q: use 1 to 40 letters, digits, dots, dashes and underscores", spec.Prefix)
	}
	most := 245 // subnets of web servers
	if spec.Network != Routed {
		most = 60 // addresses before the virtual one
	}
	if spec.Webs < 0 || spec.Webs > most {
		return nil, fmt.Errorf("%d web servers: use 0 to %d", spec.Webs, most)
	}
	if spec.Backup && spec.Network != LAN {
		return nil, errors.New("a second director: use it in the network LAN")
	}
	y := &layout{vip: [2]netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, 80}),
		netip.MustParseAddr("2001:db8:100::80")}}
	y.router, y.client, y.director = y.host(spec, "router"), y.host(spec, "client"), y.host(spec, "director")
	if spec.Network != Routed {
		y.bridge, y.insider = y.host(spec, "switch"), y.host(spec, "insider")
	}
	if spec.Backup {
		y.backup = y.host(spec, "director2")
	}
	for n := 1; n <= spec.Webs; n++ {
		y.webs = append(y.webs, y.host(spec, fmt.Sprintf("web%d", n)))
	}
	y.toRouter(y.client, 1)
	switch spec.Network {
	case Routed:
		y.routeVIP(y.toRouter(y.director, 2))
		for n, web := range y.webs {
			y.toRouter(web, 11+n)
		}
	case LAN:
		gateway := &end{host: y.router, name: "lan", addr: addresses(2, 1)}
		y.toBridge("lan", gateway)
		y.toBridge("director", &end{host: y.director, name: uplink, addr: addresses(2, 2), gateway: gateway})
		if y.backup != nil {
			y.toBridge("director2", &end{host: y.backup, name: uplink, addr: addresses(2, 3), gateway: gateway})
		}
		y.behind(gateway, 2)
		y.vip = addresses(2, 80)
	case NAT:
		director := y.toRouter(y.director, 2)
		y.routeVIP(director)
		gateway := &end{host: y.director, name: downlink, addr: addresses(3, 1)}
		y.toBridge("lan", gateway)
		y.behind(gateway, 3)
		private := addresses(3, 0)
		y.routes = append(y.routes, route{[2]netip.Prefix{netip.PrefixFrom(private[0], 24),
			netip.PrefixFrom(private[1], 64)}, director})
	default:
		return nil, fmt.Errorf("network %d: use Routed, LAN or NAT", spec.Network)
	}
	return y, y.equip(spec.Links)
}

// addresses returns the IPv4 and IPv6 address of a host in a subnet. Both have the same digits: the IPv6 ones are
// hexadecimal.
func addresses(subnet, last int) [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(subnet), byte(last)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:0:%d::%d", subnet, last))}
}

func (y *layout) host(spec Spec, name string) *Host {
	h := &Host{Name: name, Namespace: spec.Prefix + "-" + name, work: make(chan func())}
	y.hosts = append(y.hosts, h)
	return h
}

// toRouter connects a host with the router, in a subnet of its own, and returns the host's end.
func (y *layout) toRouter(h *Host, subnet int) *end {
	near := &end{host: y.router, name: h.Name, addr: addresses(subnet, 1)}
	far := &end{host: h, name: uplink, addr: addresses(subnet, 2), gateway: near}
	y.wires = append(y.wires, &wire{name: h.Name, near: near, far: far})
	return far
}

// toBridge connects a host's end with the bridge.
func (y *layout) toBridge(name string, far *end) {
	port := &end{host: y.bridge, name: far.host.Name}
	y.wires = append(y.wires, &wire{name: name, near: port, far: far})
}

// behind connects the insider and the web servers with the bridge, in one subnet.
func (y *layout) behind(gateway *end, subnet int) {
	y.toBridge("insider", &end{host: y.insider, name: uplink, addr: addresses(subnet, 9), gateway: gateway})
	for n, web := range y.webs {
		y.toBridge(web.Name, &end{host: web, name: uplink, addr: addresses(subnet, 11+n), gateway: gateway})
	}
}

// routeVIP makes the router route the virtual addresses to the director.
func (y *layout) routeVIP(director *end) {
	y.routes = append(y.routes, route{[2]netip.Prefix{netip.PrefixFrom(y.vip[0], 32),
		netip.PrefixFrom(y.vip[1], 128)}, director})
}

// equip gives the wires their options, and the hosts the addresses of their first wires.
func (y *layout) equip(links map[string]Link) error {
	known := map[string]*wire{}
	for _, w := range y.wires {
		known[w.name] = w
	}
	for name, link := range links {
		switch {
		case known[name] == nil:
			return fmt.Errorf("link of %q: no such link", name)
		case link.MTU != 0 && (link.MTU < 68 || link.MTU > 65535):
			return fmt.Errorf("link of %s: MTU %d: use 68 to 65535, or 0 for 1500", name, link.MTU)
		case link.GRO < 0 || link.GRO > time.Second:
			return fmt.Errorf("link of %s: GRO for %v: use up to 1s, or 0 for none", name, link.GRO)
		}
		known[name].Link = link
	}
	for _, w := range y.wires {
		if w.MTU == 0 {
			w.MTU = 1500
		}
		for _, e := range []*end{w.near, w.far} {
			if w.MTU < minMTU6 || !hasIPv6() {
				e.addr[1] = netip.Addr{}
			}
			if !e.host.Addr.IsValid() {
				e.host.Addr, e.host.Addr6 = e.addr[0], e.addr[1]
			}
		}
	}
	return nil
}

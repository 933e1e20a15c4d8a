package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/wireguard"
	"vstun/routing/query"
)

// Paths is the kernel's knowledge about the paths to addresses. The zero Path stands for an address without a route. An
// address is missing as long as the kernel has not been asked for it. A Paths is immutable.
type Paths map[netip.Addr]query.Path

// defaultMTU is the MTU of a path that is not known: Ethernet's.
const defaultMTU = 1500

// The default routes lead to these addresses, which no host has (RFC 5737, RFC 3849).
var (
	documentation4 = netip.MustParseAddr("192.0.2.1")
	documentation6 = netip.MustParseAddr("2001:db8::1")
)

// Destinations returns the addresses whose paths a plan for cfg needs: realservers and sorry servers, and one behind
// each default route.
func Destinations(cfg *config.Director) []netip.Addr {
	return append(addresses(cfg), documentation4, documentation6)
}

// addresses returns the addresses of all realservers and sorry servers of cfg.
func addresses(cfg *config.Director) (all []netip.Addr) {
	for _, s := range cfg.Services {
		for _, r := range s.Realservers {
			all = append(all, r.Address)
		}
		if s.HasSorry() {
			all = append(all, s.Sorry.Address)
		}
	}
	return all
}

// unreachable returns the addresses of cfg to which there is no route, in ascending order. To those in the network of a
// TAP device no route is needed.
func (p Paths) unreachable(cfg *config.Director) []netip.Addr {
	var all, direct []netip.Addr
	if cfg.TAP {
		direct = Direct(cfg)
	}
	for _, a := range addresses(cfg) {
		if path, asked := p[a]; asked && path == (query.Path{}) && !slices.Contains(direct, a) {
			all = append(all, a)
		}
	}
	return unique(all)
}

// has reports whether there is a route to a.
func (p Paths) has(a netip.Addr) bool { return p[a] != query.Path{} }

// mtu returns the size of the largest packet that the path to a takes, in bytes. Without a path it is defaultMTU, which
// applies when the path comes back until its MTU is known.
func (p Paths) mtu(a netip.Addr) int {
	switch path := p[a]; {
	case path == (query.Path{}):
		return defaultMTU
	case a.Is4():
		return max(path.MTU, encap.MinMTU+encap.MaxOverhead)
	default:
		return max(path.MTU, encap.MinMTU6)
	}
}

// ownAddress returns the source that the kernel would give a packet to a. It is the zero Addr without a path, or if the
// kernel has only a link-local address: realservers could not identify the director by that.
func (p Paths) ownAddress(a netip.Addr) netip.Addr {
	if source := p[a].Source; source.IsValid() && !source.IsLinkLocalUnicast() {
		return source
	}
	return netip.Addr{}
}

// Source returns the address of this host from which it checks a VIP at a realserver: the configured one, or the source
// of the route to the realserver. If the realserver is of the other family, it is the source of the default route.
func (p Paths) Source(sources config.Sources, vip, realserver netip.Addr) netip.Addr {
	if a := sources.For(vip); a.IsValid() {
		return a
	}
	switch {
	case vip.Is4() == realserver.Is4():
		return p.ownAddress(realserver)
	case vip.Is4():
		return p.ownAddress(documentation4)
	}
	return p.ownAddress(documentation6)
}

// tunnelChecks calls fn for each realserver of cfg that is checked through its tunnel.
func tunnelChecks(cfg *config.Director, fn func(s *config.Service, r *config.RealserverRef)) {
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			if r := &s.Realservers[j]; r.Check != nil && !r.CheckedDirectly() {
				fn(s, r)
			}
		}
	}
}

// targets returns the realservers that the checks of cfg reach through tunnels, each once.
func (p Paths) targets(cfg *config.Director) []balancer.Target {
	var all []balancer.Target
	seen := map[balancer.Target]bool{}
	tunnelChecks(cfg, func(s *config.Service, r *config.RealserverRef) {
		if t := realserver(s, r, cfg.Source, p).Target(); !seen[t] {
			seen[t] = true
			all = append(all, t)
		}
	})
	return all
}

// CheckSources returns the addresses of this host from which the checks of cfg reach IPv4 VIPs through tunnels.
func CheckSources(cfg *config.Director, paths Paths) []netip.Addr {
	sources := map[netip.Addr]bool{}
	tunnelChecks(cfg, func(s *config.Service, r *config.RealserverRef) {
		for _, vip := range s.VIPs {
			if vip.Is4() {
				sources[paths.Source(cfg.Source, vip, r.Address)] = true
			}
		}
	})
	delete(sources, netip.Addr{})
	var all []netip.Addr
	for a := range sources {
		all = append(all, a)
	}
	return unique(all)
}

// ReplyLinks returns the devices by which replies to the checks of cfg come in: devices, which have the addresses
// CheckSources, and the devices of the routes to the realservers. The replies come from VIPs, and the VIPs' routes lead
// into the TUN device, so that a strict reverse-path filter would drop the replies. Only IPv4 has such a filter, see
// routing.State.Loose.
func ReplyLinks(cfg *config.Director, paths Paths, devices []string) []string {
	links := slices.Clone(devices)
	tunnelChecks(cfg, func(s *config.Service, r *config.RealserverRef) {
		if slices.ContainsFunc(s.VIPs, netip.Addr.Is4) {
			links = append(links, paths[r.Address].Link)
		}
	})
	slices.Sort(links)
	return slices.DeleteFunc(slices.Compact(links), func(name string) bool {
		return name == "" || name == "lo" || name == cfg.TUN || name == cfg.LocalTUN()
	})
}

// Target returns how the checks of r, a realserver of s, reach it through its tunnel, except for the path.
func Target(s *config.Service, r *config.RealserverRef) balancer.Target {
	return realserver(s, r, config.Sources{}, nil).Target()
}

// pathName names the kind of path by which a realserver is checked. Equal names for one realserver mean the same path.
func pathName(s *config.Service, r *config.RealserverRef) string {
	if r.Check == nil || r.CheckedDirectly() {
		return "direct"
	}
	t := Target(s, r)
	if t.Kind != method.TUN {
		return t.Kind.String()
	}
	return fmt.Sprintf("tunnel %v port %d key %d %v checksum %v", t.Encap, t.EncapPort, t.Key, t.HasKey, t.Checksum)
}

// SealedPath returns the path to the realserver a in WireGuard's tunnel, whose address outside of it is carrier; the
// zero Addr: it is not known, and the default route will do. paths are those that the kernel has answered. The source
// is of a's family, for checks.
func SealedPath(a, carrier netip.Addr, paths map[netip.Addr]query.Path) query.Path {
	default4, default6 := paths[documentation4], paths[documentation6]
	path, six := paths[carrier], carrier.Is6()
	if !carrier.IsValid() {
		if path = default4; path == (query.Path{}) {
			path, six = default6, true
		}
	}
	if path == (query.Path{}) {
		return path
	}
	path.MTU -= wireguard.Overhead(six)
	path.Local, path.Gateway = false, netip.Addr{}
	if a.Is4() == six {
		path.Source = default6.Source
		if a.Is4() {
			path.Source = default4.Source
		}
	}
	return path
}

// SealedMTU returns the size of the largest packet that WireGuard's tunnel to the realserver a takes, in bytes; 0:
// there is no path.
func (p Paths) SealedMTU(a netip.Addr) int {
	if p[a] == (query.Path{}) {
		return 0
	}
	return p.mtu(a)
}

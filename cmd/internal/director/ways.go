package director

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/tunneldial"
	"vstun/routing"
)

// ways is what the kernel says of the ways to realservers, and of this host's own addresses. It doesn't change: a new
// one takes its place.
type ways struct {
	to      map[netip.Addr]routing.Path
	sources config.Sources // configured
}

// Nobody has these addresses (RFC 5737, RFC 3849): the default routes lead there.
var (
	somewhere4 = netip.MustParseAddr("192.0.2.1")
	somewhere6 = netip.MustParseAddr("2001:db8::1")
)

// source is the address of this host from which it checks a VIP at a realserver: the configured one; or the one that
// the route to the realserver gives, or, where that is of the other family, the default route.
func (w *ways) source(vip, realserver netip.Addr) netip.Addr {
	if a := w.sources.For(vip); a.IsValid() {
		return a
	}
	switch {
	case vip.Is4() == realserver.Is4():
		return ownAddress(w.to, realserver)
	case vip.Is4():
		return ownAddress(w.to, somewhere4)
	}
	return ownAddress(w.to, somewhere6)
}

// tunnelChecks calls fn for each realserver of cfg that is checked through its tunnel.
func tunnelChecks(cfg *config.Director, fn func(s *config.Service, r *config.RealserverRef)) {
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			if r := &s.Realservers[j]; r.Check != nil && !r.Check.Direct {
				fn(s, r)
			}
		}
	}
}

// targets are what the checks of cfg lead probes to.
func (w *ways) targets(cfg *config.Director) []balancer.Target {
	var all []balancer.Target
	seen := map[balancer.Target]bool{}
	tunnelChecks(cfg, func(s *config.Service, r *config.RealserverRef) {
		if t := realserver(s, r, cfg.Source, w.to).Target(); !seen[t] {
			seen[t] = true
			all = append(all, t)
		}
	})
	return all
}

// answersBy are the devices by which answers to the checks of cfg come in, from VIPs whose route leads into the TUN
// device: those that have the checks' source addresses, and those by which the realservers are reached. It is about
// IPv4 alone, see routing.State.Loose.
func (w *ways) answersBy(cfg *config.Director) []string {
	var links []string
	sources := map[netip.Addr]bool{}
	tunnelChecks(cfg, func(s *config.Service, r *config.RealserverRef) {
		for _, vip := range s.VIPs {
			if !vip.Is4() {
				continue
			}
			links = append(links, w.to[r.Address].Link)
			sources[w.source(vip, r.Address)] = true
		}
	})
	for a := range sources {
		if !a.IsValid() {
			continue
		}
		if link, local, err := routing.LocalAddr(a); err == nil && local {
			links = append(links, link)
		}
	}
	slices.Sort(links)
	return slices.DeleteFunc(slices.Compact(links), func(name string) bool {
		return name == "" || name == "lo" || name == cfg.TUN || name == cfg.LocalTUN()
	})
}

// wayOf is how a realserver is checked, and a name for it that other ways to the same realserver don't have.
func (d *director) wayOf(s *config.Service, r *config.RealserverRef) (health.Path, string) {
	if r.Check == nil || r.Check.Direct {
		return health.Direct{Pinger: d.pinger.Ping}, wayName(s, r)
	}
	address := r.Address
	return &tunneldial.Tunnel{Pins: d.bal, Pinger: d.pinger, Clock: d.now,
		Target: realserver(s, r, config.Sources{}, nil).Target(),
		Source: func(vip netip.Addr) netip.Addr { return d.known.Load().source(vip, address) }}, wayName(s, r)
}

// wayName is the name of the path by which a realserver is checked.
func wayName(s *config.Service, r *config.RealserverRef) string {
	if r.Check == nil || r.Check.Direct {
		return "direct"
	}
	t := realserver(s, r, config.Sources{}, nil).Target()
	return fmt.Sprintf("tunnel %v port %d key %d %v checksum %v", t.Encap, t.Port, t.Key, t.HasKey, t.Checksum)
}

// loosen makes the devices loose by which answers to checks come in, if they are others than before.
func (d *director) loosen() {
	links := d.known.Load().answersBy(d.cfg)
	if slices.Equal(links, d.loose) {
		return
	}
	d.loose = links
	all := unique(slices.Concat(vips(d.cfg), d.leftVIPs))
	if err := d.network.Set(d.machine(d.cfg, all)); errors.Is(err, routing.ErrClosed) {
		return // the director is ending
	} else if err != nil {
		d.log.Error("answers to health checks may be dropped by the reverse-path filter: set rp_filter to 2 for "+
			"these devices", "devices", links, "error", err)
	}
}

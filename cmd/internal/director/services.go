package director

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/routing"
)

// services is cfg as the balancer takes it, with the way to each realserver as the kernel knows it now.
func services(cfg *config.Director, log *slog.Logger) balancer.Config {
	var all []netip.Addr
	for _, s := range cfg.Services {
		for _, r := range s.Realservers {
			all = append(all, r.Address)
		}
	}
	ways, err := routing.Paths(all)
	if err != nil {
		log.Warn("the ways to the realservers are not known: their MTU is taken to be 1500", "error", err)
	}
	var out balancer.Config
	for i := range cfg.Services {
		out.Services = append(out.Services, service(&cfg.Services[i], cfg.Source, ways))
	}
	return out
}

// service is s as the balancer takes it.
func service(s *config.Service, source netip.Addr, ways map[netip.Addr]routing.Path) balancer.Service {
	svc := balancer.Service{Name: s.Name, VIPs: s.VIPs, Protocol: protocols[s.Protocol], Scheduler: s.Scheduler, Flags: balancer.Flags(s.Flags),
		Persistence: balancer.Persistence{Timeout: s.Persistence.Timeout, Mask4: s.Persistence.Netmask, Mask6: s.Persistence.Netmask6}, OnePacket: s.OnePacket}
	for _, p := range s.Ports {
		svc.Ports = append(svc.Ports, balancer.PortRange(p))
	}
	for _, r := range s.Realservers {
		rs := balancer.Realserver{Address: r.Address, Weight: r.Weight, Upper: r.Upper, Lower: r.Lower, Source: source, MTU: pathMTU(ways, r.Address)}
		rs.Encap, _ = encap.ParseKind(r.Encap)
		if rs.Encap.UDP() {
			rs.Port = s.EncapPort
		}
		svc.Realservers = append(svc.Realservers, rs)
	}
	return svc
}

// pathMTU is the largest packet that the way to a takes. Where there is no way at present it is Ethernet's, for when there is one again.
func pathMTU(ways map[netip.Addr]routing.Path, a netip.Addr) int {
	way, known := ways[a]
	if !known {
		return 1500
	}
	return max(way.MTU, encap.MinMTU+encap.MaxOverhead)
}

// vips are the VIPs of cfg, each once.
func vips(cfg *config.Director) []netip.Addr {
	var all []netip.Addr
	for _, s := range cfg.Services {
		all = append(all, s.VIPs...)
	}
	return unique(all)
}

func unique(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// watchPaths keeps what the balancer knows of the ways to the realservers up to date.
func (d *director) watchPaths(ctx context.Context) error {
	t := time.NewTicker(pathsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-d.shared.TooBig:
		}
		d.refresh()
		select { // not more often than that
		case <-ctx.Done():
			return nil
		case <-time.After(pathsAtOnce):
		}
	}
}

// refresh takes over what the kernel has learned about the ways to the realservers, and lets VIPs go whose last connections have ended.
func (d *director) refresh() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.bal.Apply(services(d.cfg, d.log)); err != nil {
		d.log.Error("the ways to the realservers are not taken over", "error", err)
	}
	d.releaseVIPs()
	d.refreshLeaving()
}

// releaseVIPs lets the routes of VIPs go that have left, and whose last connections have ended.
func (d *director) releaseVIPs() {
	if len(d.leftVIPs) == 0 {
		return
	}
	used := map[netip.Addr]bool{}
	for c := range d.table.All(d.now()) {
		used[c.Flow.Dst] = true
	}
	still := slices.DeleteFunc(slices.Clone(d.leftVIPs), func(vip netip.Addr) bool { return !used[vip] })
	if len(still) == len(d.leftVIPs) {
		return
	}
	if err := d.network.Set(network(d.cfg.TUN, slices.Concat(vips(d.cfg), still))); err != nil {
		d.log.Error("routes of VIPs that are not configured any more are left", "vips", d.leftVIPs, "error", err)
		return
	}
	d.leftVIPs = still
}

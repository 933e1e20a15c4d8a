package director

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/routing"
)

// services is cfg as the balancer takes it, with the way to each realserver as the kernel knows it now, and without
// those that are down.
func (d *director) services(cfg *config.Director) balancer.Config {
	d.askWays(cfg)
	return d.balanced(cfg)
}

// askWays asks the kernel for the ways to all realservers.
func (d *director) askWays(cfg *config.Director) {
	all := addressees(cfg)
	switch to, err := routing.Paths(append(slices.Clone(all), somewhere4, somewhere6)); {
	case err == nil:
		d.ways, d.unasked = to, ""
		d.noteLost(slices.DeleteFunc(unique(all), func(a netip.Addr) bool { _, known := to[a]; return known }))
	case err.Error() == d.unasked: // the log says so already
	case d.ways == nil:
		d.log.Warn("the ways to the realservers are not known: their MTU is taken to be 1500", "error", err)
		d.unasked = err.Error()
	default:
		d.log.Warn("the kernel can't be asked for the ways to the realservers: those that were known before stay",
			"error", err)
		d.unasked = err.Error()
	}
	d.known.Store(&ways{to: d.ways, sources: cfg.Source})
}

// addressees are the addresses of all realservers and sorry servers of cfg.
func addressees(cfg *config.Director) (all []netip.Addr) {
	for _, s := range cfg.Services {
		for _, r := range s.Realservers {
			all = append(all, r.Address)
		}
		if s.SorryServer.IsValid() {
			all = append(all, s.SorryServer)
		}
	}
	return all
}

// balanced is services with the ways that are known already.
func (d *director) balanced(cfg *config.Director) balancer.Config {
	table := tableConfig(cfg.Connections)
	probed := (&ways{to: d.ways, sources: cfg.Source}).targets(cfg)
	out := balancer.Config{Probed: probed, Options: options(cfg), Table: &table, LeftVIPs: d.leftVIPs}
	states, standings, fallen := d.healthy(), make(map[string]standing, len(cfg.Services)), map[seat]bool{}
	for at, st := range states {
		if !st.Up {
			fallen[at] = true
		}
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		b := service(s, cfg.Source, d.ways)
		var was *standing
		if v, known := d.standings[s.Name]; known {
			was = &v
		}
		v := judge(&b, s, states, was)
		if s.SorryServer.IsValid() && !s.IsRealserver(s.SorryServer) {
			b.Realservers = append(b.Realservers, sorryServer(s, cfg.Source, d.ways, v.sorry))
		}
		d.serviceChanged(s, was, v)
		out.Services, standings[s.Name] = append(out.Services, b), v
	}
	d.standings, d.fallen = standings, fallen
	return out
}

// sorryServer is a realserver of s that is down as long as it is not in use: then what can move on goes back.
func sorryServer(s *config.Service, sources config.Sources, ways map[netip.Addr]routing.Path,
	inUse bool) balancer.Realserver {
	r := realserver(s, &config.RealserverRef{Address: s.SorryServer, Tunnel: s.SorryTunnel, Weight: 1}, sources, ways)
	r.Down = !inUse
	return r
}

// noteLost logs which realservers there is no route to, when they are others than before.
func (d *director) noteLost(lost []netip.Addr) {
	switch was := d.lost; {
	case slices.Equal(lost, was):
	case len(lost) == 0:
		d.log.Info("there is a route to every realserver again")
	default:
		d.log.Warn("no route to realservers: their packets are dropped until there is one", "count", len(lost),
			"realservers", names(lost[:min(len(lost), 10)]))
	}
	d.lost = lost
}

// service is s as the balancer takes it.
func service(s *config.Service, sources config.Sources, ways map[netip.Addr]routing.Path) balancer.Service {
	svc := balancer.Service{Name: s.Name, VIPs: s.VIPs, Protocol: protocols[s.Protocol], Scheduler: s.Scheduler,
		Flags: balancer.Flags(s.Flags),
		Persistence: balancer.Persistence{Timeout: s.Persistence.Timeout, Mask4: s.Persistence.Netmask,
			Mask6: s.Persistence.Netmask6}, OnePacket: s.OnePacket}
	for _, p := range s.Ports {
		svc.Ports = append(svc.Ports, balancer.PortRange(p))
	}
	for i := range s.Realservers {
		svc.Realservers = append(svc.Realservers, realserver(s, &s.Realservers[i], sources, ways))
	}
	return svc
}

// realserver is r, of s, as the balancer takes it.
func realserver(s *config.Service, r *config.RealserverRef, sources config.Sources,
	ways map[netip.Addr]routing.Path) balancer.Realserver {
	rs := balancer.Realserver{Address: r.Address, Weight: r.Weight, Upper: r.Upper, Lower: r.Lower,
		Config: method.Config{Key: r.Key, HasKey: r.HasKey, Checksum: r.Checksum,
			Source: sources.For(r.Address), MTU: pathMTU(ways, r.Address)}}
	rs.Encap, _ = encap.ParseKind(r.Encap)
	if rs.Encap.UDP() {
		rs.Port = s.EncapPort
	}
	if !rs.Source.IsValid() && (!r.Address.Is4() || rs.Encap.UDP() && rs.Checksum) { // else the kernel puts it in
		rs.Source = ownAddress(ways, r.Address)
	}
	return rs
}

// pathMTU is the largest packet that the way to a takes. Where there is no way at present it is Ethernet's, for when
// there is one again.
func pathMTU(ways map[netip.Addr]routing.Path, a netip.Addr) int {
	way, known := ways[a]
	switch {
	case !known:
		return 1500
	case a.Is4():
		return max(way.MTU, encap.MinMTU+encap.MaxOverhead)
	}
	return max(way.MTU, encap.MinMTU6)
}

// ownAddress is the source that the kernel would give a packet to a: the zero Addr without a way, or with none but an
// address that no realserver could know the director by.
func ownAddress(ways map[netip.Addr]routing.Path, a netip.Addr) netip.Addr {
	if source := ways[a].Source; source.IsValid() && !source.IsLinkLocalUnicast() {
		return source
	}
	return netip.Addr{}
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
		case <-d.network.Changed():
			if !d.hasLost() {
				continue
			}
		}
		begin := time.Now()
		d.refresh()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pathsPause(time.Since(begin))):
		}
	}
}

// pathsPause is how long the ways are not asked for again after that took so long: ICMP errors, which anybody can
// forge, shall not keep a CPU busy with thousands of realservers.
func pathsPause(took time.Duration) time.Duration {
	return min(max(pathsAtOnce, pathsShare*took), pathsEvery)
}

func (d *director) hasLost() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.lost) > 0
}

// refresh takes over what the kernel has learned about the ways to the realservers, and lets VIPs go whose last
// connections have ended.
func (d *director) refresh() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releaseVIPs()
	if err := d.bal.Apply(d.services(d.inForce())); err != nil {
		d.log.Error("the ways to the realservers are not taken over", "error", err)
	}
	d.loosen()
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
	if err := d.network.Set(d.machine(d.cfg, slices.Concat(vips(d.cfg), still))); errors.Is(err, routing.ErrClosed) {
		return // the director is ending
	} else if err != nil {
		d.log.Error("routes of VIPs that are not configured any more are left", "vips", d.leftVIPs, "error", err)
		return
	}
	d.leftVIPs = still
}

package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// target is a realserver's end of one tunnel.
type target struct {
	encap.Config
	mtu      int    // of the route to it
	spare    uint16 // UDP port to try gue at
	number   int    // of the tunnel, among those to the same realserver
	vips     []*targetVIP
	services []string
	drained  bool // its weight is 0 everywhere, or it is a sorry server only
}

// targetVIP is a VIP that is asked for through a target's tunnel.
type targetVIP struct {
	addr   netip.Addr
	source netip.Addr // this host's address that asks: of the VIP's family
	ports  []uint16   // of services over TCP
	there  bool       // it answers pings
}

// where names the target in a finding.
func (t *target) where() string {
	return fmt.Sprintf("realserver %s (%s)", t.Destination, brief(t.services))
}

// what names its tunnel.
func (t *target) what(kind encap.Kind) string {
	switch {
	case kind.UDP() && kind == t.Kind:
		return fmt.Sprintf("%s (UDP port %d)", kind, t.Port)
	case kind.UDP():
		return fmt.Sprintf("%s (UDP port %d)", kind, t.spare)
	case kind == encap.KindGRE:
		return fmt.Sprintf("gre (protocol %d)", packet.ProtoGRE)
	}
	return fmt.Sprintf("ipip (protocol %d)", outer(encap.Config{Kind: kind}, t.vips[0].addr))
}

// as is the target's tunnel as another kind.
func (t *target) as(kind encap.Kind) encap.Config {
	c := encap.Config{Kind: kind, Source: t.Source, Destination: t.Destination}
	if kind.UDP() {
		c.Port = t.spare
	}
	return c
}

// road is what errors about the target's tunnel quote.
func roadOf(c encap.Config, vip netip.Addr) road {
	return road{to: c.Destination, protocol: outer(c, vip), port: c.Port}
}

// grade is how bad it is what befalls the target.
func (t *target) grade() Severity {
	if t.drained {
		return Warning
	}
	return Error
}

// targets are the ends of the tunnels of cfg, as far as there is a route to them.
func targets(cfg *config.Director, ways map[netip.Addr]query.Path,
	own func(like netip.Addr) netip.Addr) (all []*target) {
	known, tunnels := map[encap.Config]*target{}, map[netip.Addr]int{}
	for _, s := range cfg.Services {
		for _, r := range ends(&s) {
			way, reachable := ways[r.Address]
			if !reachable {
				continue
			}
			c := encap.Config{Source: cfg.Source.For(r.Address), Destination: r.Address, Checksum: r.Checksum,
				Key: r.Key, HasKey: r.HasKey}
			c.Kind, _ = encap.ParseKind(r.Encap)
			if c.Kind.UDP() {
				c.Port = s.EncapPort
			}
			if !c.Source.IsValid() {
				c.Source = way.Source
			}
			t := known[c]
			if t == nil {
				t = &target{Config: c, mtu: way.MTU, spare: s.EncapPort, number: tunnels[c.Destination], drained: true}
				tunnels[c.Destination]++
				known[c] = t
				all = append(all, t)
			}
			t.services = append(t.services, role(&s, r))
			t.drained = t.drained && r.Weight == 0
			for _, vip := range s.VIPs {
				t.ask(vip, own(vip), s)
			}
		}
	}
	return slices.DeleteFunc(all, func(t *target) bool { return len(t.vips) == 0 })
}

// ends are all that a service may send connections to: its realservers, and its sorry server, which has the weight 0
// here as it seldom gets any.
func ends(s *config.Service) []config.RealserverRef {
	if !s.SorryServer.IsValid() || s.IsRealserver(s.SorryServer) {
		return s.Realservers
	}
	return append(slices.Clip(s.Realservers), config.RealserverRef{Address: s.SorryServer, Tunnel: s.SorryTunnel})
}

// role names what one of ends is there for.
func role(s *config.Service, r config.RealserverRef) string {
	if r.Address == s.SorryServer && !s.IsRealserver(r.Address) {
		return s.Name + ": sorry server"
	}
	return s.Name
}

// askedPorts is how many ports of a VIP are asked for at a realserver.
const askedPorts = 8

// ask lets the target be asked for a VIP of a service, from source.
func (t *target) ask(addr, source netip.Addr, s config.Service) {
	if !source.IsValid() {
		return
	}
	at := slices.IndexFunc(t.vips, func(v *targetVIP) bool { return v.addr == addr })
	if at < 0 {
		at = len(t.vips)
		t.vips = append(t.vips, &targetVIP{addr: addr, source: source})
	}
	v := t.vips[at]
	for _, p := range s.Ports {
		if s.Protocol == "tcp" && p.First != 0 && len(v.ports) < askedPorts {
			v.ports = append(v.ports, p.First)
		}
	}
}

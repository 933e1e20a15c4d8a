package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// target is a realserver's end of one tunnel.
type target struct {
	encap.Config
	mtu      int    // of the route to it
	spare    uint16 // UDP port to try gue on
	number   int    // of the tunnel among the tunnels to the same realserver
	vips     []*targetVIP
	services []string
	drained  bool // its weight is 0 in all services, or it is only a sorry server
}

// targetVIP is a VIP that is probed through a target's tunnel.
type targetVIP struct {
	addr    netip.Addr
	source  netip.Addr // of this host's addresses, in the VIP's family
	ports   []uint16   // of services over TCP
	answers bool       // it answers pings
}

// where returns the place of a finding about the target.
func (t *target) where() string {
	return fmt.Sprintf("realserver %s (%s)", t.Destination, brief(t.services))
}

// tunnelName returns the name of the target's tunnel as a tunnel of this kind.
func (t *target) tunnelName(kind encap.Kind) string {
	switch {
	case kind.UDP() && kind == t.Kind:
		return fmt.Sprintf("%s (UDP port %d)", kind, t.Port)
	case kind.UDP():
		return fmt.Sprintf("%s (UDP port %d)", kind, t.spare)
	case kind == encap.KindGRE:
		return fmt.Sprintf("gre (protocol %d)", packet.ProtoGRE)
	}
	return fmt.Sprintf("ipip (protocol %d)", outerProtocol(encap.Config{Kind: kind}, t.vips[0].addr))
}

// as returns the target's tunnel as another kind.
func (t *target) as(kind encap.Kind) encap.Config {
	c := encap.Config{Kind: kind, Source: t.Source, Destination: t.Destination}
	if kind.UDP() {
		c.Port = t.spare
	}
	return c
}

// tunnelFlow returns the flow of the tunnel c's packets for a VIP.
func tunnelFlow(c encap.Config, vip netip.Addr) flowKey {
	return flowKey{to: c.Destination, protocol: outerProtocol(c, vip), port: c.Port}
}

// grade returns the severity of a fault of the target.
func (t *target) grade() Severity {
	if t.drained {
		return Warning
	}
	return Error
}

// targets returns the ends of cfg's tunnels for which a route exists.
func targets(cfg *config.Director, paths map[netip.Addr]query.Path,
	own func(like netip.Addr) netip.Addr) (all []*target) {
	known, tunnels := map[encap.Config]*target{}, map[netip.Addr]int{}
	for _, s := range cfg.Services {
		for _, r := range ends(&s) {
			path, reachable := paths[r.Address]
			if !reachable || r.Forward != method.TUN {
				continue
			}
			c := encap.Config{Source: cfg.Source.For(r.Address), Destination: r.Address, Checksum: r.Checksum,
				Key: r.Key, HasKey: r.HasKey}
			if c.Kind, _ = encap.ParseKind(r.Encap); c.Kind.Sealed() { // no packet of this command can be in it
				continue
			}
			if c.Kind.UDP() {
				c.Port = s.EncapPort
			}
			if !c.Source.IsValid() {
				c.Source = path.Source
			}
			t := known[c]
			if t == nil {
				t = &target{Config: c, mtu: path.MTU, spare: s.EncapPort, number: tunnels[c.Destination], drained: true}
				tunnels[c.Destination]++
				known[c] = t
				all = append(all, t)
			}
			t.services = append(t.services, role(&s, r))
			t.drained = t.drained && r.Weight == 0
			for _, vip := range s.VIPs {
				t.addVIP(vip, own(vip), s)
			}
		}
	}
	return slices.DeleteFunc(all, func(t *target) bool { return len(t.vips) == 0 })
}

// ends returns all hosts to which a service may send connections: its realservers and its sorry server. The sorry
// server has weight 0, since it rarely gets a connection.
func ends(s *config.Service) []config.RealserverRef {
	if !s.HasSorry() || s.IsRealserver(s.Sorry.ID()) {
		return s.Realservers
	}
	sorry := s.Sorry
	sorry.Weight = 0
	return append(slices.Clip(s.Realservers), sorry)
}

// role returns the role of one of ends.
func role(s *config.Service, r config.RealserverRef) string {
	if r.ID() == s.Sorry.ID() && !s.IsRealserver(r.ID()) {
		return s.Name + ": sorry server"
	}
	return s.Name
}

// askedPorts is the maximum number of ports of a VIP that are probed at a realserver.
const askedPorts = 8

// addVIP adds a VIP of a service to the target's VIPs. Its probes come from source.
func (t *target) addVIP(addr, source netip.Addr, s config.Service) {
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

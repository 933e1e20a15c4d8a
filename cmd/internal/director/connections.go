package director

import (
	"fmt"
	"iter"
	"net/netip"
	"net/url"
	"slices"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/words"
	"vstun/encap/packet"
)

// states returns the names of all states that a connection can have, the one of templates included.
func states() []string {
	var names []string
	unknown := conntab.State(255).String()
	for s := conntab.State(0); s.String() != unknown; s++ {
		if name := s.String(); name != "" && s != conntab.Pinned && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if !slices.Contains(names, api.StateTemplate) {
		names = append(names, api.StateTemplate)
	}
	return names
}

// connections answers GET /connections: the rows that the query asks for, each made when it is taken.
func (d *director) connections(q url.Values) (iter.Seq[any], error) {
	f, err := api.ParseFilter(q, states())
	if err != nil {
		return nil, err
	}
	if err := d.checkNames(f); err != nil {
		return nil, err
	}
	d.plane.fast.sync()
	l := lister{Filter: f, services: map[string]*balancer.Service{}}
	for _, s := range d.plane.balancer.Snapshot().Status() {
		l.services[s.Name] = &s.Service
	}
	return l.rows(d.plane.balancer.Connections(d.plane.now())), nil
}

// checkNames refuses a filter by a name that is not configured and has no connections: no connection would pass it.
func (d *director) checkNames(f *api.Filter) error {
	st := d.controller.state()
	cfg, vips := st.Config, append(plan.VIPs(st.Config), st.inputs.RetiredVIPs...)
	var services []string
	var realservers []netip.AddrPort
	for _, s := range cfg.Services {
		services = append(services, s.Name)
		if s.HasSorry() {
			realservers = append(realservers, s.Sorry.ID())
		}
		for _, r := range s.Realservers {
			realservers = append(realservers, r.ID())
		}
	}
	for _, l := range d.plane.balancer.Leaving() {
		services, realservers = append(services, l.Service), append(realservers, l.ID())
	}
	// A realserver without a port of its own may get packets to any port.
	named := func(id netip.AddrPort) bool {
		return api.Names(f.Realserver, id) || f.Realserver.Addr() == id.Addr() && id.Port() == 0
	}
	switch {
	case f.Service != "" && !slices.Contains(services, f.Service):
		return noService(f.Service, services)
	case f.VIP.IsValid() && !slices.Contains(vips, f.VIP):
		return noAddress("VIP", f.VIP.String(), addressNames(vips))
	case f.Realserver.IsValid() && !slices.ContainsFunc(realservers, named):
		var names []string
		for _, id := range realservers {
			names = append(names, words.Realserver(id))
		}
		return noAddress("realserver", words.Realserver(f.Realserver), names)
	}
	return nil
}

// noAddress returns the error about an address, with or without a port, that is not in known.
func noAddress(what, address string, known []string) error {
	if near, ok := words.Nearest(address, known); ok {
		return fmt.Errorf("there is no %s %s: did you mean %s?", what, address, near)
	}
	return fmt.Errorf("there is no %s %s: there are %s", what, address, some(known))
}

func addressNames(all []netip.Addr) (names []string) {
	for _, a := range all {
		names = append(names, a.String())
	}
	return names
}

// vipNames returns the VIPs of cfg as text.
func vipNames(cfg *config.Director) []string { return addressNames(plan.VIPs(cfg)) }

// lister makes rows of the connections that pass its filter.
type lister struct {
	*api.Filter
	services map[string]*balancer.Service // by name
}

func (l *lister) rows(all iter.Seq[balancer.Connection]) iter.Seq[any] {
	return func(yield func(any) bool) {
		n := 0
		for c := range all {
			if !l.wants(&c) {
				continue
			}
			if n++; !yield(l.row(&c)) || n == l.Limit {
				return
			}
		}
	}
}

func (l *lister) wants(c *balancer.Connection) bool {
	return (!l.Client.IsValid() || l.Client.Contains(c.Flow.Src)) &&
		l.wantsVIP(c) &&
		(!l.Realserver.IsValid() || api.Names(l.Realserver, l.realserver(c))) &&
		(l.Service == "" || l.Service == c.Service) &&
		(l.State == "" || l.State == stateName(c))
}

// realserver returns the address of c's realserver, and the port of c's packets there. For a template the port is the
// service's, or 0 for several ports.
func (l *lister) realserver(c *balancer.Connection) netip.AddrPort {
	port := c.RealserverPort()
	if port == 0 {
		_, _, port = l.virtual(c.Service)
	}
	return netip.AddrPortFrom(c.Realserver.Addr(), port)
}

// wantsVIP reports whether c goes to the VIP and port that are asked for. A template goes to all VIPs and ports of its
// service.
func (l *lister) wantsVIP(c *balancer.Connection) bool {
	if !l.VIP.IsValid() {
		return true
	}
	if !c.Template {
		return l.VIP == c.Flow.Dst && (l.Port < 0 || l.Port == int(c.Flow.DstPort))
	}
	s := l.services[c.Service]
	return s != nil && slices.Contains(s.VIPs, l.VIP) &&
		(l.Port < 0 || slices.ContainsFunc(s.Ports, func(r balancer.PortRange) bool {
			return r == balancer.PortRange{} || int(r.First) <= l.Port && l.Port <= int(r.Last)
		}))
}

func (l *lister) row(c *balancer.Connection) api.Connection {
	to := l.realserver(c)
	row := api.Connection{State: stateName(c), Expires: c.Expires.Seconds(), Client: c.Flow.Src.String(),
		Realserver: to.Addr().String(), RealserverPort: to.Port(),
		Service: c.Service, Packets: c.Packets, Template: c.Template}
	if c.Template {
		row.Protocol, row.VIP, row.Port = l.virtual(c.Service)
		return row
	}
	row.Protocol, row.ClientPort = packet.ProtoName(c.Flow.Proto), c.Flow.SrcPort
	row.VIP, row.Port = c.Flow.Dst.String(), c.Flow.DstPort
	return row
}

// virtual returns the protocol, VIP and port in a template's row: the service's first VIP, and its port or 0 for
// several ports. For a service that is not configured any more they are empty.
func (l *lister) virtual(service string) (protocol, vip string, port uint16) {
	s := l.services[service]
	if s == nil {
		return "", "", 0
	}
	if len(s.Ports) == 1 && s.Ports[0].First == s.Ports[0].Last {
		port = s.Ports[0].First
	}
	return packet.ProtoName(s.Protocol), s.VIPs[0].String(), port
}

func stateName(c *balancer.Connection) string {
	if c.Template {
		return api.StateTemplate
	}
	return c.State.String()
}

package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// Explanation is where a flow's packets go, and why: by its connection, or else as Decide would open one.
type Explanation struct {
	Connection *Connection // of the flow; nil: it has none, or has one no longer
	Left       bool        // the connection's realserver is not configured any more, or down
	Down       bool        // it is down

	// Of a new connection:
	Service    *ServiceStatus // nil: no service has VIP, protocol and port
	Template   *Connection    // that the client has there; nil: none
	Kept       bool           // the template holds
	Chosen     netip.Addr     // the realserver that it would get; the zero Addr: none
	ByChance   bool           // another one is as likely the next time
	Drop       packet.Drop    // why its first packet would be dropped; Accept: it would not
	Candidates []Candidate    // the service's realservers, in the order of the configuration
}

// Candidate is a realserver as the scheduler of its service sees it, and the way to it.
type Candidate struct {
	RealserverStatus
	Overloaded bool // it has had Upper connections, and not yet few enough again
	Reachable  bool // there is a tunnel to it: see Dest.Reachable
	Inner      int  // largest packet that fits the tunnel, in bytes
}

// Explain says what becomes of the packet p, which begins a connection, if its flow has none. It changes nothing:
// neither table nor scheduler.
func (s *Snapshot) Explain(p *packet.Info, now conntab.Ticks) Explanation {
	var e Explanation
	if c, known := s.table.Lookup(p.Flow, now); known {
		e.Connection, e.Left = s.connection(c)
		if d, _ := s.dest(c.Dest); d != nil {
			e.Down = d.Down
		}
	}
	svc := s.vips[p.Flow.Dst].find(p.Flow.Proto, p.Flow.DstPort)
	if svc == nil {
		e.Drop = packet.DropNoService
		return e
	}
	e.Service = svc.status()
	all := slices.Concat(svc.list, svc.down)
	for _, r := range e.Service.Realservers {
		c := Candidate{RealserverStatus: r}
		if i := slices.IndexFunc(all, func(d *Dest) bool { return d.Address == r.Address }); i >= 0 {
			d := all[i]
			c.Overloaded, c.Reachable, c.Inner = d.overloaded(), d.Reachable(), d.Inner()
		}
		e.Candidates = append(e.Candidates, c)
	}
	var chosen *Dest
	if svc.config.Persistence.Timeout > 0 {
		if c, known := s.table.LookupTemplate(svc.client(p.Flow.Src), svc.number, now); known {
			e.Template, _ = s.connection(c)
			if d, drop := s.dest(c.Dest); drop == packet.Accept && s.keeps(d) {
				chosen, e.Kept = d, true
			}
		}
	}
	if chosen == nil {
		chosen = trial(svc.sched, p).pick(svc.list, p, now)
		e.ByChance = svc.config.Scheduler == "twos"
	}
	switch {
	case chosen == nil:
		e.Drop = packet.DropNoRealserver
		return e
	case !chosen.Reachable():
		e.Drop = packet.DropSendError
	}
	e.Chosen = chosen.Address
	return e
}

// connection is c with what it belongs to, nil where that is forgotten, and whether its realserver has left.
func (s *Snapshot) connection(c conntab.Conn) (_ *Connection, left bool) {
	d, _ := s.dest(c.Dest)
	if d == nil {
		return nil, false
	}
	return &Connection{Conn: c, Service: d.stats.service, Realserver: d.Address}, d.counts.Gone()
}

// trial is a scheduler that chooses for p as s does, and has nothing in common with it.
func trial(s scheduler, p *packet.Info) scheduler {
	switch s := s.(type) {
	case *lblc:
		return &lblc{s.leastLoad, s.seen.only(p.Flow.Dst)}
	case *lblcr:
		return &lblcr{s.leastLoad, s.seen.only(p.Flow.Dst)}
	}
	return s.clone()
}

// only is a copy of what is remembered of a.
func (l *locality) only(a netip.Addr) *locality {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &locality{places: map[netip.Addr]*place{}, swept: l.swept}
	if p := l.places[a]; p != nil {
		c.places[a] = &place{servers: slices.Clone(p.servers), used: p.used, modified: p.modified}
	}
	return c
}

// Frontend is where a service is to be found.
type Frontend struct {
	VIP      netip.Addr
	Protocol uint8
	Ports    PortRange
	Service  string
}

// VirtualPorts lists those of all services, or those of one VIP where it has any.
func (s *Snapshot) VirtualPorts(vip netip.Addr) (all []Frontend) {
	for _, svc := range s.list {
		for _, a := range svc.config.VIPs {
			if s.HasVIP(vip) && a != vip {
				continue
			}
			for _, r := range svc.config.Ports {
				all = append(all, Frontend{VIP: a, Protocol: svc.config.Protocol, Ports: r, Service: svc.config.Name})
			}
		}
	}
	return all
}

package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// Trace records the steps of a decision.
type Trace struct {
	// Connection is the connection of the packet's flow; nil: none. Fate is the packet's effect on it.
	Connection *Connection
	Fate       conntab.Fate
	Left       bool // the connection's realserver is not configured any more, or down
	Down       bool // it is down
	Restarted  bool // it is down, and the packet restarts the flow at another realserver
	conn       conntab.Conn

	Template *Connection    // the client's template at the service; nil: none, or not looked up
	Kept     bool           // the template leads the new connection
	Chosen   netip.AddrPort // ID of the realserver that the packet goes to; the zero value: none
}

// lookup looks p up in the connection table and records the connection.
func (t *Trace) lookup(s *Snapshot, p *packet.Info, now conntab.Ticks) (uint32, conntab.Result) {
	c, fate, result := s.table.Peek(p, now)
	t.conn = c
	if fate != conntab.NoConnection {
		t.Connection, t.Left = s.connection(c)
		t.Fate = fate
		if d, _ := s.dest(c.Dest); d != nil {
			t.Down = d.Down
		}
	}
	return c.Dest, result
}

// template looks up a client's template and records it.
func (t *Trace) template(s *Snapshot, client netip.Addr, svc *service, now conntab.Ticks) (uint32, conntab.Result) {
	c, known := s.table.LookupTemplate(client, svc.number, now)
	if !known {
		return 0, conntab.Miss
	}
	t.Template, _ = s.connection(c)
	return c.Dest, conntab.Hit
}

// Explanation is a packet's destination, and the reasons for it.
type Explanation struct {
	Trace
	Drop       drop.Reason    // why the packet is dropped; Accept: it is not
	NextHop    netip.Addr     // the realserver that the packet names, see Dest.NextHop; the zero value: none
	Service    *ServiceStatus // nil: no service has VIP, protocol and port
	Candidates []Candidate    // the service's realservers, in the order of the configuration
}

// Candidate is a realserver as the scheduler of its service sees it, and the path to it.
type Candidate struct {
	RealserverStatus
	Overloaded bool // it has reached Upper and is not below Realserver.Relief again
	Reachable  bool // see Dest.Reachable
	Inner      int  // see Dest.Inner
}

// Explain returns the result of Decide for p, and the reasons. It changes neither table nor scheduler.
func (s *Snapshot) Explain(p *packet.Info, now conntab.Ticks) Explanation {
	var e Explanation
	var to *Dest
	to, e.Drop = s.decide(p, now, &e.Trace)
	svc := s.service(p)
	if svc == nil {
		return e
	}
	if to != nil && to.Hops != nil && (p.Flow.SrcPort != 0 || !svc.config.Flags.Port) {
		e.NextHop, _ = to.NextHop(netip.AddrPortFrom(p.Flow.Src, p.Flow.SrcPort))
	}
	e.Service = svc.status()
	all := slices.Concat(svc.list, svc.down)
	for _, r := range e.Service.Realservers {
		c := Candidate{RealserverStatus: r}
		if i := slices.IndexFunc(all, func(d *Dest) bool { return d.ID() == r.ID() }); i >= 0 {
			d := all[i]
			c.Overloaded, c.Reachable, c.Inner = d.overloaded(), d.Reachable(), d.Inner()
		}
		e.Candidates = append(e.Candidates, c)
	}
	return e
}

// connection returns c with its service and realserver, nil if the realserver is forgotten. left reports whether the
// realserver is retired or down.
func (s *Snapshot) connection(c conntab.Conn) (_ *Connection, left bool) {
	d, _ := s.dest(c.Dest)
	if d == nil {
		return nil, false
	}
	known := d.connection(c)
	return &known, d.counts.Gone()
}

// Frontend is a VIP with a range of ports, and its service.
type Frontend struct {
	VIP      netip.Addr
	Protocol uint8
	Ports    PortRange
	Service  string
}

// VirtualPorts lists the Frontends of vip. If vip is no VIP, it lists the Frontends of all services.
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

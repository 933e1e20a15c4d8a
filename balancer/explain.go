package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// Trace is how a decision comes about.
type Trace struct {
	// Connection is the one that the packet's flow has; nil: none. Fate is its fate with the packet.
	Connection *Connection
	Fate       conntab.Fate
	Left       bool // the connection's realserver is not configured any more, or down
	Down       bool // it is down
	Restarted  bool // it is down, and the packet restarts the flow elsewhere
	conn       conntab.Conn

	Template *Connection // the client's at the service; nil: none, or not looked for
	Kept     bool        // the template leads the new connection
	Chosen   netip.Addr  // realserver that the packet goes to; the zero Addr: none
}

// lookup is the connection table's answer to p. It notes the connection.
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

// template is the connection table's answer to a client. It notes the template.
func (t *Trace) template(s *Snapshot, client netip.Addr, svc *service, now conntab.Ticks) (uint32, conntab.Result) {
	c, known := s.table.LookupTemplate(client, svc.number, now)
	if !known {
		return 0, conntab.Miss
	}
	t.Template, _ = s.connection(c)
	return c.Dest, conntab.Hit
}

// Explanation is where a packet goes, and why.
type Explanation struct {
	Trace
	Drop       drop.Reason    // why the packet is dropped; Accept: it is not
	Service    *ServiceStatus // nil: no service has VIP, protocol and port
	Candidates []Candidate    // the service's realservers, in the order of the configuration
}

// Candidate is a realserver as the scheduler of its service sees it, and the path to it.
type Candidate struct {
	RealserverStatus
	Overloaded bool // it has had Upper connections, and not yet few enough again: see Realserver.Relief
	Reachable  bool // see Dest.Reachable
	Inner      int  // largest packet that gets to it whole, in bytes
}

// Explain says what Decide would make of p. It changes nothing: neither table nor scheduler.
func (s *Snapshot) Explain(p *packet.Info, now conntab.Ticks) Explanation {
	var e Explanation
	_, e.Drop = s.decide(p, now, &e.Trace)
	svc := s.service(p)
	if svc == nil {
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

package balancer

import (
	"net/netip"
	"slices"
	"sync"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
)

// Reported is the outcome of Snapshot.Report.
type Reported uint8

const (
	ReportTaken             Reported = iota
	ReportRefused                    // the state, or another value, is invalid
	ReportUnknownService             // no such service, VIP or protocol; or a template of a service that has none
	ReportUnknownRealserver          // the service has no such realserver, or VS/NAT cannot translate to it
	ReportFull                       // no room in the table
)

// directory finds services and realservers by the names that directors share. It is made with its first use.
type directory struct {
	once     sync.Once
	services map[string]*service
	dests    map[place][]*Dest // those in the configuration first
}

// place is a realserver's address in a service.
type place struct {
	service string
	addr    netip.Addr
}

func (s *Snapshot) names() *directory {
	d := &s.directory
	d.once.Do(func() {
		d.services, d.dests = make(map[string]*service, len(s.list)), make(map[place][]*Dest, len(s.dests))
		for _, svc := range s.list {
			d.services[svc.config.Name] = svc
			for _, to := range slices.Concat(svc.list, svc.down) {
				at := place{svc.config.Name, to.Address}
				d.dests[at] = append(d.dests[at], to)
			}
		}
		for _, to := range s.dests {
			if to == nil || to.stats.service == "" {
				continue
			}
			at := place{to.stats.service, to.Address}
			if !slices.ContainsFunc(d.dests[at], func(o *Dest) bool { return o.number == to.number }) {
				d.dests[at] = append(d.dests[at], to)
			}
		}
	})
	return d
}

// find returns the realserver of a service that gets a connection's packets at the address and port to. port is the
// connection's virtual port; 0: a template of several ports, whose to may have port 0, too. It returns nil for none.
func (d *directory) find(service string, to netip.AddrPort, port uint16) *Dest {
	var without *Dest
	for _, o := range d.dests[place{service, to.Addr()}] {
		switch {
		case o.Port == to.Port() && o.Port != 0 || port == 0 && to.Port() == 0:
			return o
		case o.Port == 0 && without == nil && (o.Kind != method.NAT || port == to.Port() || port == 0):
			without = o
		}
	}
	return without
}

// ServiceAt returns the name of the service of a VIP's port, "" for none.
func (s *Snapshot) ServiceAt(proto uint8, vip netip.Addr, port uint16) string {
	if svc := s.vips[vip].find(proto, port); svc != nil {
		return svc.config.Name
	}
	return ""
}

// Service returns the configuration of the service name. The caller does not change it.
func (s *Snapshot) Service(name string) (*Service, bool) {
	if svc := s.names().services[name]; svc != nil {
		return &svc.config, true
	}
	return nil, false
}

// Connection returns c, an entry of the connection table, with the names of its service and realserver. ok is false if
// its realserver is forgotten.
func (s *Snapshot) Connection(c conntab.Conn) (_ Connection, ok bool) {
	d, _ := s.dest(c.Dest)
	if d == nil {
		return Connection{}, false
	}
	return d.connection(c), true
}

// TemplateOf returns the persistence template of the client of c, whose service is persistent. ok is false without one.
func (s *Snapshot) TemplateOf(c *Connection, now conntab.Ticks) (_ Connection, ok bool) {
	svc := s.names().services[c.Service]
	if svc == nil || svc.config.Persistence.Timeout == 0 {
		return Connection{}, false
	}
	t, known := s.table.LookupTemplate(svc.client(c.Flow.Src), svc.number, now)
	if !known {
		return Connection{}, false
	}
	return s.Connection(t)
}

// Report adds a connection or template that another director has reported, as conntab.Table.Report does. c has the
// names of its service and realserver. The port of c.Realserver is the one that the realserver gets packets at. Of a
// template only client, service, realserver and the time until its end count. A connection's virtual address is a VIP
// or a former one: an entry keeps routes to its VIP.
func (s *Snapshot) Report(c *Connection, how conntab.Report, now conntab.Ticks) Reported {
	names := s.names()
	svc := names.services[c.Service]
	if svc == nil {
		return ReportUnknownService
	}
	port := c.Flow.DstPort
	if c.Template {
		c.Conn.Timeout, c.Conn.Service = svc.config.Persistence.Timeout, svc.number
		c.Flow.Src, port = svc.client(c.Flow.Src), 0
		if c.Timeout == 0 {
			return ReportUnknownService
		}
	} else if c.Flow.Proto != svc.config.Protocol || !s.HasVIP(c.Flow.Dst) && !s.WasVIP(c.Flow.Dst) {
		return ReportUnknownService
	}
	d := names.find(c.Service, c.Realserver, port)
	if d == nil || d.Kind == method.NAT && d.Address.Is4() != c.Flow.Src.Is4() {
		return ReportUnknownRealserver
	}
	c.Dest = d.number
	switch s.table.Report(c.Conn, how, now) {
	case conntab.Full:
		return ReportFull
	case conntab.Refused:
		return ReportRefused
	case conntab.Inserted:
		if !c.Template {
			s.noteReported(c, d)
		}
	}
	return ReportTaken
}

// noteReported notes a new connection to d that another director has made.
func (s *Snapshot) noteReported(c *Connection, d *Dest) {
	d.bound()
	if d.Back != nil && s.hints != nil {
		port := c.Flow.DstPort
		if d.Port == 0 {
			port = 0
		}
		f := s.balancer.frontend(c.Flow.Dst, port, d.number)
		s.hints.put(s.table.Hash(d.Real(c.Flow)), f.tag)
	}
}

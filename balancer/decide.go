package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// Decide returns the realserver that a packet goes to, or why the packet is dropped. Packets of a known connection go
// to its realserver. For a new connection the service's scheduler chooses one, and the connection table remembers it.
// Flows of a down realserver that can be restarted (UDP datagrams, unanswered SYNs) are rescheduled. Decide allocates
// nothing and is called once for each packet of TCP, UDP or SCTP.
func (s *Snapshot) Decide(p *packet.Info, now conntab.Ticks) (*Dest, drop.Reason) {
	return s.decide(p, now, nil)
}

// decide is Decide. With a trace, it records its steps there and changes neither table nor scheduler.
func (s *Snapshot) decide(p *packet.Info, now conntab.Ticks, t *Trace) (*Dest, drop.Reason) {
	d, reason := s.choose(p, now, t)
	if reason != drop.Accept {
		return nil, reason
	}
	if t != nil {
		t.Chosen = d.ID()
	}
	if !d.Reachable() {
		if d.Kind == method.NAT {
			return nil, drop.Unreachable
		}
		return nil, drop.SendError
	}
	return d, drop.Accept
}

// choose is decide without the check that the realserver is reachable.
func (s *Snapshot) choose(p *packet.Info, now conntab.Ticks, t *Trace) (*Dest, drop.Reason) {
	var n uint32
	var result conntab.Result
	if t == nil {
		n, result = s.table.Packet(p, conntab.FromClient, now)
	} else {
		n, result = t.lookup(s, p, now)
	}
	switch result {
	case conntab.Hit:
		if d, reason := s.dest(n); reason != drop.Accept || !d.Down || !s.restart(p, n, t) {
			return d, reason
		}
		result = conntab.Miss
	case conntab.Gone:
		if d, reason := s.dest(n); reason == drop.Accept && d.Down && s.restart(p, n, t) {
			result = conntab.Miss
		}
	}
	svc := s.service(p)
	switch {
	case result == conntab.Gone:
		return nil, drop.Removed
	case svc == nil:
		return nil, drop.NoService
	case result == conntab.Refused:
		return s.unknown(svc, p, now, t)
	}
	return s.schedule(svc, p, now, t)
}

// schedule is choose for a new connection.
func (s *Snapshot) schedule(svc *service, p *packet.Info, now conntab.Ticks, t *Trace) (*Dest, drop.Reason) {
	if svc.config.Persistence.Timeout > 0 {
		return s.persistent(svc, p, now, t)
	}
	d := svc.pick(p, now, t)
	if d == nil {
		return nil, drop.NoRealserver
	}
	return s.connect(svc, d, 0, p, now, t)
}

// service returns the service that p is for, nil for none.
func (s *Snapshot) service(p *packet.Info) *service {
	return s.vips[p.Flow.Dst].find(p.Flow.Proto, p.Flow.DstPort)
}

// restart ends the connection of p's flow to the realserver with number n, which is down, if p can restart the flow.
func (s *Snapshot) restart(p *packet.Info, n uint32, t *Trace) bool {
	if t != nil {
		t.Restarted = s.table.Leaves(p, t.conn)
		return t.Restarted
	}
	return s.table.Leave(p, n)
}

// pick returns the scheduler's choice for a new connection; nil: no realserver may have it.
func (svc *service) pick(p *packet.Info, now conntab.Ticks, t *Trace) *Dest {
	if t != nil {
		return trial(svc.sched, p).pick(svc.list, p, now)
	}
	return svc.sched.pick(svc.list, p, now)
}

// connect adds p's connection to d to the table. template is the number of a template on which the caller has a hold,
// or 0.
func (s *Snapshot) connect(svc *service, d *Dest, template uint32, p *packet.Info, now conntab.Ticks,
	t *Trace) (*Dest, drop.Reason) {
	if t != nil {
		return d, drop.Accept
	}
	if svc.config.OnePacket && p.Flow.Proto == packet.ProtoUDP && d.Back == nil {
		if template != 0 {
			s.table.Release(template)
		}
		d.stats.connections.Add(1)
		return d, drop.Accept
	}
	switch n, result := s.table.Insert(p, d.number, template, now); result {
	case conntab.Full:
		return nil, drop.TableFull
	case conntab.Hit: // another worker was faster
		return s.dest(n)
	}
	if d.Back != nil && s.hints != nil {
		s.hint(p, d)
	}
	d.bound()
	d.stats.connections.Add(1)
	return d, drop.Accept
}

// persistent is choose for a new connection to a service whose clients stay with their realservers (Linux ip_vs_core.c,
// ip_vs_sched_persist). One service has one template for a client, whatever its VIPs and ports.
func (s *Snapshot) persistent(svc *service, p *packet.Info, now conntab.Ticks, t *Trace) (*Dest, drop.Reason) {
	client := svc.client(p.Flow.Src)
	n, template, result := s.template(client, svc, now, t)
	if result == conntab.Hit {
		if d, reason := s.dest(n); reason == drop.Accept && s.keeps(d) {
			if t != nil {
				t.Kept = true
			}
			return s.connect(svc, d, template, p, now, t)
		}
		if t == nil {
			defer s.table.Release(template) // only after its replacement, which must not get the same number
		}
	}
	d := svc.pick(p, now, t)
	switch {
	case d == nil && template != 0:
		s.table.Forget(client, svc.number, template)
		fallthrough
	case d == nil:
		return nil, drop.NoRealserver
	case t != nil:
		return d, drop.Accept
	}
	timeout := svc.config.Persistence.Timeout
	n, template, result = s.table.PutTemplate(client, svc.number, d.number, timeout, template, now)
	switch result {
	case conntab.Full:
		return nil, drop.TableFull
	case conntab.Hit: // another worker was faster
		var reason drop.Reason
		if d, reason = s.dest(n); reason != drop.Accept {
			s.table.Release(template)
			return nil, reason
		}
	}
	return s.connect(svc, d, template, p, now, t)
}

// template looks up client's template at the service. The caller gets a hold on it. With a trace there is no hold, and
// the number is 0.
func (s *Snapshot) template(client netip.Addr, svc *service, now conntab.Ticks,
	t *Trace) (dest, number uint32, r conntab.Result) {
	if t != nil {
		dest, r = t.template(s, client, svc, now)
		return dest, 0, r
	}
	return s.table.Template(client, svc.number, now)
}

// keeps reports whether d's persistent clients stay (Linux ip_vs_conn.c, ip_vs_check_template).
func (s *Snapshot) keeps(d *Dest) bool {
	return !d.counts.Gone() && (d.Weight > 0 || !s.options.ExpireQuiescentTemplate)
}

// client returns the network of an address, which is one client to the service.
func (s *service) client(a netip.Addr) netip.Addr {
	bits := s.config.Persistence.Mask4
	if !a.Is4() {
		bits = s.config.Persistence.Mask6
	}
	if bits == a.BitLen() {
		return a
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return a // a mask longer than the address: all of it
	}
	return p.Addr()
}

// Prefetch prepares the decision for p: see conntab.Table.Prefetch.
func (s *Snapshot) Prefetch(p *packet.Info) uint8 { return s.table.Prefetch(p) }

// dest is the realserver with number n of the connection table.
func (s *Snapshot) dest(n uint32) (*Dest, drop.Reason) {
	if int(n) < len(s.dests) && s.dests[n] != nil {
		return s.dests[n], drop.Accept
	}
	// A worker with a newer snapshot has made this connection since the batch began.
	if latest := s.balancer.Snapshot(); latest != s {
		return latest.dest(n)
	}
	return nil, drop.NoRealserver
}

// Dest returns the realserver with this number in the connection table, a retired one included, nil for none.
func (s *Snapshot) Dest(number uint32) *Dest {
	d, _ := s.dest(number)
	return d
}

// Find returns the realserver of the connection f, retired ones included, without a change to the connection. It
// returns nil if there is no connection or the realserver is unreachable.
func (s *Snapshot) Find(f packet.Flow, now conntab.Ticks) *Dest {
	c, known := s.table.Lookup(f, now)
	if !known {
		return nil
	}
	if d, _ := s.dest(c.Dest); d != nil && d.Reachable() {
		return d
	}
	return nil
}

// DestsByAddr returns the Dests with address a, retired ones included: one for each different Target, whatever its MTU.
// Of several that differ in their MTU only, it returns the Dest with the largest: a retired realserver's MTU may be out
// of date.
func (s *Snapshot) DestsByAddr(a netip.Addr) []*Dest {
	s.indexDests.Do(func() { s.byAddr = destsByAddr(s.dests) })
	return s.byAddr[a]
}

func destsByAddr(dests []*Dest) map[netip.Addr][]*Dest {
	all := make(map[netip.Addr][]*Dest, len(dests))
	at := make(map[Target]int, len(dests)) // in the list of all
	for _, d := range dests {
		if d == nil {
			continue
		}
		list, k := all[d.Address], d.Target()
		k.MTU = 0
		i, known := at[k]
		switch {
		case !known:
			at[k] = len(list)
			all[d.Address] = append(list, d)
		case d.MTU > list[i].MTU:
			list[i] = d
		}
	}
	return all
}

// WasVIP reports whether a is one of Config.LeftVIPs.
func (s *Snapshot) WasVIP(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(s.leftVIPs, a, netip.Addr.Compare)
	return found
}

// Silent reports whether a packet for which there is no service, or no realserver, is dropped without an answer.
func (s *Snapshot) Silent() bool { return s.options.Silent }

// NoResets reports whether a TCP packet of an unknown connection is dropped without a RST.
func (s *Snapshot) NoResets() bool { return s.options.NoResets }

// Incomplete reports whether connections of other directors may be missing.
func (s *Snapshot) Incomplete() bool { return s.options.Incomplete }

// HasVIP reports whether a is the address of a service.
func (s *Snapshot) HasVIP(a netip.Addr) bool {
	_, ok := s.vips[a]
	return ok
}

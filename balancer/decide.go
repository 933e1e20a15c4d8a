package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// Decide returns the realserver that a packet goes to, or why it goes nowhere: the one that its connection has, or, for
// a new connection, the one that the service's scheduler chooses, which is remembered. What a realserver that is down
// has can begin anew elsewhere if it is a datagram, or a SYN that nobody has answered, and does. It allocates nothing
// and is called once for each packet of TCP, UDP or SCTP.
func (s *Snapshot) Decide(p *packet.Info, now conntab.Ticks) (*Dest, packet.Drop) {
	d, drop := s.decide(p, now)
	if drop == packet.Accept && !d.Reachable() {
		return nil, packet.DropSendError
	}
	return d, drop
}

func (s *Snapshot) decide(p *packet.Info, now conntab.Ticks) (*Dest, packet.Drop) {
	n, result := s.table.Packet(p, now)
	switch result {
	case conntab.Hit:
		if d, drop := s.dest(n); drop != packet.Accept || !d.Down || !s.table.Leave(p, n) {
			return d, drop
		}
		result = conntab.Miss
	case conntab.Gone:
		if d, drop := s.dest(n); drop == packet.Accept && d.Down && s.table.Leave(p, n) {
			result = conntab.Miss
		}
	}
	svc := s.vips[p.Flow.Dst].find(p.Flow.Proto, p.Flow.DstPort)
	switch {
	case result == conntab.Gone:
		return nil, packet.DropRemoved
	case svc == nil:
		return nil, packet.DropNoService
	case result == conntab.Refused:
		return nil, packet.DropNoConnection
	case svc.config.Persistence.Timeout > 0:
		return s.persistent(svc, p, now)
	}
	d := svc.sched.pick(svc.list, p, now)
	if d == nil {
		return nil, packet.DropNoRealserver
	}
	return s.connect(svc, d, 0, p, now)
}

// connect remembers that p's connection goes to d. template is held, or 0.
func (s *Snapshot) connect(svc *service, d *Dest, template uint32, p *packet.Info, now conntab.Ticks) (*Dest,
	packet.Drop) {
	if svc.config.OnePacket && p.Flow.Proto == packet.ProtoUDP {
		if template != 0 {
			s.table.Release(template)
		}
		d.stats.connections.Add(1)
		return d, packet.Accept
	}
	switch n, result := s.table.Insert(p, d.number, template, now); result {
	case conntab.Full:
		return nil, packet.DropTableFull
	case conntab.Hit: // another worker was faster
		return s.dest(n)
	}
	d.bound()
	d.stats.connections.Add(1)
	return d, packet.Accept
}

// persistent is Decide for a new connection to a service whose clients stay where they are (Linux ip_vs_core.c,
// ip_vs_sched_persist). One service has one template for a client, whatever its VIPs and ports.
func (s *Snapshot) persistent(svc *service, p *packet.Info, now conntab.Ticks) (*Dest, packet.Drop) {
	table := s.table
	client := svc.client(p.Flow.Src)
	n, template, result := table.Template(client, svc.number, now)
	if result == conntab.Hit {
		if d, drop := s.dest(n); drop == packet.Accept && s.keeps(d) {
			return s.connect(svc, d, template, p, now)
		}
		defer table.Release(template) // not before it is replaced: its number would be another's
	}
	former := template
	d := svc.sched.pick(svc.list, p, now)
	if d == nil {
		if former != 0 {
			table.Forget(client, svc.number, former)
		}
		return nil, packet.DropNoRealserver
	}
	n, template, result = table.PutTemplate(client, svc.number, d.number, svc.config.Persistence.Timeout, former, now)
	switch result {
	case conntab.Full:
		return nil, packet.DropTableFull
	case conntab.Hit: // another worker was faster
		var drop packet.Drop
		if d, drop = s.dest(n); drop != packet.Accept {
			table.Release(template)
			return nil, drop
		}
	}
	return s.connect(svc, d, template, p, now)
}

// keeps reports whether d's persistent clients stay (Linux ip_vs_conn.c, ip_vs_check_template).
func (s *Snapshot) keeps(d *Dest) bool {
	return !d.counts.Gone() && (d.Weight > 0 || !s.options.ExpireQuiescentTemplate)
}

// client is what is one client to the service: the network of an address.
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
func (s *Snapshot) dest(n uint32) (*Dest, packet.Drop) {
	if int(n) < len(s.dests) && s.dests[n] != nil {
		return s.dests[n], packet.Accept
	}
	// A worker with a newer snapshot has made this connection since the batch began.
	if latest := s.balancer.Snapshot(); latest != s {
		return latest.dest(n)
	}
	return nil, packet.DropNoRealserver
}

// Find returns the realserver of the connection f, also one that has left, without touching the connection; nil for
// none.
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

// DestsByAddr returns the Dests for the realserver with address a, those that have left included: one for each method
// that services have for it. Of those with one method it is that with the largest MTU, since the MTU of a realserver
// that has left may be an old one.
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

// HasVIP reports whether a is the address of a service.
func (s *Snapshot) HasVIP(a netip.Addr) bool {
	_, ok := s.vips[a]
	return ok
}

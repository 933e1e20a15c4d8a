package balancer

import (
	"net/netip"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// Decide returns the realserver that a packet goes to, or why it goes nowhere: the one that its connection has, or, for a new connection,
// the one that the service's scheduler chooses, which is remembered. It allocates nothing and is called once for each packet of TCP or UDP.
func (s *Snapshot) Decide(p *packet.Info, now conntab.Ticks) (*Dest, packet.Drop) {
	table := s.balancer.table
	n, result := table.Packet(p, now)
	if result == conntab.Hit {
		return s.dest(n)
	}
	svc := s.vips[p.Flow.Dst].find(p.Flow.Proto, p.Flow.DstPort)
	if svc == nil {
		return nil, packet.DropNoService
	}
	if result == conntab.Refused {
		return nil, packet.DropNoConnection
	}
	d := svc.sched.pick(svc.list, p)
	if d == nil {
		return nil, packet.DropNoRealserver
	}
	switch n, result = table.Insert(p, d.number, now); result {
	case conntab.Full:
		return nil, packet.DropTableFull
	case conntab.Hit: // another worker was faster
		return s.dest(n)
	}
	d.stats.connections.Add(1)
	return d, packet.Accept
}

// Touch prepares the decision for p: see conntab.Table.Touch.
func (s *Snapshot) Touch(p *packet.Info) uint8 { return s.balancer.table.Touch(p) }

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

// HasVIP tells whether a is the address of a service.
func (s *Snapshot) HasVIP(a netip.Addr) bool {
	_, ok := s.vips[a]
	return ok
}

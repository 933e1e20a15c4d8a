package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// lblcr is locality-based least connection with replication (Linux net/netfilter/ipvs/ip_vs_lblcr.c): of a set of
// realservers that the destination address has, the one with the least overhead by weight. While that is crowded, the
// one that wlc chooses joins the set. Once a set hasn't changed for a day, the one with the most overhead leaves it.
type lblcr struct {
	leastLoad
	seen *locality
}

func newLBLCR(kind) scheduler {
	return &lblcr{*weightedLeast(), &locality{places: map[netip.Addr]*place{}}}
}

func (s *lblcr) pick(list []*Dest, p *packet.Info, now conntab.Ticks) *Dest {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	known := s.seen.get(p.Flow.Dst, now)
	if known != nil {
		d := known.least(list)
		if len(known.servers) > 1 && age(known.modified, now) > day {
			known.shrink(list, now)
		}
		if d != nil && !s.crowded(d) {
			return d
		}
	}
	d := s.leastLoad.pick(list, p, now)
	switch {
	case d == nil:
	case known != nil:
		known.join(list, d, now)
	default:
		s.seen.put(p.Flow.Dst, d, now)
	}
	return d
}

// least is the one with the least overhead by weight of those that may have a connection, or nil.
func (p *place) least(list []*Dest) (best *Dest) {
	for i := range p.servers {
		d := p.servers[i].find(list)
		if d != nil && d.available() && (best == nil ||
			best.connOverhead()*int64(d.Weight) > d.connOverhead()*int64(best.Weight)) {
			best = d
		}
	}
	return best
}

// shrink takes away the one with the most overhead by weight, of those with a weight.
func (p *place) shrink(list []*Dest, now conntab.Ticks) {
	var most *Dest
	at := 0
	for i := range p.servers {
		d := p.servers[i].find(list)
		if d != nil && d.Weight > 0 && (most == nil ||
			most.connOverhead()*int64(d.Weight) < d.connOverhead()*int64(most.Weight)) {
			most, at = d, i
		}
	}
	if most != nil {
		p.servers = slices.Delete(p.servers, at, at+1)
		p.modified = now
	}
}

// join adds d, if it isn't there. A set as large as the list has some that have left the service: they go first.
func (p *place) join(list []*Dest, d *Dest, now conntab.Ticks) {
	if slices.ContainsFunc(p.servers, func(s seat) bool { return s.stats == d.stats }) {
		return
	}
	if len(p.servers) >= len(list) {
		p.servers = slices.DeleteFunc(p.servers, func(s seat) bool { return s.find(list) == nil })
	}
	p.servers = slices.Insert(p.servers, 0, seat{stats: d.stats})
	p.modified = now
}

func (s *lblcr) clone() scheduler { return &lblcr{s.leastLoad, s.seen} }

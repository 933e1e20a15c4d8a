package balancer

import (
	"net/netip"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// lblc is locality-based least connection (Linux net/netfilter/ipvs/ip_vs_lblc.c): the realserver that the destination
// address had last, unless it is crowded; else as wlc. As in the kernel its threshold is not looked at again.
type lblc struct {
	leastLoad
	seen *locality
}

func newLBLC(kind) scheduler {
	return &lblc{*weightedLeast(), &locality{places: map[netip.Addr]*place{}}}
}

func (s *lblc) pick(list []*Dest, p *packet.Info, now conntab.Ticks) *Dest {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	known := s.seen.get(p.Flow.Dst, now)
	if known != nil {
		if d := known.servers[0].find(list); d != nil && d.Weight > 0 && !s.crowded(d) {
			return d
		}
	}
	d := s.leastLoad.pick(list, p, now)
	switch {
	case d == nil:
	case known != nil:
		known.servers[0] = seat{stats: d.stats}
	default:
		s.seen.put(p.Flow.Dst, d, now)
	}
	return d
}

func (s *lblc) clone() scheduler { return &lblc{s.leastLoad, s.seen} }

package balancer

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// Schedulers that choose the realserver with the least load (Linux net/netfilter/ipvs/ip_vs_lc.c, ip_vs_wlc.c,
// ip_vs_sed.c and ip_vs_nq.c).
var leastLoaded = []Scheduler{
	// Least connection: the least overhead, whatever the weights are above 0.
	{Name: "lc", Choice: "the fewest connections",
		make: func(kind) scheduler { return &leastLoad{choose: leastOverhead, flat: true} }},
	// Weighted least connection: the least overhead by weight.
	{Name: "wlc", Choice: "the fewest connections for its weight",
		make: func(kind) scheduler { return &leastLoad{choose: leastOverhead} }},
	{Name: "sed", Choice: "the fewest active connections for its weight, with this one",
		make: func(kind) scheduler { return &leastLoad{choose: shortestDelay} }},
	{Name: "nq", Choice: "the first without an active connection, else the fewest for its weight",
		make: func(kind) scheduler { return &leastLoad{choose: neverQueue} }},
}

// load is the part of a realserver that a scan reads. A service's loads lie side by side, so that a scan of a thousand
// hardly touches a Dest.
type load struct {
	weight int64
	counts *conntab.Counts
}

// leastLoad chooses among all loads.
type leastLoad struct {
	choose func(loads []load, list []*Dest) *Dest
	flat   bool   // all weights above 0 count as 1
	loads  []load // in list order; a new slice for each change
}

func (s *leastLoad) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	return s.choose(s.loads, list)
}

func (s *leastLoad) changed(list []*Dest, _ change) {
	s.loads = make([]load, len(list))
	for i, d := range list {
		s.loads[i] = load{int64(d.Weight), d.counts}
		if s.flat {
			s.loads[i].weight = min(s.loads[i].weight, 1)
		}
	}
}

func (s *leastLoad) clone() scheduler {
	c := *s
	return &c
}

// leastOverhead chooses the realserver with the least overhead by weight, see Dest.connOverhead. Of equal ones it is
// the first in the list.
func leastOverhead(loads []load, list []*Dest) *Dest {
	var best *Dest
	least, weight := int64(1), int64(0) // infinite; a realserver of weight 0 is never below
	for i := range loads {
		l := &loads[i]
		overhead := int64(l.counts.Active())<<8 + int64(l.counts.Inactive())
		// least/weight > overhead/l.weight, without a division
		if least*l.weight > overhead*weight && !list[i].overloaded() {
			best, least, weight = list[i], overhead, l.weight
		}
	}
	return best
}

// shortestDelay is shortest expected delay: the least number of active connections by weight, the new one included.
func shortestDelay(loads []load, list []*Dest) *Dest {
	var best *Dest
	least, weight := int64(1), int64(0) // as in leastOverhead
	for i := range loads {
		l := &loads[i]
		delay := int64(l.counts.Active()) + 1
		if least*l.weight > delay*weight && !list[i].overloaded() {
			best, least, weight = list[i], delay, l.weight
		}
	}
	return best
}

// neverQueue is never queue: the first realserver in the list without an active connection, else as shortestDelay.
func neverQueue(loads []load, list []*Dest) *Dest {
	for i := range loads {
		if loads[i].counts.Active() > 0 {
			continue
		}
		if list[i].available() {
			return list[i]
		}
	}
	return shortestDelay(loads, list)
}

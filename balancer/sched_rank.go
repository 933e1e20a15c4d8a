package balancer

import (
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

var ranked = []Scheduler{
	{Name: "fo", Choice: "the highest weight", make: func(kind) scheduler { return &fo{} }},
	{Name: "ovf", Choice: "the highest weight that has no more active connections than that",
		make: func(kind) scheduler { return &ovf{} }},
}

// rank is a realserver's load and its index in the list.
type rank struct {
	load
	index int
}

// ranking has the realservers with a weight, the heaviest first, and equal ones in list order. Each change makes a new
// slice.
type ranking []rank

func (r *ranking) changed(list []*Dest, _ change) {
	*r = make(ranking, 0, len(list))
	for i, d := range list {
		if d.Weight > 0 {
			*r = append(*r, rank{load{int64(d.Weight), d.counts}, i})
		}
	}
	slices.SortStableFunc(*r, func(a, b rank) int { return int(b.weight - a.weight) })
}

// fo is weighted failover (Linux net/netfilter/ipvs/ip_vs_fo.c): the realserver with the highest weight. Of equal ones
// it is the first in the list.
type fo struct{ ranking }

func (s *fo) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	for i := range s.ranking {
		if d := list[s.ranking[i].index]; !d.overloaded() {
			return d
		}
	}
	return nil
}

func (s *fo) clone() scheduler { return &fo{s.ranking} }

// ovf is weighted overflow (Linux net/netfilter/ipvs/ip_vs_ovf.c): as fo, but a realserver with more active connections
// than its weight is full, and new connections go to the next. When all are full, ovf chooses none.
type ovf struct{ ranking }

func (s *ovf) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	for i := range s.ranking {
		if r := &s.ranking[i]; int64(r.counts.Active()) <= r.weight && !list[r.index].overloaded() {
			return list[r.index]
		}
	}
	return nil
}

func (s *ovf) clone() scheduler { return &ovf{s.ranking} }

package balancer

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// fo is weighted failover (Linux net/netfilter/ipvs/ip_vs_fo.c): the realserver with the highest weight, the first in
// the list where several have it.
type fo struct{ ranking }

func newFO(kind) scheduler { return &fo{} }

func (s *fo) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	for i := range s.ranking {
		if d := list[s.ranking[i].at]; !d.overloaded() {
			return d
		}
	}
	return nil
}

func (s *fo) clone() scheduler { return &fo{s.ranking} }

package balancer

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// ovf is weighted overflow (Linux net/netfilter/ipvs/ip_vs_ovf.c): as fo, but a realserver with more active connections
// than its weight is full, and the next gets them; none when all are full.
type ovf struct{ ranking }

func newOVF(kind) scheduler { return &ovf{} }

func (s *ovf) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	for i := range s.ranking {
		if r := &s.ranking[i]; int64(r.counts.Active()) <= r.weight && !list[r.at].overloaded() {
			return list[r.at]
		}
	}
	return nil
}

func (s *ovf) clone() scheduler { return &ovf{s.ranking} }

package balancer

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// dh is destination hashing (Linux net/netfilter/ipvs/ip_vs_dh.c): the realserver of the destination address's bucket.
// All have as many buckets, whatever their weights are.
type dh struct{ table *buckets }

func newDH(kind) scheduler { return &dh{} }

func (s *dh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	if d := list[s.table[bucket(fold(p.Flow.Dst))]]; d.available() {
		return d
	}
	return nil
}

func (s *dh) changed(list []*Dest)        { s.table = fill(list, func(*Dest) int { return 1 }) }
func (s *dh) added(list []*Dest)          { s.changed(list) }
func (s *dh) removed(list []*Dest, _ int) { s.changed(list) }
func (s *dh) edited(list []*Dest)         { s.changed(list) }

func (s *dh) clone() scheduler { return &dh{s.table} }

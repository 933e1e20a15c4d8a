package balancer

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// sh is source hashing (Linux net/netfilter/ipvs/ip_vs_sh.c): the realserver of the source's bucket. Each has as many
// buckets as its weight is, and one if that is 0.
type sh struct {
	flags Flags
	table *buckets
}

func newSH(k kind) scheduler { return &sh{flags: k.Flags} }

func (s *sh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	key := fold(p.Flow.Src)
	if s.flags.Port {
		key += uint32(p.Flow.SrcPort)
	}
	b := bucket(key)
	if d := list[s.table[b]]; d.available() {
		return d
	}
	if s.flags.Fallback {
		for i := range len(s.table) {
			if d := list[s.table[2*b+uint8(i)]]; d.available() { // the bucket is added as an offset to its own hash
				return d
			}
		}
	}
	return nil
}

func (s *sh) changed(list []*Dest)        { s.table = fill(list, func(d *Dest) int { return d.Weight }) }
func (s *sh) added(list []*Dest)          { s.changed(list) }
func (s *sh) removed(list []*Dest, _ int) { s.changed(list) }
func (s *sh) edited(list []*Dest)         { s.changed(list) }

func (s *sh) clone() scheduler { return &sh{s.flags, s.table} }

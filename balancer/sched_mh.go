package balancer

import (
	"cmp"
	"slices"

	"vstun/balancer/conntab"
	"vstun/balancer/maglev"
	"vstun/encap/packet"
)

var maglevs = []Scheduler{
	{Name: "mh", Choice: "the Maglev hash of the client", Flags: true, Hash: true, port: true,
		make: func(k kind) scheduler { return &mh{flags: k.Flags, byAddress: k.byAddress, port: k.port} }},
}

// mh is Maglev hashing (Linux net/netfilter/ipvs/ip_vs_mh.c): the realserver of the source's slot in a table. Each
// realserver has its own permutation of slots, so that most slots stay as they are when another realserver comes or
// goes.
type mh struct {
	flags     Flags
	byAddress bool            // see tableOrder; the table depends on nothing but the present list
	port      uint16          // the service's port, 0 if it has several: of the realservers without a port of their own
	members   []maglev.Member // in list order; a new slice for each change
	table     *maglev.Table   // a new one for each change; nil: no realserver has a weight, or has had one
	stale     bool            // the table is older than members: only until settle
}

func (s *mh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	port := uint16(0)
	if s.flags.Port {
		port = p.Flow.SrcPort
	}
	key, available := maglev.Key(p.Flow.Src, port), func(i int) bool { return list[i].available() }
	i := s.table.Choose(key, false, available)
	if i < 0 && s.flags.Fallback && slices.ContainsFunc(list, (*Dest).available) {
		i = s.table.Choose(key, true, available)
	}
	if i < 0 {
		return nil
	}
	return list[i]
}

// member returns d's permutation.
func (s *mh) member(d *Dest) maglev.Member {
	return maglev.NewMember(d.Address, cmp.Or(d.Port, s.port), d.Weight)
}

func (s *mh) changed(list []*Dest, c change) {
	former := s.members
	switch s.stale = true; c.kind {
	case changeAdded:
		s.members = slices.Insert(slices.Clone(former), 0, s.member(list[0]))
	case changeRemoved:
		s.members = slices.Delete(slices.Clone(former), c.index, c.index+1)
	default:
		s.members = make([]maglev.Member, len(list))
		for i, d := range list {
			// A realserver that drains keeps its slots, for when it comes back: its member has its last weight above 0.
			// With byAddress it has the present one.
			if s.members[i] = s.member(d); d.Weight == 0 && i < len(former) && !s.byAddress {
				s.members[i].Weight = former[i].Weight
			}
		}
	}
}

// settle rebuilds the table once after all changes: a rebuild for each of a thousand would take seconds.
func (s *mh) settle(list []*Dest) {
	if s.stale {
		s.stale, s.table = false, maglev.New(s.members, tableOrder(list, s.byAddress))
	}
}

func (s *mh) clone() scheduler { return &mh{s.flags, s.byAddress, s.port, s.members, s.table, s.stale} }

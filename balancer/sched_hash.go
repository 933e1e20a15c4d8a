package balancer

import (
	"slices"

	"vstun/balancer/conntab"
	"vstun/balancer/maglev"
	"vstun/encap/packet"
)

var hashed = []Scheduler{
	{Name: "dh", Choice: "the hash of the VIP", Hash: true,
		make: func(k kind) scheduler { return &dh{byAddress: k.byAddress} }},
	{Name: "sh", Choice: "the hash of the client", Flags: true, Hash: true,
		make: func(k kind) scheduler { return &sh{flags: k.Flags, byAddress: k.byAddress} }},
}

// tableOrder returns the indexes of list in the order in which a hash scheduler fills its table: that of the list, or
// by address and port. The list's order depends on the configuration file and on former changes. The order by address
// depends on neither.
func tableOrder(list []*Dest, byAddress bool) []int32 {
	order := make([]int32, len(list))
	for i := range order {
		order[i] = int32(i)
	}
	if byAddress {
		slices.SortFunc(order, func(a, b int32) int { return list[a].ID().Compare(list[b].ID()) })
	}
	return order
}

// buckets is the table of sh and dh. It has the list index of each bucket's realserver. It is nil for an empty list.
// A change of the list makes a new table.
type buckets [256]int32

// bucket returns the bucket of a key (Linux include/linux/hash.h, hash_32 with 8 bits).
func bucket(key uint32) uint8 { return uint8(key * 0x61C88647 >> 24) }

// fill gives each realserver, in the order of the indexes order, its share of adjacent buckets, at least one. It goes
// round the list until no bucket is left.
func fill(list []*Dest, order []int32, share func(*Dest) int) *buckets {
	if len(list) == 0 {
		return nil
	}
	b := new(buckets)
	at, given := 0, 0
	for i := range b {
		b[i] = order[at]
		if given++; given >= share(list[order[at]]) {
			at, given = (at+1)%len(order), 0
		}
	}
	return b
}

// dh is destination hashing (Linux net/netfilter/ipvs/ip_vs_dh.c): the realserver of the destination address's bucket.
// All have the same number of buckets, whatever their weights are.
type dh struct {
	byAddress bool // see tableOrder
	table     *buckets
}

func (s *dh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	if d := list[s.table[bucket(maglev.Fold(p.Flow.Dst))]]; d.available() {
		return d
	}
	return nil
}

func (s *dh) changed([]*Dest, change) { s.table = nil }

func (s *dh) settle(list []*Dest) {
	if s.table == nil {
		s.table = fill(list, tableOrder(list, s.byAddress), func(*Dest) int { return 1 })
	}
}

func (s *dh) clone() scheduler { return &dh{s.byAddress, s.table} }

// sh is source hashing (Linux net/netfilter/ipvs/ip_vs_sh.c): the realserver of the source's bucket. A realserver has
// as many buckets as its weight, and one if that is 0.
type sh struct {
	flags     Flags
	byAddress bool // see tableOrder
	table     *buckets
}

func (s *sh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	key := maglev.Fold(p.Flow.Src)
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

func (s *sh) changed([]*Dest, change) { s.table = nil }

func (s *sh) settle(list []*Dest) {
	if s.table == nil {
		s.table = fill(list, tableOrder(list, s.byAddress), func(d *Dest) int { return d.Weight })
	}
}

func (s *sh) clone() scheduler { return &sh{s.flags, s.byAddress, s.table} }

package balancer

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// What several schedulers need: least load, ranking by weight, hashes of addresses.

// load is what a scan looks at of a realserver. A service's loads lie side by side, so that a scan of a thousand hardly
// touches a Dest.
type load struct {
	weight int64
	counts *conntab.Counts
}

// leastLoad chooses among all loads.
type leastLoad struct {
	choose func(loads []load, list []*Dest) *Dest
	flat   bool   // all weights above 0 count as 1
	loads  []load // in list order; a slice that is made anew for each change
}

func (s *leastLoad) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	return s.choose(s.loads, list)
}

func (s *leastLoad) changed(list []*Dest) {
	s.loads = make([]load, len(list))
	for i, d := range list {
		s.loads[i] = load{int64(d.Weight), d.counts}
		if s.flat {
			s.loads[i].weight = min(s.loads[i].weight, 1)
		}
	}
}

func (s *leastLoad) added(list []*Dest)          { s.changed(list) }
func (s *leastLoad) removed(list []*Dest, _ int) { s.changed(list) }
func (s *leastLoad) edited(list []*Dest)         { s.changed(list) }

func (s *leastLoad) clone() scheduler {
	c := *s
	return &c
}

// leastOverhead chooses the realserver with the least overhead by weight, see Dest.connOverhead, the first in the list
// where several have it.
func leastOverhead(loads []load, list []*Dest) *Dest {
	var best *Dest
	least, weight := int64(1), int64(0) // infinite; a weight of 0 never is below
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

// ranked is a realserver's place in the list.
type ranked struct {
	load
	at int
}

// ranking is the realservers with a weight, the heaviest first, and in list order where they are alike. A slice that is
// made anew for each change.
type ranking []ranked

func (r *ranking) changed(list []*Dest) {
	*r = make(ranking, 0, len(list))
	for i, d := range list {
		if d.Weight > 0 {
			*r = append(*r, ranked{load{int64(d.Weight), d.counts}, i})
		}
	}
	slices.SortStableFunc(*r, func(a, b ranked) int { return int(b.weight - a.weight) })
}

func (r *ranking) added(list []*Dest)          { r.changed(list) }
func (r *ranking) removed(list []*Dest, _ int) { r.changed(list) }
func (r *ranking) edited(list []*Dest)         { r.changed(list) }

// fold is an address as the hashes take it: an IPv4 address as a number, of an IPv6 address the XOR of its four words.
func fold(a netip.Addr) uint32 {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	b := a.As16()
	return binary.BigEndian.Uint32(b[0:]) ^ binary.BigEndian.Uint32(b[4:]) ^
		binary.BigEndian.Uint32(b[8:]) ^ binary.BigEndian.Uint32(b[12:])
}

// buckets is the table of sh and dh: each bucket's realserver, as its place in the list; nil: the list is empty. It is
// made anew for each change.
type buckets [256]int32

// bucket is the bucket of a key (Linux include/linux/hash.h, hash_32 with 8 bits).
func bucket(key uint32) uint8 { return uint8(key * 0x61C88647 >> 24) }

// fill gives each realserver in list order so many buckets in a row, at least one, and begins again until all buckets
// are given.
func fill(list []*Dest, share func(*Dest) int) *buckets {
	if len(list) == 0 {
		return nil
	}
	b := new(buckets)
	at, given := 0, 0
	for i := range b {
		b[i] = int32(at)
		if given++; given >= share(list[at]) {
			at, given = (at+1)%len(list), 0
		}
	}
	return b
}

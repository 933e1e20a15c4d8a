package balancer

import (
	"cmp"
	"math/bits"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

var maglev = []Scheduler{
	{Name: "mh", Choice: "the Maglev hash of the client", Flags: true, Hash: true, port: true,
		make: func(k kind) scheduler { return &mh{flags: k.Flags, byAddress: k.byAddress, port: k.port} }},
}

// mh is Maglev hashing (Linux net/netfilter/ipvs/ip_vs_mh.c; Eisenbud et al., Maglev, NSDI 2016, section 3.4): the
// realserver of the source's slot in a table. Each realserver has its own permutation of slots, so that most slots stay
// as they are when another realserver comes or goes.
type mh struct {
	flags     Flags
	byAddress bool     // see tableOrder; the table depends on nothing but the present list
	port      uint16   // the service's port, 0 if it has several: of the realservers without a port of their own
	dests     []mhDest // in list order; a new slice for each change
	table     *mhTable // a new table for each change; nil: no realserver has a weight, or has had one
	stale     bool     // the table is older than dests: only until settle
}

// mhTable has the list index of each slot's realserver. Its size is the kernel's default, a prime number. The kernel
// refuses more realservers than slots; here the last in the list get no slot.
type mhTable [4093]int32

const mhSlots = uint32(len(mhTable{}))

// mhDest is a realserver's permutation of slots: the one at offset, then the one skip slots on, and so forth.
type mhDest struct {
	offset, skip uint32
	// weight is the last one above 0: a realserver that drains keeps its slots, for when it comes back. With byAddress
	// it is the present one.
	weight int
}

// The keys of the two hashes. Each number is both halves of its key.
const (
	mhKey1 = 2654435761
	mhKey2 = 2654446892
)

// mhTurnBits bounds the number of slots that a realserver takes in a turn: 6 bits.
const mhTurnBits = 6

func (s *mh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	key := fold(p.Flow.Src)
	if s.flags.Port {
		key += uint32(p.Flow.SrcPort)
	}
	slot := hsiphash(key, mhKey1) % mhSlots
	if d := list[s.table[slot]]; d.available() {
		return d
	}
	if s.flags.Fallback && slices.ContainsFunc(list, (*Dest).available) {
		for i := range mhSlots {
			n := (i + slot) % mhSlots
			if d := list[s.table[hsiphash(key+n, mhKey1)%mhSlots]]; d.available() {
				return d
			}
		}
	}
	return nil
}

// mhDest returns d's permutation. As in the kernel, the realserver's port is part of its hash.
func (s *mh) mhDest(d *Dest) mhDest {
	key := fold(d.Address) + uint32(cmp.Or(d.Port, s.port))
	return mhDest{hsiphash(key, mhKey1) % mhSlots, hsiphash(key, mhKey2)%(mhSlots-1) + 1, d.Weight}
}

func (s *mh) changed(list []*Dest, c change) {
	former := s.dests
	switch s.stale = true; c.kind {
	case changeAdded:
		s.dests = slices.Insert(slices.Clone(former), 0, s.mhDest(list[0]))
	case changeRemoved:
		s.dests = slices.Delete(slices.Clone(former), c.index, c.index+1)
	default:
		s.dests = make([]mhDest, len(list))
		for i, d := range list {
			if s.dests[i] = s.mhDest(d); d.Weight == 0 && i < len(former) && !s.byAddress {
				s.dests[i].weight = former[i].weight
			}
		}
	}
}

// settle rebuilds the table once after all changes: a rebuild for each of a thousand would take seconds.
func (s *mh) settle(list []*Dest) {
	if s.stale {
		s.stale = false
		s.populate(tableOrder(list, s.byAddress))
	}
}

// populate builds the table: in turns, each realserver takes a number of slots in proportion to its weight, within
// bounds, each time the first free one of its permutation. order are the list indexes of the realservers.
func (s *mh) populate(order []int32) {
	s.table = nil
	divisor, highest := 0, 0
	for _, d := range s.dests {
		divisor, highest = gcd(divisor, d.weight), max(highest, d.weight)
	}
	if highest == 0 {
		return
	}
	shift := max(bits.Len(uint(highest/divisor))-mhTurnBits, 0)
	s.table = new(mhTable)
	var taken [mhSlots]bool
	next := make([]uint32, len(s.dests)) // slot to try
	for i, d := range s.dests {
		next[i] = d.offset
	}
	for free := mhSlots; ; {
		for _, i := range order {
			d := &s.dests[i]
			if d.weight == 0 {
				continue
			}
			for range max(d.weight/divisor>>shift, 1) {
				for taken[next[i]] {
					next[i] = (next[i] + d.skip) % mhSlots
				}
				taken[next[i]] = true
				s.table[next[i]] = i
				if free--; free == 0 {
					return
				}
			}
		}
	}
}

func (s *mh) clone() scheduler { return &mh{s.flags, s.byAddress, s.port, s.dests, s.table, s.stale} }

// hsiphash is the kernel's hsiphash of one 32-bit number on 64-bit machines (include/linux/siphash.h): SipHash-1-3
// (Aumasson and Bernstein, 2012), the lower half, with the same number as both halves of the key.
func hsiphash(n uint32, key uint64) uint32 {
	v0, v1, v2, v3 := key^0x736f6d6570736575, key^0x646f72616e646f6d, key^0x6c7967656e657261, key^0x7465646279746573
	m := 4<<56 | uint64(n) // the top byte is its length in bytes
	v3 ^= m
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= m
	v2 ^= 0xff
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	return uint32(v0 ^ v1 ^ v2 ^ v3)
}

func sipRound(v0, v1, v2, v3 uint64) (uint64, uint64, uint64, uint64) {
	v0 += v1
	v2 += v3
	v1 = bits.RotateLeft64(v1, 13) ^ v0
	v3 = bits.RotateLeft64(v3, 16) ^ v2
	v0 = bits.RotateLeft64(v0, 32)
	v2 += v1
	v0 += v3
	v1 = bits.RotateLeft64(v1, 17) ^ v2
	v3 = bits.RotateLeft64(v3, 21) ^ v0
	v2 = bits.RotateLeft64(v2, 32)
	return v0, v1, v2, v3
}

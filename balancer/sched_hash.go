package balancer

import (
	"encoding/binary"
	"net/netip"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

var hashed = []Scheduler{
	{Name: "dh", Choice: "the hash of the VIP", Hash: true, make: func(kind) scheduler { return &dh{} }},
	{Name: "sh", Choice: "the hash of the client", Flags: true, Hash: true,
		make: func(k kind) scheduler { return &sh{flags: k.Flags} }},
}

// fold returns an address in the form that the hashes take: an IPv4 address as a number, an IPv6 address as the XOR of
// its four words.
func fold(a netip.Addr) uint32 {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	b := a.As16()
	return binary.BigEndian.Uint32(b[0:]) ^ binary.BigEndian.Uint32(b[4:]) ^
		binary.BigEndian.Uint32(b[8:]) ^ binary.BigEndian.Uint32(b[12:])
}

// buckets is the table of sh and dh. It has the list index of each bucket's realserver. It is nil for an empty list.
// Each change makes a new table.
type buckets [256]int32

// bucket returns the bucket of a key (Linux include/linux/hash.h, hash_32 with 8 bits).
func bucket(key uint32) uint8 { return uint8(key * 0x61C88647 >> 24) }

// fill gives each realserver, in list order, its share of adjacent buckets, at least one. It goes round the list until
// no bucket is left.
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

// dh is destination hashing (Linux net/netfilter/ipvs/ip_vs_dh.c): the realserver of the destination address's bucket.
// All have the same number of buckets, whatever their weights are.
type dh struct{ table *buckets }

func (s *dh) pick(list []*Dest, p *packet.Info, _ conntab.Ticks) *Dest {
	if s.table == nil {
		return nil
	}
	if d := list[s.table[bucket(fold(p.Flow.Dst))]]; d.available() {
		return d
	}
	return nil
}

func (s *dh) changed(list []*Dest, _ change) { s.table = fill(list, func(*Dest) int { return 1 }) }

func (s *dh) clone() scheduler { return &dh{s.table} }

// sh is source hashing (Linux net/netfilter/ipvs/ip_vs_sh.c): the realserver of the source's bucket. A realserver has
// as many buckets as its weight, and one if that is 0.
type sh struct {
	flags Flags
	table *buckets
}

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

func (s *sh) changed(list []*Dest, _ change) {
	s.table = fill(list, func(d *Dest) int { return d.Weight })
}

func (s *sh) clone() scheduler { return &sh{s.flags, s.table} }

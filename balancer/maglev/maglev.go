// Package maglev is the table of Maglev hashing as the kernel's scheduler mh makes it (Linux
// net/netfilter/ipvs/ip_vs_mh.c; Eisenbud et al., Maglev, NSDI 2016, section 3.4). Two programs with the same members
// in the same order have the same table.
package maglev

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Slots is the number of slots of a table: the kernel's default, a prime number.
const Slots = 4093

// Table has the index of each slot's member. The kernel refuses more members than slots; here the last ones get no
// slot. A table does not change.
type Table [Slots]uint16

// Member is a member's permutation of slots: the one at offset, then the one skip slots on, and so forth.
type Member struct {
	offset, skip uint32
	Weight       int // 0: it has no slots
}

// The keys of the two hashes. Each number is both halves of its key.
const (
	key1 = 2654435761
	key2 = 2654446892
)

// turnBits bounds the number of slots that a member takes in a turn: 6 bits.
const turnBits = 6

// NewMember returns the permutation of a realserver. As in the kernel, its port is part of its hash.
func NewMember(a netip.Addr, port uint16, weight int) Member {
	key := Fold(a) + uint32(port)
	return Member{hsiphash(key, key1) % Slots, hsiphash(key, key2)%(Slots-1) + 1, weight}
}

// New returns the table of members: in turns, each member takes a number of slots in proportion to its weight, within
// bounds, each time the first free one of its permutation. order is the indexes of the members in the order of their
// turns. New returns nil if no member has a weight.
func New(members []Member, order []int32) *Table {
	divisor, highest := 0, 0
	for _, m := range members {
		divisor, highest = gcd(divisor, m.Weight), max(highest, m.Weight)
	}
	if highest == 0 {
		return nil
	}
	shift := max(bits.Len(uint(highest/divisor))-turnBits, 0)
	t := new(Table)
	var taken [Slots]bool
	next := make([]uint32, len(members)) // slot to try
	for i, m := range members {
		next[i] = m.offset
	}
	for free := Slots; ; {
		for _, i := range order {
			m := &members[i]
			if m.Weight == 0 {
				continue
			}
			for range max(m.Weight/divisor>>shift, 1) {
				for taken[next[i]] {
					next[i] = (next[i] + m.skip) % Slots
				}
				taken[next[i]] = true
				t[next[i]] = uint16(i)
				if free--; free == 0 {
					return t
				}
			}
		}
	}
}

// Key returns the key of a client's packets. port is the client's, or 0 if it is no part of the key.
func Key(client netip.Addr, port uint16) uint32 { return Fold(client) + uint32(port) }

// Slot returns the slot of a key.
func Slot(key uint32) uint32 { return hsiphash(key, key1) % Slots }

// Choose returns the index of the member that has the key's slot. If that is not available, Choose tries other slots
// with fallback, and returns -1 without, or if no member is available. The caller ensures that one is available if
// fallback is set.
func (t *Table) Choose(key uint32, fallback bool, available func(member int) bool) int {
	slot := Slot(key)
	if i := int(t[slot]); available(i) {
		return i
	}
	if fallback {
		for i := range uint32(Slots) {
			n := (i + slot) % Slots
			if i := int(t[hsiphash(key+n, key1)%Slots]); available(i) {
				return i
			}
		}
	}
	return -1
}

// Fold returns an address in the form that the kernel's hashes take: an IPv4 address as a number, an IPv6 address as
// the XOR of its four words.
func Fold(a netip.Addr) uint32 {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	b := a.As16()
	return binary.BigEndian.Uint32(b[0:]) ^ binary.BigEndian.Uint32(b[4:]) ^
		binary.BigEndian.Uint32(b[8:]) ^ binary.BigEndian.Uint32(b[12:])
}

// gcd returns the greatest common divisor of a and b. gcd(0, b) is b.
func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

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

package endpoint

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
)

// Addrs counts packets by address, for a bounded number of addresses. A new address replaces the oldest one. One
// goroutine counts. Any goroutine may read at any time. Counting takes no lock and does not allocate.
type Addrs struct {
	slots []addrSlot
	used  int    // of slots
	next  int    // slot to replace
	last  int    // slot of the last packet
	run   uint64 // packets of that slot that are not in its count yet
}

// addrSlot is one address with its count. The version is odd while add replaces the slot's address.
type addrSlot struct {
	addr          netip.Addr // the counting goroutine's copy
	version       atomic.Uint32
	hi, lo, count atomic.Uint64
}

func newAddrs(n int) Addrs { return Addrs{slots: make([]addrSlot, n)} }

// add counts n packets of a. They can be read after publish.
func (s *Addrs) add(a netip.Addr, n uint64) {
	if s.used == 0 || s.slots[s.last].addr != a {
		s.publish()
		s.last = s.slotOf(a)
	}
	s.run += n
}

// publish makes the counts readable. The worker calls it once a batch.
func (s *Addrs) publish() {
	if s.run > 0 {
		s.slots[s.last].count.Add(s.run)
		s.run = 0
	}
}

// slotOf returns the slot of a. It assigns a slot if a has none.
func (s *Addrs) slotOf(a netip.Addr) int {
	for i := range s.slots[:s.used] {
		if s.slots[i].addr == a {
			return i
		}
	}
	i := s.next
	s.next = (s.next + 1) % len(s.slots)
	s.used = max(s.used, i+1)
	slot, b := &s.slots[i], a.As16()
	slot.addr = a
	slot.version.Add(1)
	slot.hi.Store(binary.BigEndian.Uint64(b[:]))
	slot.lo.Store(binary.BigEndian.Uint64(b[8:]))
	slot.count.Store(0)
	slot.version.Add(1)
	return i
}

// Read adds the counts to m.
func (s *Addrs) Read(m map[netip.Addr]uint64) {
	for i := range s.slots {
		slot := &s.slots[i]
		for {
			version := slot.version.Load()
			var b [16]byte
			binary.BigEndian.PutUint64(b[:], slot.hi.Load())
			binary.BigEndian.PutUint64(b[8:], slot.lo.Load())
			n := slot.count.Load()
			if version&1 == 1 || version != slot.version.Load() {
				continue // the worker is replacing the address, which takes nanoseconds
			}
			if n > 0 {
				m[netip.AddrFrom16(b).Unmap()] += n
			}
			break
		}
	}
}

package forward

import (
	"net/netip"
	"sync"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// reassembler reassembles clients' packets from their fragments (RFC 791, section 3.2; RFC 8200, section 4.5). Only the
// first fragment has ports, and all fragments must go to one realserver. So a packet is reassembled before the look-up
// of its service. Its fragments may come in any order and by any queue. Workers use it only for fragments, one worker
// at a time.
//
// Its memory is allocated at the first fragment and never grows. Slots have the incomplete packets, pages have their
// bytes. When either runs out, the oldest packet is dropped. Each packet is dropped after its timeout.
type reassembler struct {
	mu      sync.Mutex
	slots   []slot
	pages   [][pageSize]byte
	spare   []uint16      // free pages
	free    int16         // first free slot, linked by next; none: no slot is free
	heads   [chains]int16 // first slot of each hash, linked by next
	oldest  int16         // slots in order of their age, linked by younger
	newest  int16
	waiting int // fragments in slots
	seed    seed
	swept   conntab.Ticks // time of the last expire
}

const (
	maxSlots = 1024 // packets
	chains   = 1024
	pageSize = 2048
	maxPages = 4096 // 8 MB
	none     = -1

	headRoom = 256 // bytes of a packet's headers before its fragmented part; longer ones are refused

	// Timeouts of incomplete packets: Linux's ipfrag_time (RFC 1122, section 3.3.2), and RFC 8200, section 4.5.
	wait4 = 30 * conntab.PerSecond
	wait6 = 60 * conntab.PerSecond
)

// fragKey identifies the packet of a fragment. For IPv6, proto is 0.
type fragKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// slot is an incomplete packet.
type slot struct {
	key            fragKey
	next           int16 // next slot in its chain, or next free slot
	older, younger int16
	begun          conntab.Ticks
	fragments      uint16 // number of fragments in it
	total          int    // bytes of data; 0: the last fragment has not come
	end            int    // end of the data that has come
	have           int    // bytes of it
	largest        int    // bytes of the largest fragment
	head           int    // bytes in header; 0: the first fragment has not come
	ecn            uint8  // a bit for each codepoint that a fragment had
	df             bool   // all fragments have it
	header         [headRoom]byte
	// 1 + the index of the page with this part of the data; 0: none yet
	page  [(packet.MaxLen + pageSize - 1) / pageSize]uint16
	units [packet.MaxLen/8/64 + 1]uint64 // a bit for every 8 bytes of data that have come
}

// init allocates the memory.
func (r *reassembler) init() {
	r.slots, r.pages = make([]slot, maxSlots), make([][pageSize]byte, maxPages)
	r.spare = make([]uint16, maxPages)
	for i := range r.spare {
		r.spare[i] = uint16(maxPages - 1 - i)
	}
	for i := range r.slots {
		r.slots[i].next = int16(i) - 1 // -1 is none
	}
	r.free = maxSlots - 1
	for i := range r.heads {
		r.heads[i] = none
	}
	r.oldest, r.newest = none, none
	r.seed = newSeed()
}

// add adds the fragment in b. When its packet is complete, add puts the packet into b and returns the size of its
// largest fragment in bytes. Otherwise it returns 0: the fragment waits, or is refused. t counts refused fragments,
// together with those whose packet they end.
func (r *reassembler) add(b *packet.Buf, now conntab.Ticks, t *stats.Tally) (largest int) {
	f, ok := readFragment(b.Bytes())
	if !ok {
		t.Drop(drop.Fragment)
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots == nil {
		r.init()
	}
	r.expire(now, t)
	i := r.find(&f.key)
	if i == none {
		i = r.begin(&f.key, now, t)
	}
	s := &r.slots[i]
	switch r.place(i, &f, t) {
	case useless:
		t.Drop(drop.Fragment)
		return 0
	case wrong:
		t.Drop(drop.Fragment)
		r.drop(i, drop.Fragment, t)
		return 0
	}
	s.fragments++
	r.waiting++
	s.largest = max(s.largest, f.size)
	if s.total == 0 || s.have < s.total {
		return 0
	}
	largest = s.largest
	if !r.finish(s, b) {
		r.drop(i, drop.Fragment, t)
		return 0
	}
	r.release(i)
	return largest
}

// sweep drops the packets that have waited too long.
func (r *reassembler) sweep(now conntab.Ticks, t *stats.Tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots != nil {
		r.expire(now, t)
	}
}

// piece is a parsed fragment: its headers, and its data with the data's offset in the packet.
type piece struct {
	key    fragKey
	head   []byte // of the first fragment: the packet's headers, without a fragment header
	proto  uint8  // IPv6: the type of the header behind head
	name   int    // IPv6: the offset in head of the byte that names it
	data   []byte
	offset int
	more   bool
	ecn    uint8
	df     bool
	size   int // of the fragment
}

// readFragment parses the fragment b. ok is false if it is malformed, its TTL is 0, or its headers exceed headRoom.
func readFragment(b []byte) (f piece, ok bool) {
	at, ok := packet.ParseFragment(b)
	if !ok {
		return f, false
	}
	f = piece{offset: at.Offset, more: at.More}
	if packet.Version(b) == 6 {
		h := packet.IPv6(b)
		x, d := h.Transport()
		if d != drop.Accept || h.HopLimit() == 0 {
			return f, false
		}
		f.key = fragKey{src: h.Src(), dst: h.Dst(), id: at.ID}
		f.ecn = h.TrafficClass() & 3
		f.head, f.data, f.size = b[:x.FragHeader], b[x.FragHeader+8:h.TotalLen()], h.TotalLen()
		f.proto, f.name = at.Proto, x.FragName
	} else {
		h := packet.IPv4(b)
		f.key = fragKey{src: h.Src(), dst: h.Dst(), id: at.ID, proto: at.Proto}
		f.ecn, f.df = h.TOS()&3, h.DF()
		f.head, f.data, f.size = b[:h.HeaderLen()], h.Payload(), h.TotalLen()
		if h.TTL() == 0 {
			return f, false
		}
	}
	return f, len(f.head) <= headRoom
}

// verdict is the result of place.
type verdict uint8

const (
	useful  verdict = iota
	useless         // all of its data has come before
	wrong           // it overlaps or contradicts another fragment: the packet is dropped
)

// place puts f into slot i. A packet with overlapping fragments is dropped as a whole (RFC 5722). A fragment whose data
// has all come before is a duplicate and is ignored (Linux net/ipv4/inet_fragment.c, inet_frag_queue_insert).
func (r *reassembler) place(i int16, f *piece, t *stats.Tally) verdict {
	s := &r.slots[i]
	end := f.offset + len(f.data)
	if f.more && s.total > 0 && end > s.total || !f.more && (end < s.end || s.total > 0 && end != s.total) {
		return wrong
	}
	first, last := f.offset/8, (end-1)/8
	had := 0
	for u := first; u <= last; u++ {
		if s.units[u/64]&(1<<(u%64)) != 0 {
			had++
		}
	}
	switch {
	case had == last-first+1:
		return useless
	case had > 0:
		return wrong
	}
	for at := f.offset / pageSize; at <= (end-1)/pageSize; at++ {
		if s.page[at] != 0 {
			continue
		}
		for len(r.spare) == 0 {
			oldest := r.oldest
			if oldest == i {
				oldest = s.younger // it exists: one packet never takes all pages
			}
			r.drop(oldest, drop.Reassembly, t)
		}
		s.page[at] = 1 + r.spare[len(r.spare)-1]
		r.spare = r.spare[:len(r.spare)-1]
	}
	for u := first; u <= last; u++ {
		s.units[u/64] |= 1 << (u % 64)
	}
	for at, data := f.offset, f.data; len(data) > 0; {
		n := copy(r.pages[s.page[at/pageSize]-1][at%pageSize:], data)
		at, data = at+n, data[n:]
	}
	s.have += len(f.data)
	s.end = max(s.end, end)
	s.ecn |= 1 << f.ecn
	s.df = s.df && f.df
	if !f.more {
		s.total = end
	}
	if f.offset == 0 {
		s.head = copy(s.header[:], f.head)
		if f.name > 0 {
			s.header[f.name] = f.proto
		}
	}
	return useful
}

// finish puts the complete packet of s into b. It returns false if the packet is too long, or its fragments' ECN marks
// contradict each other.
func (r *reassembler) finish(s *slot, b *packet.Buf) bool {
	const notECT, ce = 0, 3
	n := s.head + s.total
	// RFC 3168, section 5.3: a CE mark on one fragment applies to the packet. CE and Not-ECT in one packet contradict
	// each other.
	if n > packet.MaxLen || s.ecn&(1<<ce) != 0 && s.ecn&(1<<notECT) != 0 {
		return false
	}
	p := b.Room()[:n]
	copy(p, s.header[:s.head])
	for at := 0; at < s.total; at += pageSize {
		copy(p[s.head+at:], r.pages[s.page[at/pageSize]-1][:])
	}
	if packet.Version(p) == 6 {
		h := packet.IPv6(p)
		h.SetPayloadLen(n - packet.IPv6HeaderLen)
		if s.ecn&(1<<ce) != 0 {
			h.SetTrafficClass(h.TrafficClass() | ce)
		}
	} else {
		h := packet.IPv4(p)
		h.SetTotalLen(n)
		h.SetFragment(0, false)
		h.SetDF(s.df)
		if s.ecn&(1<<ce) != 0 {
			h.SetTOS(h.TOS() | ce)
		}
		h.SetChecksum()
	}
	b.SetLen(n)
	return true
}

// chain returns the head of the chain of k's slot.
func (r *reassembler) chain(k *fragKey) *int16 {
	return &r.heads[r.seed.mix(r.seed.hash(k.src)^uint64(k.id)<<8^uint64(k.proto))%chains]
}

func (r *reassembler) find(k *fragKey) int16 {
	for i := *r.chain(k); i != none; i = r.slots[i].next {
		if r.slots[i].key == *k {
			return i
		}
	}
	return none
}

// begin returns a slot for a new packet. If none is free, it drops the oldest packet.
func (r *reassembler) begin(k *fragKey, now conntab.Ticks, t *stats.Tally) int16 {
	if r.free == none {
		r.drop(r.oldest, drop.Reassembly, t)
	}
	i, chain := r.free, r.chain(k)
	s := &r.slots[i]
	r.free = s.next
	*s = slot{key: *k, begun: now, df: true, next: *chain, older: r.newest, younger: none}
	*chain = i
	if r.newest == none {
		r.oldest = i
	} else {
		r.slots[r.newest].younger = i
	}
	r.newest = i
	return i
}

// expire drops the packets whose timeout has passed. The slots are in order of their first fragment, not of their
// timeout: that of IPv6 is longer.
func (r *reassembler) expire(now conntab.Ticks, t *stats.Tally) {
	if now == r.swept {
		return
	}
	r.swept = now
	for i := r.oldest; i != none; {
		s := &r.slots[i]
		age, wait, younger := int32(now-s.begun), int32(wait4), s.younger
		if age < wait {
			return
		}
		if !s.key.src.Is4() {
			wait = wait6
		}
		if age >= wait {
			r.drop(i, drop.Reassembly, t)
		}
		i = younger
	}
}

// drop drops the packet in slot i, and counts its fragments.
func (r *reassembler) drop(i int16, d drop.Reason, t *stats.Tally) {
	for range r.slots[i].fragments {
		t.Drop(d)
	}
	r.release(i)
}

// release empties slot i.
func (r *reassembler) release(i int16) {
	s := &r.slots[i]
	r.waiting -= int(s.fragments)
	for at := range s.page {
		if s.page[at] != 0 {
			r.spare = append(r.spare, s.page[at]-1) // never grows: all pages come from it
		}
	}
	p := r.chain(&s.key)
	for *p != i {
		p = &r.slots[*p].next
	}
	*p = s.next
	if s.older == none {
		r.oldest = s.younger
	} else {
		r.slots[s.older].younger = s.younger
	}
	if s.younger == none {
		r.newest = s.older
	} else {
		r.slots[s.younger].older = s.older
	}
	s.next, r.free = r.free, i
}

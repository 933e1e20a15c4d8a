package conntab

// In a SYN flood from random addresses a director cannot distinguish attackers from clients until a client's ACK
// arrives. Therefore half-open connections have a bound of their own, which leaves the rest of the table to established
// ones. A new one beyond the bound replaces the oldest of its shard: a client that answers before the bound is filled
// once more gets through, and an attacker never gets more room. From half of the bound on, half-open connections also
// live shorter. A template that was made for a half-open connection counts as one, until one of its connections is
// established (Linux ip_vs_core.c, IP_VS_CTPL_S_ASSURED). This takes the place of IPVS's drop_entry.

// minHalfOpen is the least bound for each shard: the oldest of fewer is often a young one.
const minHalfOpen = 8

// shortTimeout is how long half-open connections live under pressure.
const shortTimeout = 10 * PerSecond

// underPressure reports whether half-open connections take more than half of what they may.
func (t *Table) underPressure() bool {
	bound := int64(t.rules.Load().HalfOpenMax)
	return bound > 0 && t.half.Load()*2 > bound
}

// unassured reports whether e is half-open, or a template without a connection that was ever established.
func (s *store[A]) unassured(e *entry[A]) bool {
	return e.state.halfOpen() || e.state == TemplateState && !s.table.refs.assured(e.ref)
}

// expiredUnderPressure reports whether e, unassured, has outlived the shortened timeout. times are the timeouts in
// force. After a change of the timeouts, an entry's age is wrong by the difference until its next packet.
func (s *store[A]) expiredUnderPressure(e *entry[A], times *timeouts, now Ticks) bool {
	life := times[e.state]
	if e.state == TemplateState {
		life = e.timeout()
	}
	return life > shortTimeout && (e.expires - (life - shortTimeout)).reached(now) && s.unassured(e)
}

// queue has the upper halves of the hashes of a shard's newest unassured entries, as many as the shard's bound. Entries
// that have since been assured or removed are still in it.
type queue struct {
	hashes []uint32 // a ring
	head   int      // of the oldest
	used   int
}

func (q *queue) full() bool { return q.used == len(q.hashes) }

func (q *queue) push(hash uint64) {
	i := q.head + q.used
	if i >= len(q.hashes) {
		i -= len(q.hashes)
	}
	q.hashes[i] = uint32(hash >> 32)
	q.used++
}

func (q *queue) pop() (upper uint32) {
	upper = q.hashes[q.head]
	if q.head++; q.head == len(q.hashes) {
		q.head = 0
	}
	q.used--
	return upper
}

// enqueue adds the hash of an unassured entry to the queue. If the queue is full, it evicts the oldest entry first.
func (s *store[A]) enqueue(sh *shard[A], hash uint64) {
	q := &sh.unassured
	if len(q.hashes) == 0 {
		return
	}
	if q.full() {
		s.evict(sh)
	}
	q.push(hash)
}

// evict takes the oldest entry out of sh's queue. If the entry is still unassured, evict removes it and returns true.
func (s *store[A]) evict(sh *shard[A]) bool {
	i := s.locate(sh, sh.unassured.pop())
	if i < 0 {
		return false
	}
	s.table.evicted.Add(1)
	s.remove(sh, i)
	return true
}

// evictOne evicts an entry of sh. It returns false when it finds none in 64 places of the queue, some microseconds.
func (s *store[A]) evictOne(sh *shard[A]) bool {
	for range 64 {
		if sh.unassured.used == 0 {
			return false
		}
		if s.evict(sh) {
			return true
		}
	}
	return false
}

// locate returns the slot of an unassured entry whose hash has the upper half upper, -1 when there is none.
func (s *store[A]) locate(sh *shard[A], upper uint32) int {
	i := sh.homeSlot(uint64(upper) << 32) // or the next one, as the lower half isn't known
	for n := range sh.slots {
		e := &sh.slots[i]
		if e.state == stateEmpty && n > 0 {
			return -1
		}
		if e.state != stateEmpty && s.unassured(e) && uint32(s.hash(e)>>32) == upper {
			return i
		}
		if i++; i == len(sh.slots) {
			i = 0
		}
	}
	return -1
}

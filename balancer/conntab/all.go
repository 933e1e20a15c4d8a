package conntab

import "iter"

// All iterates over the connections and templates that have not expired, a part of a shard at a time. Workers go on
// meanwhile: an entry that moves may be seen twice or not at all. Pinned flows are left out.
func (t *Table) All(now Ticks) iter.Seq[Conn] {
	return func(yield func(Conn) bool) {
		for _, f := range t.families() {
			if !f.all(now, yield) {
				return
			}
		}
	}
}

func (s *store[A]) all(now Ticks, yield func(Conn) bool) bool {
	chunk := make([]Conn, 0, sweepChunk)
	for i := range s.shards {
		sh := &s.shards[i]
		for at := 0; at < len(sh.slots); at += sweepChunk {
			chunk = chunk[:0]
			sh.mu.Lock()
			for j := at; j < min(at+sweepChunk, len(sh.slots)); j++ {
				if e := &sh.slots[j]; e.state != stateEmpty && e.state != Pinned && !s.expired(e, now) {
					chunk = append(chunk, e.conn(now))
				}
			}
			sh.mu.Unlock()
			for _, c := range chunk {
				if !yield(c) {
					return false
				}
			}
		}
	}
	return true
}

package conntab

import "iter"

// All walks over the connections that have not expired, a part of a shard at a time, while workers go on: a connection that moves meanwhile may be
// seen twice or not at all.
func (t *Table) All(now Ticks) iter.Seq[Conn] {
	return func(yield func(Conn) bool) {
		chunk := make([]Conn, 0, sweepChunk)
		for i := range t.shards {
			s := &t.shards[i]
			for at := 0; at < len(s.slots); at += sweepChunk {
				chunk = chunk[:0]
				s.mu.Lock()
				for j := at; j < min(at+sweepChunk, len(s.slots)); j++ {
					if e := &s.slots[j]; e.state != stateEmpty && !e.expires.reached(now) {
						chunk = append(chunk, e.conn(now))
					}
				}
				s.mu.Unlock()
				for _, c := range chunk {
					if !yield(c) {
						return
					}
				}
			}
		}
	}
}

package conntab

// sweepChunk is the number of slots looked at under one hold of a shard's lock: some microseconds.
const sweepChunk = 512

// Sweeper removes expired entries, a part of the table at a time, while workers go on. Lookups never return an expired
// entry, even before its removal. Sweeping keeps the counts correct and frees slots.
type Sweeper struct {
	table *Table
	at    [2]cursor // of each family
}

// cursor is the position of a walk over a store.
type cursor struct{ shard, slot int }

// NewSweeper makes a sweeper. One goroutine uses it.
func (t *Table) NewSweeper() *Sweeper { return &Sweeper{table: t} }

// Slots returns the number of slots of one address family.
func (t *Table) Slots() int { return len(t.four.shards) * len(t.four.shards[0].slots) }

// never returns a time after the end of every timeout.
func never(now Ticks) Ticks { return now + 1<<30 }

// Sweep visits the next n slots of each address family. It skips shards in which no entry has expired yet; their slots
// count as visited.
func (s *Sweeper) Sweep(now Ticks, n int) {
	for i, f := range s.table.families() {
		f.sweep(&s.at[i], now, n, false)
	}
}

// sweep visits the next n slots, beginning at the position at. With connections set, it skips templates.
func (s *store[A]) sweep(at *cursor, now Ticks, n int, connections bool) {
	pressure, times := s.table.underPressure(), &s.table.rules.Load().times
	for n > 0 {
		sh := &s.shards[at.shard]
		sh.mu.Lock()
		end := min(at.slot+sweepChunk, len(sh.slots))
		if at.slot == 0 {
			if sh.used == 0 || !sh.next.reached(now) && !pressure {
				end = len(sh.slots)
				at.slot = end
				n -= end
			} else {
				sh.next = never(now) // until noteExpiry sets an earlier time
			}
		}
		n -= end - at.slot
		for at.slot < end {
			e := &sh.slots[at.slot]
			switch {
			case e.state == stateEmpty:
				at.slot++
			case pressure && s.expiredUnderPressure(e, times, now) && !(connections && e.state == TemplateState):
				s.remove(sh, at.slot) // something else may stand here now
			case connections && e.state == TemplateState || !s.expired(e, now):
				sh.noteExpiry(e.due())
				at.slot++
			default:
				s.remove(sh, at.slot)
			}
		}
		sh.mu.Unlock()
		if at.slot == len(sh.slots) {
			at.slot = 0
			at.shard = (at.shard + 1) % len(s.shards)
		}
	}
}

// Sweep removes all expired entries: first connections, then the templates that have no connection left.
func (t *Table) Sweep(now Ticks) {
	for _, connections := range []bool{true, false} {
		for _, f := range t.families() {
			f.sweep(new(cursor), now, t.Slots(), connections)
		}
	}
}

package conntab

// sweepChunk is the number of slots looked at under one hold of a shard's lock: some microseconds.
const sweepChunk = 512

// Sweeper removes what has expired, a part of the table at a time, while workers go on. Lookups find nothing that has expired, swept or not:
// it is for the counts, and for the room.
type Sweeper struct {
	table *Table
	shard int
	slot  int
}

// NewSweeper makes a sweeper. One goroutine uses it.
func (t *Table) NewSweeper() *Sweeper { return &Sweeper{table: t} }

// Slots is the number of slots of the table.
func (t *Table) Slots() int { return numShards * len(t.shards[0].slots) }

// never is so far after now that every timeout ends before.
func never(now Ticks) Ticks { return now + 1<<30 }

// Sweep looks at the next n slots. Shards in which nothing has expired yet are passed by, and count as if they had been looked at.
func (s *Sweeper) Sweep(now Ticks, n int) {
	for n > 0 {
		sh := &s.table.shards[s.shard]
		sh.mu.Lock()
		end := min(s.slot+sweepChunk, len(sh.slots))
		if s.slot == 0 {
			if sh.used == 0 || !sh.next.reached(now) {
				end = len(sh.slots)
				s.slot = end
				n -= end
			} else {
				sh.next = never(now) // until entries say otherwise
			}
		}
		n -= end - s.slot
		for s.slot < end {
			e := &sh.slots[s.slot]
			switch {
			case e.state == stateEmpty:
				s.slot++
			case e.expires.reached(now):
				s.table.remove(sh, s.slot) // something else may stand here now
			default:
				sh.expects(e.expires)
				s.slot++
			}
		}
		sh.mu.Unlock()
		if s.slot == len(sh.slots) {
			s.slot = 0
			s.shard = (s.shard + 1) % numShards
		}
	}
}

// Sweep removes what has expired from all of the table.
func (t *Table) Sweep(now Ticks) { t.NewSweeper().Sweep(now, t.Slots()) }

// Bytes is the memory that a table of max connections takes at the most.
func Bytes(maximum int) int { return slotsPerShard(maximum) * numShards * entrySize }

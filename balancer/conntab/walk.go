package conntab

// Walker visits the connections and templates of a table again and again, a part at a time, while workers go on. An
// entry that moves may be seen twice or not at all in a pass. Pinned flows are left out.
type Walker struct {
	Own    bool // leave out what another director has reported
	table  *Table
	family int
	at     cursor
	chunk  []Conn
}

// NewWalker makes a walker that begins a pass. One goroutine uses it.
func (t *Table) NewWalker() *Walker { return &Walker{table: t, chunk: make([]Conn, 0, sweepChunk)} }

// Next visits the next slots, at most 512 of one shard, and returns their live entries, which are valid until the next
// call, and the number of slots. more is false at the end of a pass; the next call begins another.
func (w *Walker) Next(now Ticks) (entries []Conn, slots int, more bool) {
	families := w.table.families()
	entries, slots = families[w.family].walk(&w.at, now, w.Own, w.chunk[:0])
	w.chunk = entries
	if w.at.shard > 0 || w.at.slot > 0 {
		return entries, slots, true
	}
	if w.family++; w.family == len(families) {
		w.family = 0
	}
	return entries, slots, w.family > 0
}

// walk appends the live entries of the next slots to into, and moves at, which is zero after the last shard.
func (s *store[A]) walk(at *cursor, now Ticks, own bool, into []Conn) (_ []Conn, slots int) {
	sh := &s.shards[at.shard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	end := min(at.slot+sweepChunk, len(sh.slots))
	if sh.used == 0 {
		end = len(sh.slots)
	}
	slots = end - at.slot
	for i := at.slot; i < end && sh.used > 0; i++ {
		e := &sh.slots[i]
		if e.state == stateEmpty || e.state == Pinned || own && e.flags&reported != 0 {
			continue
		}
		if !s.expired(e, now) {
			c := e.conn(now)
			c.Held = c.Template && s.table.refs.has(e.ref)
			into = append(into, c)
		}
	}
	if at.slot = end; end == len(sh.slots) {
		*at = cursor{shard: (at.shard + 1) % len(s.shards)}
	}
	return into, slots
}

package conntab

// Under a SYN flood from random addresses a director can't tell an attacker from a client until the client's ACK comes. So half-open connections
// have a bound of their own, which leaves the rest of the table to established ones, and at that bound a new one takes the place of one
// that is among the oldest: a client that answers in time is in the table that long, and an attacker's never get more room.
// From half of the bound on they also live shorter. It is what IPVS's drop_entry and secure_tcp are for.

// hardened is how long half-open connections live under pressure.
const hardened = 10 * PerSecond

// pressed tells whether half-open connections take more than half of what they may.
func (t *Table) pressed() bool {
	return t.cfg.HalfOpenMax > 0 && t.half.Load()*2 > int64(t.cfg.HalfOpenMax)
}

// crowded tells whether there are as many half-open connections as there may be.
func (t *Table) crowded() bool {
	return t.cfg.HalfOpenMax > 0 && t.half.Load() >= int64(t.cfg.HalfOpenMax)
}

// tired tells whether e, half-open, has lived as long as it may under pressure. Its timeout stays what it is, by which the oldest are known.
func (s *store[A]) tired(e *entry[A], now Ticks) bool {
	d := s.table.times[e.state]
	return e.state.halfOpen() && d > hardened && (e.expires - (d - hardened)).reached(now)
}

// A search for something to evict looks at so many slots side by side that it should meet evictAmong half-open connections at their bound, and
// takes the oldest: of so many, a young one hardly ever is. If it meets none it goes on, evictTries times in all.
const (
	evictAmong = 24
	evictTries = 4
	evictMost  = 4096 // slots: some ten microseconds
)

// evictReach is the number of slots that one search looks at.
func (c *Config) evictReach() int {
	if c.HalfOpenMax == 0 {
		return 2 * evictAmong
	}
	return min(max(evictAmong*perFlow*c.Max/c.HalfOpenMax, 2*evictAmong), evictMost)
}

// evict removes a connection of sh that is missed least, and returns false when it finds none.
func (s *store[A]) evict(sh *shard[A], now Ticks) bool {
	for range evictTries {
		if i := sh.weakest(now, s.table.reach); i >= 0 {
			s.table.evicted.Add(1)
			s.remove(sh, i)
			return true
		}
	}
	return false
}

// weakest returns, from among the next slots of s, reach of them, one that has expired, or the half-open one that would be the first to; -1 when there is none.
func (s *shard[A]) weakest(now Ticks, reach int) int {
	found, n := -1, len(s.slots)
	for range min(reach, n) {
		if s.hand++; int(s.hand) >= n {
			s.hand = 0
		}
		e := &s.slots[s.hand]
		if e.state == stateEmpty || e.state == TemplateState || !e.state.halfOpen() && !e.expires.reached(now) {
			continue
		}
		if found < 0 || int32(e.expires-s.slots[found].expires) < 0 {
			found = int(s.hand)
		}
	}
	return found
}

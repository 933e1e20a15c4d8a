package conntab

import "vstun/encap/packet"

// The fast path forwards packets of a connection without calls of Packet. The table says which connections have many
// packets (Busy), and when a connection leaves the fast path (Left). In between, Refresh says what the fast path has
// forwarded.

// busyEvery is the number of packets from the client between two Busy changes of a connection, a power of two.
const busyEvery = 16

// LeastFast is the shortest timeout of a connection in the fast path, in Ticks: Refresh comes late.
const LeastFast = 10 * PerSecond

// canBeFast reports whether the fast path may have the connection e: its next packets, unless they begin or end a
// connection, change nothing but its end.
func (e *entry[A]) canBeFast(by *rules) bool {
	return (e.state == Established || e.state == UDP) && by.times[e.state] >= LeastFast
}

// SetFast notes that the fast path gets the connection f, or with is false that it has lost it. A connection in the
// fast path has no Busy changes. It leaves the fast path, with a change Left, at the first change of its state and at
// its end. ok is false if there is no such connection, or none that the fast path may have.
func (t *Table) SetFast(f packet.Flow, is bool, now Ticks) (c Conn, ok bool) {
	return t.of(f.Src, false).setFast(f, is, t.rules.Load(), now)
}

func (s *store[A]) setFast(f packet.Flow, is bool, by *rules, now Ticks) (c Conn, ok bool) {
	k := s.key(f)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || sh.slots[i].expires.reached(now) {
		return Conn{}, false
	}
	e := &sh.slots[i]
	if !is {
		e.flags &^= fast
		return e.conn(now), true
	}
	if !e.canBeFast(by) {
		return Conn{}, false
	}
	e.flags |= fast
	return e.conn(now), true
}

// leave takes e out of the fast path. The caller must hold the shard's lock.
func (s *shard[A]) leave(e *entry[A]) {
	if e.flags&fast != 0 {
		e.flags &^= fast
		s.note(Left, e)
	}
}

// Refresh counts n packets of f from the client that the fast path has forwarded. The last packet, in either direction,
// was forwarded at the time last. The connection's timeout begins again at last. Its state stays. A connection that had
// ended before last stays ended. Refresh reports whether the connection is in the fast path, and may stay there.
func (t *Table) Refresh(f packet.Flow, n uint32, last Ticks) bool {
	return t.of(f.Src, false).refresh(f, n, last, t.rules.Load())
}

func (s *store[A]) refresh(f packet.Flow, n uint32, last Ticks, by *rules) bool {
	k := s.key(f)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || sh.slots[i].expires.reached(last) || sh.slots[i].flags&ended != 0 {
		return false
	}
	e := &sh.slots[i]
	e.value += n
	if e.state == Pinned {
		return false
	}
	newer := int32(last+by.times[e.state]-e.expires) > 0
	if newer {
		e.expires = last + by.times[e.state]
		sh.noteExpiry(e.expires)
	}
	if newer || n > 0 { // otherwise its packets pass the other director that has reported it
		e.flags &^= reported
	}
	return e.flags&fast != 0 && e.canBeFast(by)
}

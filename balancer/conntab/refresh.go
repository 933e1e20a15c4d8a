package conntab

import "vstun/encap/packet"

// Refresh counts n packets of f from the client that were forwarded without a call of Packet. The last was forwarded at
// the time last. The connection's timeout begins again at last. Its state stays. A connection that had ended before
// last stays ended.
func (t *Table) Refresh(f packet.Flow, n uint32, last Ticks) {
	t.of(f.Src, false).refresh(f, n, last, t.rules.Load())
}

func (s *store[A]) refresh(f packet.Flow, n uint32, last Ticks, by *rules) {
	k := s.key(f)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || sh.slots[i].expires.reached(last) || sh.slots[i].flags&ended != 0 {
		return
	}
	e := &sh.slots[i]
	e.value += n
	e.flags &^= reported
	if e.state == Pinned {
		return
	}
	if end := last + by.times[e.state]; e.expires.reached(end) {
		e.expires = end
		sh.noteExpiry(end)
	}
}

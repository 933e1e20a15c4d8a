package conntab

import "vstun/encap/packet"

// A pinned flow gets its destination before its first packet. Health checks use it to reach one realserver. Pinned
// flows share the slots of connections, in a state of their own, and are not counted as connections. They do not count
// towards Config.Max, no flood evicts them, and no packet changes their state or end.

// MaxPinned is how long a flow stays pinned without Unpin: no check takes longer.
const MaxPinned = 25 * 3600 * PerSecond

// sweepGranularity plus 1, a power of two, is the multiple of Ticks to which the removal of pinned flows is delayed.
const sweepGranularity = 511

// due returns the time from which a sweep removes e. Thousands of pinned flows may end every second: if each of them
// caused a sweep of its shard, a sweep could never skip one.
func (e *entry[A]) due() Ticks {
	if e.state == Pinned {
		return (e.expires | sweepGranularity) + 1
	}
	return e.expires
}

// Pin directs the packets of f to dest until Unpin. The result is Inserted, Full, or Hit when f is a connection or
// pinned, or was until moments ago: try another port. With over, f replaces a connection of the same flow, which has
// ended or was forged by another host.
func (t *Table) Pin(f packet.Flow, dest uint32, over bool, now Ticks) Result {
	return t.of(f.Src, true).pin(f, dest, over, now)
}

func (s *store[A]) pin(f packet.Flow, dest uint32, over bool, now Ticks) Result {
	k := s.key(f)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found {
		if e := &sh.slots[i]; !e.expires.reached(now) && (e.state == Pinned || !over) {
			return Hit
		}
		s.remove(sh, i)
	}
	if s.add(sh, &k, entry[A]{state: Pinned, dest: dest, expires: now + MaxPinned}) == nil {
		return Full
	}
	return Inserted
}

// Unpin ends the pinned flow f after rest: until then its last packets still go to its destination, and no other flow
// takes its place.
func (t *Table) Unpin(f packet.Flow, now, rest Ticks) { t.of(f.Src, false).unpin(f, now+rest) }

func (s *store[A]) unpin(f packet.Flow, end Ticks) {
	k := s.key(f)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found && sh.slots[i].state == Pinned {
		sh.slots[i].expires = end
		sh.noteExpiry(sh.slots[i].due())
	}
}

// Movable reports whether a connection in this state can begin again at another destination: its handshake is not
// complete, or its protocol is UDP.
func (s State) Movable() bool { return s.halfOpen() || s == UDP || s == SCTPInit1 || s == SCTPInit }

// Leave removes the connection of p to dest if it is Movable and p can begin it: a datagram, or a repeated SYN. Packet
// has just returned dest with Hit or Gone. Leave returns false if the connection stays.
func (v View) Leave(p *packet.Info, dest uint32) bool {
	return v.rules.opens(p) && v.of(p.Flow.Src, false).leave(p, dest)
}

func (s *store[A]) leave(p *packet.Info, dest uint32) bool {
	k := s.key(p.Flow)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || sh.slots[i].dest != dest {
		return true // another worker was faster: Insert finds its connection
	}
	if !sh.slots[i].state.Movable() {
		return false
	}
	s.remove(sh, i)
	return true
}

package conntab

import "vstun/encap/packet"

// A pinned flow has a destination before its first packet, whatever the packets are: the director's own probes have
// theirs so. It stands in the same slots as connections, in a state of its own, and is none of them: it takes nothing
// of Config.Max, no flood drives it out, and no packet moves its state or its end.

// MaxPinned is how long a flow stays pinned that nobody unpins: no check takes longer.
const MaxPinned = 25 * 3600 * PerSecond

// gather is the Ticks, one less than a power of two, for which pinned flows that have ended wait for each other.
const gather = 511

// due is when a sweep has to remove e. Thousands of flows may be pinned and end every second: if each had its shard
// swept, none would ever be passed by.
func (e *entry[A]) due() Ticks {
	if e.state == Pinned {
		return (e.expires | gather) + 1
	}
	return e.expires
}

// Pin leads the packets of f to dest until Unpin. The answer is Inserted; Hit when the table has f already, as a
// connection or as a flow that was pinned until some moments ago: take another port then; or Full when there is no slot
// for it. With over, f takes the place of a connection: of one that has ended, if the port is free now, or that
// somebody has forged.
func (t *Table) Pin(f packet.Flow, dest uint32, over bool, now Ticks) Result {
	p := packet.Info{Flow: f}
	if f.Src.Is4() {
		k := t.key4(&p)
		return t.four.pin(&k, dest, over, now)
	}
	k := t.key6(&p)
	return t.ipv6(true).pin(&k, dest, over, now)
}

func (s *store[A]) pin(k *key[A], dest uint32, over bool, now Ticks) Result {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(k); found {
		if e := &sh.slots[i]; !e.expires.reached(now) && (e.state == Pinned || !over) {
			return Hit
		}
		s.remove(sh, i)
	}
	if s.put(sh, k, entry[A]{state: Pinned, dest: dest, expires: now + MaxPinned}) == nil {
		return Full
	}
	return Inserted
}

// Unpin ends the pinned flow f after rest: until then its last packets still go to its destination, and nobody else can
// have it.
func (t *Table) Unpin(f packet.Flow, now, rest Ticks) {
	p := packet.Info{Flow: f}
	if f.Src.Is4() {
		k := t.key4(&p)
		t.four.unpin(&k, now+rest)
	} else if s := t.ipv6(false); s != nil {
		k := t.key6(&p)
		s.unpin(&k, now+rest)
	}
}

func (s *store[A]) unpin(k *key[A], end Ticks) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(k); found && sh.slots[i].state == Pinned {
		sh.slots[i].expires = end
		sh.expects(sh.slots[i].due())
	}
}

// Movable reports whether a connection in this state can as well begin anew at another destination: nobody has answered
// it, or it is none but in name.
func (s State) Movable() bool { return s.halfOpen() || s == UDP || s == SCTPInit1 || s == SCTPInit }

// Leave removes the connection of p to dest, which Packet has just said with Hit or Gone, if it is Movable, and p can
// begin it: a datagram, or a SYN that is sent again since nobody has answered it. Otherwise it returns false.
func (v View) Leave(p *packet.Info, dest uint32) bool {
	if !v.rules.opens(p) {
		return false
	}
	if p.Flow.Src.Is4() {
		k := v.key4(p)
		return v.four.leave(&k, dest)
	}
	if s := v.ipv6(false); s != nil {
		k := v.key6(p)
		return s.leave(&k, dest)
	}
	return false
}

func (s *store[A]) leave(k *key[A], dest uint32) bool {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(k)
	if !found || sh.slots[i].dest != dest {
		return true // another worker was faster: Insert finds what it has made
	}
	if !sh.slots[i].state.Movable() {
		return false
	}
	s.remove(sh, i)
	return true
}

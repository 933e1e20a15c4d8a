package conntab

import "vstun/encap/packet"

// Fate is the effect of a packet on its flow's connection.
type Fate uint8

const (
	NoConnection Fate = iota // the flow has none
	Followed                 // the packet goes to the connection's destination
	Reused                   // it has ended, and the packet begins another (Config.Reuse)
	// its destination is gone, or quiescent and the packet begins another (Config.ExpireNodest)
	Forgotten
	Removed // its destination is gone, and the packet is dropped (Config.DropRemoved)
)

// fate returns the effect of p on e. A packet from the server ends no connection.
func (s *store[A]) fate(e *entry[A], p *packet.Info, dir Direction, by *rules, now Ticks) Fate {
	switch {
	case e.expires.reached(now):
		return NoConnection
	case dir == FromServer:
		return Followed
	case begins(p) && e.reused(by.Reuse):
		return Reused
	case begins(p) && by.ExpireNodest && s.table.Counts(e.dest).quiescent.Load():
		return Forgotten
	case by.checksDests && s.table.Counts(e.dest).Gone():
		if by.ExpireNodest {
			return Forgotten
		}
		return Removed
	}
	return Followed
}

// Peek returns what Packet would return for p, a packet from the client, the connection of p's flow, and its fate with
// p. It changes nothing.
func (v View) Peek(p *packet.Info, now Ticks) (c Conn, f Fate, r Result) {
	return v.of(p.Flow.Src, false).peek(p, v.rules, now)
}

func (s *store[A]) peek(p *packet.Info, by *rules, now Ticks) (c Conn, f Fate, r Result) {
	k := s.key(p.Flow)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found {
		e := &sh.slots[i]
		c, f = e.conn(now), s.fate(e, p, FromClient, by, now)
	}
	switch f {
	case Followed:
		return c, f, Hit
	case Removed:
		return c, f, Gone
	}
	return c, f, by.unknown(p, FromClient)
}

// Leaves reports whether Leave would remove the connection c, which Peek has returned for p.
func (v View) Leaves(p *packet.Info, c Conn) bool { return v.rules.opens(p) && c.State.Movable() }

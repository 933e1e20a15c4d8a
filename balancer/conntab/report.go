package conntab

import (
	"time"

	"vstun/encap/packet"
)

// Report says how far a connection that another director has reported overrules this table.
type Report uint8

const (
	// Unordered is from a director whose datagrams may be lost and reordered. A connection replaces one to another
	// destination only if it is active (Linux ip_vs_sync.c, ip_vs_proc_conn). A template replaces one to another
	// destination only if that is reported, too: its director has moved it.
	Unordered Report = iota
	// Ordered is newer than all that its director has reported before, and replaces that. It replaces or changes no
	// connection of which a packet has come here later than at its director.
	Ordered
	// Hearsay is from a director that has it from another one. It replaces and changes nothing.
	Hearsay
)

// ownFor is the time after a packet in which no report changes a connection: the client's packets pass here.
const ownFor = PerSecond

// Report adds a connection or template that another director has reported, with its state, destination and remaining
// time. It reduces c.Expires to the timeout of the state. c.Age is the time since the last packet there. One whose
// packets pass here stays as it is, unless the other director has seen its end. Another to the same destination takes
// c's state and time. One to another destination stays or is replaced, as by says. The result is Inserted, Hit if a
// known one stays, or Full. It is Refused if the state, destination or timeout is invalid. Until its first packet here
// the connection is Reported.
func (t *Table) Report(c Conn, by Report, now Ticks) Result {
	c.Reported = true
	if c.Dest >= maxDests {
		return Refused
	}
	if c.Template {
		if c.Timeout < time.Second/PerSecond {
			return Refused
		}
		return t.of(c.Flow.Src, true).reportTemplate(&c, by, now)
	}
	if !c.State.connection(c.Flow.Proto) {
		return Refused
	}
	return t.of(c.Flow.Src, true).report(&c, by, t.rules.Load(), now)
}

// connection reports whether a connection of the protocol can be in this state.
func (s State) connection(proto uint8) bool {
	switch proto {
	case packet.ProtoTCP:
		return s >= None && s <= SynAck
	case packet.ProtoSCTP:
		return s >= SCTPNone && s <= SCTPClosed
	case packet.ProtoUDP:
		return s == UDP
	}
	return false
}

func (s *store[A]) report(c *Conn, how Report, by *rules, now Ticks) Result {
	k := s.key(c.Flow)
	left := Ticks(max(0, min(c.Expires, MaxTimeout)) * PerSecond / time.Second)
	expires := now + max(1, min(left, by.times[c.State]))
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found {
		e := &sh.slots[i]
		switch live := !e.expires.reached(now); {
		case live && (e.state == Pinned || how == Hearsay || e.later(c, by.times[e.state], now)):
			return Hit
		case live && e.passes(by.times[e.state], now) && !e.closes(c):
			return Hit
		case live && e.dest != c.Dest && how == Unordered && !c.State.Active():
			return Hit
		case live && e.dest == c.Dest:
			s.take(sh, e, c, expires)
			return Hit
		}
		s.remove(sh, i)
	}
	e := entry[A]{state: c.State, dest: c.Dest, value: c.Packets, expires: expires, flags: reported}
	if s.table.Counts(c.Dest).replies.Load() {
		e.flags |= twoWay
	}
	if s.add(sh, &k, e) == nil {
		return Full
	}
	return Inserted
}

// closes reports whether c says that the other director has seen the end of e.
func (e *entry[A]) closes(c *Conn) bool {
	return e.dest == c.Dest && e.state.Active() && !c.State.Active()
}

// passes reports whether a packet of e, whose timeout is timeout, has come here within ownFor.
func (e *entry[A]) passes(timeout, now Ticks) bool {
	return e.flags&reported == 0 && !e.expires.reached(now+timeout-ownFor)
}

// later reports whether a packet of e, whose timeout is timeout, has come here later than one of c there. A kept table
// may be old: its clients have used their ports again since, at another director.
func (e *entry[A]) later(c *Conn, timeout, now Ticks) bool {
	return e.flags&reported == 0 && int32(now+timeout-e.expires) < int32(ticks(c.Age))
}

// take gives the live connection e the state and the end of c, a report of the same connection.
func (s *store[A]) take(sh *shard[A], e *entry[A], c *Conn, expires Ticks) {
	own := e.flags&reported == 0
	if !own || e.state != c.State || e.expires.reached(expires) {
		e.expires = expires
		sh.noteExpiry(expires)
	}
	e.value = max(e.value, c.Packets)
	e.flags |= reported
	if e.state != c.State {
		s.transition(sh, e, c.State)
	}
}

func (s *store[A]) reportTemplate(c *Conn, how Report, now Ticks) Result {
	k, timeout := s.templateKey(c.Flow.Src, c.Service), ticks(c.Timeout)
	expires := now + min(max(1, ticks(max(0, c.Expires))), timeout+templateGrace)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found {
		e := &sh.slots[i]
		switch live := !s.expired(e, now); {
		case live && (how == Hearsay || e.later(c, e.timeout(), now)):
			return Hit
		case live && e.dest == c.Dest:
			s.table.assure(e.ref)
			if e.expires.reached(expires) {
				e.expires = expires
				sh.noteExpiry(expires)
			}
			return Hit
		case live && (how == Unordered && e.flags&reported == 0 || e.passes(e.timeout(), now)):
			return Hit
		}
		s.remove(sh, i)
	}
	number := s.table.refs.take()
	// The client has connections at the other director: the template does not count as half-open.
	s.table.refs.assure(number)
	e := entry[A]{state: TemplateState, dest: c.Dest, ref: number, value: uint32(timeout), expires: expires,
		flags: reported}
	if s.add(sh, &k, e) == nil {
		s.table.refs.detach(number)
		return Full
	}
	return Inserted
}

// Timeout returns the timeout of connections in state st.
func (t *Table) Timeout(st State) time.Duration {
	if st >= numStates {
		return 0
	}
	return duration(t.rules.Load().times[st])
}

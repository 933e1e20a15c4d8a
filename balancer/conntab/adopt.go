package conntab

import (
	"time"

	"vstun/encap/packet"
)

// Put adds a connection or template that another director has reported, with its state, destination and remaining time.
// It reduces c.Expires to the timeout of c's state. A known connection to the same destination takes c's state, packets
// and time (Linux ip_vs_sync.c, ip_vs_proc_conn). One to another destination is replaced if c is active, else it stays.
// A known template stays, and its timeout begins again. The result is Inserted, Hit if a known one stays, or Full. It
// is Refused if the state, destination or timeout is invalid.
func (t *Table) Put(c Conn, now Ticks) Result {
	if c.Template {
		return t.putReportedTemplate(&c, now)
	}
	if !c.State.connection(c.Flow.Proto) || c.Dest >= maxDests {
		return Refused
	}
	return t.of(c.Flow.Src, true).put(&c, t.rules.Load(), now)
}

// putReportedTemplate is Put for a template.
func (t *Table) putReportedTemplate(c *Conn, now Ticks) Result {
	if c.Dest >= maxDests || c.Timeout < time.Second/PerSecond {
		return Refused
	}
	n := newTemplate{dest: c.Dest, timeout: ticks(c.Timeout)}
	n.left = min(max(1, ticks(max(0, c.Expires))), n.timeout)
	_, number, r := t.of(c.Flow.Src, true).putTemplate(c.Flow.Src, c.Service, &n, now)
	if r == Full {
		return Full
	}
	// The client has connections at the other director: the template does not count as half-open.
	t.assure(number)
	t.Release(number)
	return r
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

func (s *store[A]) put(c *Conn, by *rules, now Ticks) Result {
	t, k := s.table, s.key(c.Flow)
	left := Ticks(max(0, min(c.Expires, MaxTimeout)) * PerSecond / time.Second)
	expires := now + max(1, min(left, by.times[c.State]))
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found {
		e := &sh.slots[i]
		live := !e.expires.reached(now)
		switch {
		case live && (e.state == Pinned || e.dest != c.Dest && !c.State.Active()):
			return Hit
		case live && e.dest == c.Dest:
			e.expires, e.value = expires, c.Packets
			sh.noteExpiry(expires)
			if e.state != c.State {
				s.transition(sh, e, c.State)
			}
			return Hit
		}
		s.remove(sh, i)
	}
	e := entry[A]{state: c.State, dest: c.Dest, value: c.Packets, expires: expires}
	if t.Counts(c.Dest).replies.Load() {
		e.flags = twoWay
	}
	if s.add(sh, &k, e) == nil {
		return Full
	}
	return Inserted
}

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

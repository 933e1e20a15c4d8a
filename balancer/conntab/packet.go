package conntab

import "vstun/encap/packet"

// Result is the outcome of a lookup or an addition.
type Result uint8

const (
	Hit      Result = iota // of a known connection
	Miss                   // of no known connection, but it may open one: choose a destination, then Insert
	Refused                // of no known connection, and it cannot open one
	Gone                   // of a connection whose destination is gone, with Config.DropRemoved
	Inserted               // opened a connection
	Full                   // no room for another connection
)

// Direction is the direction of a packet.
type Direction uint8

const (
	FromClient Direction = iota // to the VIP
	FromServer                  // a realserver's reply, of a connection whose replies pass the director
)

// Packet looks up the connection of a packet, updates the connection's state and restarts its timeout. It counts
// packets from the client. The flow of p is that of the connection, from client to VIP, in both directions. dest is
// meaningful with Hit and Gone.
//
// If the packet opens a new connection in place of an old one (Config.Reuse, ExpireNodest), Packet expires the old one.
// As in IPVS, the old one counts until Insert replaces it or a sweep removes it. A packet from the server opens no
// connection.
func (v View) Packet(p *packet.Info, dir Direction, now Ticks) (dest uint32, r Result) {
	if p.Flow.Src.Is4() {
		k := v.key4(&p.Flow, p.Hash)
		return v.four.packet(&k, p, dir, v.rules, now)
	}
	if s := v.ipv6(false); s != nil {
		k := v.key6(&p.Flow, p.Hash)
		return s.packet(&k, p, dir, v.rules, now)
	}
	return 0, v.rules.unknown(p, dir)
}

// Reply is Packet for a packet from the server with the destination number dest. It reports whether the connection
// exists and goes to dest. Otherwise it changes nothing.
func (v View) Reply(p *packet.Info, dest uint32, now Ticks) bool {
	if p.Flow.Src.Is4() {
		k := v.key4(&p.Flow, p.Hash)
		return v.four.reply(&k, p, dest, v.rules, now)
	}
	if s := v.ipv6(false); s != nil {
		k := v.key6(&p.Flow, p.Hash)
		return s.reply(&k, p, dest, v.rules, now)
	}
	return false
}

func (s *store[A]) reply(k *key[A], p *packet.Info, dest uint32, by *rules, now Ticks) bool {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	i, found := sh.find(k)
	if found {
		if e := &sh.slots[i]; e.dest != dest || e.state == Pinned || e.expires.reached(now) {
			found = false
		} else {
			s.seen(sh, e, p, FromServer, by, now)
		}
	}
	sh.mu.Unlock()
	return found
}

// unknown returns the result for a packet of no connection.
func (r *rules) unknown(p *packet.Info, dir Direction) Result {
	if dir == FromClient && r.opens(p) {
		return Miss
	}
	return Refused
}

func (s *store[A]) packet(k *key[A], p *packet.Info, dir Direction, by *rules, now Ticks) (dest uint32, r Result) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	if i, found := sh.find(k); found {
		e := &sh.slots[i]
		f := Followed
		if by.checksDests || begins(p) || e.expires.reached(now) { // otherwise fate would return Followed
			f = s.fate(e, p, dir, by, now)
		}
		switch f {
		case Followed:
			dest = s.seen(sh, e, p, dir, by, now)
			sh.mu.Unlock()
			return dest, Hit
		case Removed:
			dest = e.dest
			sh.mu.Unlock()
			return dest, Gone
		case Reused, Forgotten:
			s.expire(sh, e, now)
		}
		if !by.opens(p) {
			s.remove(sh, i)
		}
	}
	sh.mu.Unlock()
	return 0, by.unknown(p, dir)
}

// expire makes e end now. It is removed by Insert, which puts another in its place, or by a sweep.
func (s *store[A]) expire(sh *shard[A], e *entry[A], now Ticks) {
	e.expires = now
	e.flags |= ended
	sh.leave(e)
	sh.noteExpiry(now)
}

// begins reports whether p is the first packet of a connection, as its client sees it (Linux ip_vs_core.c,
// is_new_conn).
func begins(p *packet.Info) bool {
	switch p.Flow.Proto {
	case packet.ProtoTCP:
		return p.TCPFlags&packet.FlagSYN != 0
	case packet.ProtoSCTP:
		return p.SCTPChunk == packet.ChunkInit
	}
	return false
}

// reused reports whether a packet that begins a connection ends e, since the client uses the port again (Linux
// ip_vs_core.c, is_new_conn_expected). A persistent client's connections go on where they are.
func (e *entry[A]) reused(mode Reuse) bool {
	if mode == ReuseNever || e.ref != 0 {
		return false
	}
	return e.state == TimeWait || e.state == Close || e.state == SCTPClosed || mode == ReuseClosing &&
		e.state == FinWait
}

// seen counts p in e, updates e's state and end, and returns its destination. Afterwards e may be in another slot.
func (s *store[A]) seen(sh *shard[A], e *entry[A], p *packet.Info, dir Direction, by *rules, now Ticks) (dest uint32) {
	if e.state == Pinned {
		e.value++
		return e.dest
	}
	if e.flags&reported != 0 {
		e.flags &^= reported
	}
	if dir == FromServer && e.flags&twoWay == 0 {
		e.flags |= twoWay
	}
	if dir == FromClient {
		e.value++
	}
	next := by.after(e.state, p, dir, e.flags&twoWay != 0)
	e.expires = now + by.times[next]
	sh.noteExpiry(e.expires)
	if next != e.state {
		e = s.transition(sh, e, next)
	} else if dir == FromClient {
		switch {
		case e.value == repeatedAt && next == UDP:
			sh.note(Repeated, e)
		case e.value%busyEvery == 0 && e.flags&fast == 0 && e.canBeFast(by):
			sh.note(Busy, e)
		}
	}
	return e.dest
}

// transition changes the state of the connection e and returns e, which may then be in another slot. All other fields
// of e must be up to date.
func (s *store[A]) transition(sh *shard[A], e *entry[A], next State) *entry[A] {
	sh.leave(e)
	t, kind := s.table, Moved
	switch was := e.state.halfOpen(); {
	case was == next.halfOpen():
	case was:
		t.half.Add(-1)
		t.assure(e.ref)
		if next == Established {
			kind = Assured
		}
	default: // a new SYN on an old connection
		k := key[A]{src: e.src, dst: e.dst, sport: e.sport, dport: e.dport, proto: e.proto, hash: s.hash(e)}
		s.enqueue(sh, k.hash) // which may remove another
		i, _ := sh.find(&k)
		e, kind = &sh.slots[i], Opened
		t.half.Add(1)
	}
	if e.state.Active() != next.Active() {
		t.adjustCounts(e.dest, e.state, -1)
		t.adjustCounts(e.dest, next, 1)
	}
	e.setState(next)
	sh.note(kind, e)
	return e
}

// opens reports whether p may open a connection (Linux ip_vs_proto_tcp.c, tcp_conn_schedule, and ip_vs_proto_sctp.c,
// sctp_conn_schedule).
func (r *rules) opens(p *packet.Info) bool {
	switch p.Flow.Proto {
	case packet.ProtoTCP:
		return p.TCPFlags&packet.FlagRST == 0 && (r.SloppyTCP || p.TCPFlags&packet.FlagSYN != 0)
	case packet.ProtoSCTP:
		return p.SCTPChunk == packet.ChunkInit
	}
	return true
}

// after returns the state of a connection in state st after p. twoWay reports whether the connection's replies pass the
// director.
func (r *rules) after(st State, p *packet.Info, dir Direction, twoWay bool) State {
	switch p.Flow.Proto {
	case packet.ProtoTCP:
		return r.tcp.of(dir, twoWay).next(st, p.TCPFlags)
	case packet.ProtoSCTP:
		return st.nextSCTP(sctpStates.of(dir, twoWay), p.SCTPChunk)
	}
	return UDP
}

// Insert makes a connection of the flow of p, for which Packet returned Miss, to dest. template is the number of the
// template that led there, 0 for none; the connection takes over the hold that Template or PutTemplate gave. If another
// goroutine has made the connection meanwhile, that one stays, p is counted there, and its destination is returned with
// Hit. Otherwise the result is Inserted, or Full when the table holds as many connections as it may.
//
// For a TCP packet that may not open a connection Packet has returned Refused, and the caller inserts it all the same.
// Its connection is half-open where it would be established, until the next packet: a flood of such packets evicts only
// its own connections, and others that are half-open.
func (v View) Insert(p *packet.Info, dest, template uint32, now Ticks) (uint32, Result) {
	var r Result
	if p.Flow.Src.Is4() {
		k := v.key4(&p.Flow, p.Hash)
		dest, r = v.four.insert(&k, p, dest, template, v.rules, now)
	} else {
		k := v.key6(&p.Flow, p.Hash)
		dest, r = v.ipv6(true).insert(&k, p, dest, template, v.rules, now)
	}
	if r != Inserted && template != 0 {
		v.refs.release(template)
	}
	return dest, r
}

func (s *store[A]) insert(k *key[A], p *packet.Info, dest, template uint32, by *rules, now Ticks) (uint32, Result) {
	t := s.table
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(k); found {
		e := &sh.slots[i]
		if !e.expires.reached(now) {
			return s.seen(sh, e, p, FromClient, by, now), Hit
		}
		s.remove(sh, i)
	}
	e := entry[A]{dest: dest, ref: template, value: 1}
	if t.Counts(dest).replies.Load() {
		e.flags = twoWay
	}
	e.state = by.after(begun(p.Flow.Proto), p, FromClient, e.flags&twoWay != 0)
	if e.state == Established && !by.opens(p) {
		e.state = SynRecv
	}
	e.expires = now + by.times[e.state]
	if s.add(sh, k, e) == nil {
		return 0, Full
	}
	if !e.state.halfOpen() {
		t.assure(template)
	}
	return dest, Inserted
}

// begun returns the state of a connection before its first packet.
func begun(proto uint8) State {
	switch proto {
	case packet.ProtoTCP:
		return None
	case packet.ProtoSCTP:
		return SCTPNone
	}
	return UDP
}

// Lookup returns the connection of f and does not change it.
func (t *Table) Lookup(f packet.Flow, now Ticks) (Conn, bool) {
	return t.of(f.Src, false).lookup(f, now)
}

func (s *store[A]) lookup(f packet.Flow, now Ticks) (Conn, bool) {
	k := s.key(f)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || sh.slots[i].expires.reached(now) {
		return Conn{}, false
	}
	return sh.slots[i].conn(now), true
}

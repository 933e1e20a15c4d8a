package conntab

import "vstun/encap/packet"

// Result is what the table says about a packet.
type Result uint8

const (
	Hit      Result = iota // of a known connection
	Miss                   // may open a connection: choose a destination, then Insert
	Refused                // of no known connection, and it can't open one
	Gone                   // of a connection whose destination is gone, with Config.DropRemoved
	Inserted               // opened a connection
	Full                   // no room for another connection
)

// Packet looks up the connection of a packet from the client, counts the packet, moves the connection's state and lets
// its timeout begin again. dest is meaningful with Hit and Gone.
//
// Where the packet opens a new connection in place of an old one (Config.Reuse, ExpireNodest), the old one has expired
// by now, but counts until Insert replaces it or it is swept, as in IPVS.
func (v View) Packet(p *packet.Info, now Ticks) (dest uint32, r Result) {
	if p.Flow.Src.Is4() {
		k := v.key4(p)
		return v.four.packet(&k, p, v.rules, now)
	}
	if s := v.ipv6(false); s != nil {
		k := v.key6(p)
		return s.packet(&k, p, v.rules, now)
	}
	return 0, v.rules.unknown(p)
}

// unknown is the result for a packet of no connection.
func (r *rules) unknown(p *packet.Info) Result {
	if r.opens(p) {
		return Miss
	}
	return Refused
}

func (s *store[A]) packet(k *key[A], p *packet.Info, by *rules, now Ticks) (dest uint32, r Result) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	if i, found := sh.find(k); found {
		e := &sh.slots[i]
		f := Followed
		if by.judge || begins(p) || e.expires.reached(now) { // else it is, without a call
			f = s.fate(e, p, by, now)
		}
		switch f {
		case Followed:
			dest = s.seen(sh, e, p, by, now)
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
	return 0, by.unknown(p)
}

// expire makes e end now. It is removed by Insert, which puts another in its place, or by a sweep.
func (s *store[A]) expire(sh *shard[A], e *entry[A], now Ticks) {
	e.expires = now
	sh.expects(now)
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
	if mode == ReuseNever || e.parent != 0 {
		return false
	}
	return e.state == TimeWait || e.state == Close || e.state == SCTPClosed || mode == ReuseClosing &&
		e.state == FinWait
}

// seen counts p in e, moves e's state and end, and returns its destination. e may have moved then.
func (s *store[A]) seen(sh *shard[A], e *entry[A], p *packet.Info, by *rules, now Ticks) (dest uint32) {
	t := s.table
	if e.state == Pinned {
		e.packets++
		return e.dest
	}
	if next := by.after(e.state, p); next != e.state {
		switch was := e.state.halfOpen(); {
		case was == next.halfOpen():
		case was:
			t.half.Add(-1)
			t.assure(e.parent)
		default: // the client begins anew
			k := key[A]{src: e.src, dst: e.dst, sport: e.sport, dport: e.dport, proto: e.proto, hash: s.hash(e)}
			s.enqueue(sh, k.hash) // which may remove another
			i, _ := sh.find(&k)
			e = &sh.slots[i]
			t.half.Add(1)
		}
		t.move(e.dest, e.state, next)
		e.state = next
	}
	e.expires = now + by.times[e.state]
	sh.expects(e.expires)
	e.packets++
	return e.dest
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

// after is the state of a connection in state st after p.
func (r *rules) after(st State, p *packet.Info) State {
	switch p.Flow.Proto {
	case packet.ProtoTCP:
		return r.tcpNext.next(st, p.TCPFlags)
	case packet.ProtoSCTP:
		return st.nextSCTP(p.SCTPChunk)
	}
	return UDP
}

// move changes the counts of dest by the step of one of its connections from one state to another.
func (t *Table) move(dest uint32, from, to State) {
	if from.Active() != to.Active() {
		t.tally(dest, from, -1)
		t.tally(dest, to, 1)
	}
}

// Insert makes a connection of the flow of p, for which Packet said Miss, to dest. template is the number of the
// template that led there, 0 for none; the connection takes over the hold that Template or PutTemplate gave. If another
// goroutine has made the connection meanwhile, that one stays, p is counted there, and its destination is returned with
// Hit. Otherwise the answer is Inserted, or Full when the table holds as many connections as it may.
func (v View) Insert(p *packet.Info, dest, template uint32, now Ticks) (uint32, Result) {
	var r Result
	if p.Flow.Src.Is4() {
		k := v.key4(p)
		dest, r = v.four.insert(&k, p, dest, template, v.rules, now)
	} else {
		k := v.key6(p)
		dest, r = v.ipv6(true).insert(&k, p, dest, template, v.rules, now)
	}
	if r != Inserted && template != 0 {
		v.children.release(template)
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
			return s.seen(sh, e, p, by, now), Hit
		}
		s.remove(sh, i)
	}
	state := by.after(begun(p.Flow.Proto), p)
	e := entry[A]{state: state, dest: dest, parent: template, expires: now + by.times[state], packets: 1}
	if s.put(sh, k, e) == nil {
		return 0, Full
	}
	if !state.halfOpen() {
		t.assure(template)
	}
	return dest, Inserted
}

// begun is the state of a connection before its first packet.
func begun(proto uint8) State {
	switch proto {
	case packet.ProtoTCP:
		return None
	case packet.ProtoSCTP:
		return SCTPNone
	}
	return UDP
}

// Lookup returns the connection of f without touching it.
func (t *Table) Lookup(f packet.Flow, now Ticks) (Conn, bool) {
	p := packet.Info{Flow: f}
	if f.Src.Is4() {
		k := t.key4(&p)
		return t.four.lookup(&k, now)
	}
	if s := t.ipv6(false); s != nil {
		k := t.key6(&p)
		return s.lookup(&k, now)
	}
	return Conn{}, false
}

func (s *store[A]) lookup(k *key[A], now Ticks) (Conn, bool) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(k)
	if !found || sh.slots[i].expires.reached(now) {
		return Conn{}, false
	}
	return sh.slots[i].conn(now), true
}

package conntab

import (
	"time"

	"vstun/encap/packet"
)

// Result is what the table says about a packet.
type Result uint8

const (
	Hit      Result = iota // of a known connection
	Miss                   // may open a connection: choose a destination, then Insert
	Refused                // TCP of no known connection, and it can't open one
	Inserted               // opened a connection
	Full                   // no room for another connection
)

// Packet looks up the connection of a packet from the client, counts the packet, moves the connection's state and lets its timeout begin
// again. dest is meaningful with Hit.
//
// A SYN for a connection in TIME_WAIT or CLOSE is a new connection (conn_reuse_mode 1): the client uses the port again. The old one stays
// until Insert replaces it.
func (t *Table) Packet(p *packet.Info, now Ticks) (dest uint32, r Result) {
	k := t.key(p)
	s := t.shard(k.hash)
	s.mu.Lock()
	if i, found := s.find(&k); found {
		e := &s.slots[i]
		if !e.over(p, now) {
			t.touch(s, e, p, now)
			dest = e.dest
			s.mu.Unlock()
			return dest, Hit
		}
		if !t.opens(p) || e.expires.reached(now) {
			t.remove(s, i)
		}
	}
	s.mu.Unlock()
	if !t.opens(p) {
		return 0, Refused
	}
	return 0, Miss
}

// over tells whether e has ended for p: its time has passed, or p is a SYN with which the client uses the port again (Linux
// ip_vs_core.c, is_new_conn_expected).
func (e *entry) over(p *packet.Info, now Ticks) bool {
	return e.expires.reached(now) ||
		e.proto == packet.ProtoTCP && p.TCPFlags&packet.FlagSYN != 0 && (e.state == TimeWait || e.state == Close)
}

// touch counts p in e, and moves e's state and end.
func (t *Table) touch(s *shard, e *entry, p *packet.Info, now Ticks) {
	if next := e.after(p); next != e.state {
		t.move(e, next)
	}
	e.expires = now + t.times[e.state]
	s.expects(e.expires)
	e.packets++
}

// opens tells whether p may open a connection (Linux ip_vs_proto_tcp.c, tcp_conn_schedule).
func (t *Table) opens(p *packet.Info) bool {
	if p.Flow.Proto != packet.ProtoTCP {
		return true
	}
	return p.TCPFlags&packet.FlagRST == 0 && (t.sloppy || p.TCPFlags&packet.FlagSYN != 0)
}

// after is e's state after p.
func (e *entry) after(p *packet.Info) State {
	if e.proto != packet.ProtoTCP {
		return UDP
	}
	return e.state.next(p.TCPFlags)
}

// move changes e's state, and its destination's counts with it.
func (t *Table) move(e *entry, next State) {
	if e.state.Active() != next.Active() {
		t.tally(e.dest, e.state, -1)
		t.tally(e.dest, next, 1)
	}
	e.state = next
}

// Insert makes a connection of the flow of p, for which Packet said Miss, to dest. If another goroutine has made one meanwhile, that one
// stays, p is counted there, and its destination is returned with Hit. Otherwise the answer is Inserted, or Full when the table holds as
// many connections as it may.
func (t *Table) Insert(p *packet.Info, dest uint32, now Ticks) (uint32, Result) {
	k := t.key(p)
	s := t.shard(k.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := s.find(&k)
	if found {
		e := &s.slots[i]
		if !e.over(p, now) {
			t.touch(s, e, p, now)
			return e.dest, Hit
		}
		t.remove(s, i)
		i, _ = s.find(&k)
	}
	// One slot stays empty, for every search to end at.
	if i < 0 || s.used+1 >= len(s.slots) {
		return 0, Full
	}
	if t.count.Add(1) > t.max {
		t.count.Add(-1)
		return 0, Full
	}
	e := &s.slots[i]
	*e = entry{src: k.src, dst: k.dst, sport: k.sport, dport: k.dport, proto: k.proto, state: None, dest: dest}
	s.used++
	t.tally(dest, None, 1)
	t.touch(s, e, p, now)
	return dest, Inserted
}

// Conn is one connection, as people are shown it.
type Conn struct {
	Flow  packet.Flow
	State State
	Dest  uint32
	// Template says that this is no connection but a client's persistence: all new connections from Flow.Src, masked, to the service go to Dest.
	Template bool
	Expires  time.Duration // from now; never below 0
	Packets  uint32        // from the client; wraps
}

// Lookup returns the connection of f without touching it.
func (t *Table) Lookup(f packet.Flow, now Ticks) (Conn, bool) {
	k := t.key(&packet.Info{Flow: f})
	s := t.shard(k.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := s.find(&k)
	if !found || s.slots[i].expires.reached(now) {
		return Conn{}, false
	}
	return s.slots[i].conn(now), true
}

func (e *entry) conn(now Ticks) Conn {
	return Conn{Flow: e.flow(), State: e.state, Dest: e.dest, Packets: e.packets,
		Expires: max(0, time.Duration(int32(e.expires-now))*time.Second/PerSecond)}
}

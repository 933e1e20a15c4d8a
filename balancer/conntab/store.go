package conntab

import (
	"math/bits"
	"sync"
	"time"
	"unsafe"

	"vstun/encap/packet"
)

// address is the bytes of an IPv4 or IPv6 address.
type address interface{ [4]byte | [16]byte }

// store has the connections of one address family.
type store[A address] struct {
	table  *Table
	key    func(packet.Flow) key[A]
	hash   func(*entry[A]) uint64
	shards []shard[A]
}

const (
	maxShards = 256
	minShard  = 64 // least connections of Config.Max a shard; in smaller shards the table's bounds would be too uneven
	// slots for each connection of Config.Max: most searches end in the cache line in which they begin
	perFlow = 2
	slack   = 64 // additional slots in each shard, since flows don't spread quite evenly
)

// A shard is a part of the store under one lock. The slots are a ring. An entry is in its home slot or behind it, with
// no empty slot in between.
type shard[A address] struct {
	mu        sync.Mutex
	slots     []entry[A]
	used      int
	next      Ticks // no entry expires before: until then a sweep passes by
	_         [20]byte
	unassured queue // with this the second of two cache lines: no two locks are in one, and the slots beside their lock
	feeds     []*ring[A]
}

// entry is one connection or template, or an empty slot (state stateEmpty). An IPv4 entry has 32 bytes: two fill a
// cache line.
type entry[A address] struct {
	src, dst     A
	sport, dport uint16
	proto        uint8
	state        State
	flags        uint16
	dest         uint32
	expires      Ticks
	value        uint32 // of a connection: packets from the client; of a template: see timeout
	ref          uint32 // number of the template that led to the connection, 0 for none; of a template: its own
}

// Flags of connections.
const (
	twoWay   = 1 << iota // replies pass the director
	ended                // expire has ended it before its timeout
	reported             // another director has reported it, and no packet of it has come since
	fast                 // see SetFast
)

// timeout returns the timeout of a template.
func (e *entry[A]) timeout() Ticks { return Ticks(e.value) }

// service returns the service's number of a template.
func (e *entry[A]) service() uint32 {
	n := len(e.dst)
	return uint32(e.dst[n-4])<<24 | uint32(e.dst[n-3])<<16 | uint32(e.dst[n-2])<<8 | uint32(e.dst[n-1])
}

// setService sets the service's number of a template, whose other bytes of dst are 0.
func (e *entry[A]) setService(number uint32) {
	n := len(e.dst)
	for i, b := range binary4(number) {
		e.dst[n-4+i] = b
	}
}

// key is a flow in the table's form, with its hash.
type key[A address] struct {
	src, dst     A
	sport, dport uint16
	proto        uint8
	hash         uint64
}

func (s *store[A]) init(t *Table, keyOf func(packet.Flow) key[A], hash func(*entry[A]) uint64) {
	s.table, s.key, s.hash, s.shards = t, keyOf, hash, make([]shard[A], shards(t.Max()))
	per := slotsPerShard(t.Max())
	all := memoryFor[A](t, per*len(s.shards))
	for i := range s.shards {
		s.shards[i].slots = all[i*per : (i+1)*per : (i+1)*per]
	}
	s.bound(t.rules.Load().HalfOpenMax)
}

// shards returns the number of shards, a power of two.
func shards(maximum int) int {
	n := maxShards
	for n > 1 && maximum/n < minShard {
		n /= 2
	}
	return n
}

// slotsPerShard returns an even number, so that every shard's slots begin at a cache line.
func slotsPerShard(maximum int) int {
	n := shards(maximum)
	return ((maximum*perFlow+n-1)/n + slack + 1) &^ 1
}

// Bytes returns the most memory that the slots of a table for maximum connections take, all of IPv4.
func Bytes(maximum int) int {
	return slotsPerShard(maximum) * shards(maximum) * int(unsafe.Sizeof(entry[[4]byte]{}))
}

func (s *store[A]) shard(hash uint64) *shard[A] { return &s.shards[hash&uint64(len(s.shards)-1)] }

func (s *store[A]) prefetch(hash uint64) uint8 {
	sh := s.shard(hash)
	i := sh.homeSlot(hash)
	// This needs no lock: the value is not used, and the slots' memory never moves. A search may go on into the next
	// cache line.
	return loadByte(unsafe.Pointer(&sh.slots[i])) | loadByte(unsafe.Pointer(&sh.slots[min(i+2, len(sh.slots)-1)]))
}

// homeSlot returns the slot at which the search for hash begins.
func (s *shard[A]) homeSlot(hash uint64) int {
	hi, _ := bits.Mul64(hash, uint64(len(s.slots)))
	return int(hi)
}

// find returns the slot of k, else the empty slot for k, -1 when there is neither.
func (s *shard[A]) find(k *key[A]) (slot int, found bool) {
	i := s.homeSlot(k.hash)
	for range s.slots {
		e := &s.slots[i]
		if e.state == stateEmpty {
			return i, false
		}
		if e.src == k.src && e.sport == k.sport && e.dst == k.dst && e.dport == k.dport && e.proto == k.proto {
			return i, true
		}
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	return -1, false
}

// noteExpiry notes that an entry expires at t.
func (s *shard[A]) noteExpiry(t Ticks) {
	if int32(t-s.next) < 0 {
		s.next = t
	}
}

// add puts e with the key k into a slot and returns it. It returns nil when there is no room and no unassured entry can
// be evicted.
func (s *store[A]) add(sh *shard[A], k *key[A], e entry[A]) *entry[A] {
	unassured := s.unassured(&e)
	if unassured {
		s.enqueue(sh, k.hash)
	}
	return s.place(sh, k, e, unassured)
}

// place is add without the queue of unassured entries.
func (s *store[A]) place(sh *shard[A], k *key[A], e entry[A], unassured bool) *entry[A] {
	t := s.table
	for {
		i, _ := sh.find(k)
		// One slot stays empty, so that every search ends.
		full := i < 0 || sh.used+1 >= len(sh.slots)
		if !full {
			if e.state == Pinned || t.count.Add(1) <= t.max {
				e.src, e.dst, e.sport, e.dport, e.proto = k.src, k.dst, k.sport, k.dport, k.proto
				sh.slots[i].set(&e)
				sh.used++
				t.adjustCounts(e.dest, e.state, 1)
				if unassured {
					t.half.Add(1)
				}
				sh.noteExpiry(e.expires)
				sh.note(Opened, &sh.slots[i])
				return &sh.slots[i]
			}
			t.count.Add(-1)
		}
		if !s.evictOne(sh) {
			return nil
		}
	}
}

// remove empties slot i, and moves entries behind it nearer to their home slots.
func (s *store[A]) remove(sh *shard[A], i int) {
	gone := sh.slots[i]
	sh.slots[i].clear() // before its template's number may be used again
	s.discount(sh, &gone)
	n := len(sh.slots)
	for j := i; ; {
		if j++; j == n {
			j = 0
		}
		e := &sh.slots[j]
		if e.state == stateEmpty {
			break
		}
		home := sh.homeSlot(s.hash(e))
		// e may move to i unless its home lies behind i, on the way from i to j.
		if (j-home+n)%n >= (j-i+n)%n {
			sh.slots[i].set(e)
			sh.noteExpiry(e.due()) // a sweep that has passed i has not seen it
			i = j
		}
	}
	sh.slots[i].clear()
}

// discount takes e, which is in no slot any more, out of all counts.
func (s *store[A]) discount(sh *shard[A], e *entry[A]) {
	t := s.table
	sh.leave(e)
	sh.note(Ended, e)
	t.adjustCounts(e.dest, e.state, -1)
	if e.state != Pinned {
		t.count.Add(-1)
	}
	switch {
	case e.state == TemplateState:
		if !t.refs.detach(e.ref) {
			t.half.Add(-1)
		}
	case e.ref != 0:
		t.refs.release(e.ref)
	}
	if e.state.halfOpen() {
		t.half.Add(-1)
	}
	sh.used--
}

// flow returns e's key in its public form.
func (e *entry[A]) flow() packet.Flow {
	return packet.Flow{Src: addr(e.src), Dst: addr(e.dst), SrcPort: e.sport, DstPort: e.dport, Proto: e.proto}
}

// Conn is a connection or a template in its public form.
type Conn struct {
	Flow  packet.Flow // from client to VIP
	State State
	Dest  uint32
	// Template marks a client's persistence: all new connections from Flow.Src, masked, to the service go to Dest. Its
	// Flow has nothing else.
	Template bool
	Service  uint32        // of a template
	Timeout  time.Duration // of a template: from a new connection on
	Held     bool          // of a template, from a Walker or LookupTemplate: it goes on while connections of it exist
	Expires  time.Duration // from now; never below 0
	Packets  uint32        // of a connection, from the client; wraps
	Reported bool          // by another director; no packet of it has come since
	Age      time.Duration // of what Table.Report takes: since its last packet at the other director
}

func (e *entry[A]) conn(now Ticks) Conn {
	c := Conn{Flow: e.flow(), State: e.state, Dest: e.dest, Expires: max(0, duration(e.expires-now)),
		Reported: e.flags&reported != 0}
	if e.state == TemplateState {
		c.Template, c.Service, c.Timeout = true, e.service(), duration(e.timeout())
		c.Flow = packet.Flow{Src: c.Flow.Src}
	} else {
		c.Packets = e.value
	}
	return c
}

// duration converts a difference of Ticks.
func duration(t Ticks) time.Duration { return time.Duration(int32(t)) * time.Second / PerSecond }

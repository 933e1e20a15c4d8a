// Package conntab is the director's connection table: which realserver each flow has, in which state it is and when it ends. It knows
// IPVS's states and timeouts, and nothing of services or schedulers.
//
// The table is a fixed number of fixed-size entries without pointers, so that it costs the garbage collector nothing, spread over
// shards with a short lock each. Within a shard it is a hash table with linear probing: a lookup touches one or two cache lines,
// and a removal moves later entries up, so that there are no tombstones. The memory is asked for at once and becomes resident as it is
// used; it never grows.
//
// Time is a parameter everywhere, so that tests and replays hold the clock.
package conntab

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"vstun/encap/packet"
)

// Ticks is time in the table: hundredths of a second since some start. It wraps after 497 days; two of them are compared by their
// difference, so that no timeout may reach half of that.
type Ticks uint32

// PerSecond is the number of Ticks in a second.
const PerSecond = 100

// reached tells whether now is at or after t.
func (t Ticks) reached(now Ticks) bool { return int32(now-t) >= 0 }

// Config is what a table is made with.
type Config struct {
	Max       int  // bound of the number of connections
	SloppyTCP bool // a packet other than SYN may open a TCP connection
	Timeouts  Timeouts
}

// Table is a connection table. All its methods may be called by any number of goroutines.
type Table struct {
	max    int64
	sloppy bool
	seed   [2]uint64
	count  atomic.Int64
	times  timeouts
	shards []shard
	dests  [maxDests / destBlock]atomic.Pointer[[destBlock]Counts]
	mu     sync.Mutex // making of a block of dests
}

const (
	numShards = 256
	perFlow   = 2  // slots for each connection of Config.Max: a search ends soon, mostly in the cache line in which it begins
	slack     = 64 // slots more in each shard, since flows don't spread quite evenly

	maxDests  = 1 << 20
	destBlock = 1 << 10
)

// MaxDests is one more than the largest destination number.
const MaxDests = maxDests

// MaxConnections is the largest Config.Max.
const MaxConnections = 1 << 27

// A shard is a part of the table under one lock. The slots are a ring: an entry stands at its home slot or behind it, with no empty
// slot in between.
type shard struct {
	mu    sync.Mutex
	slots []entry
	used  int
	next  Ticks    // no entry expires before: until then a sweep passes by
	_     [20]byte // 64 bytes: no two locks in a cache line, and the slots beside their lock
}

// entrySize is an entry's size in bytes: two make a cache line.
const entrySize = 32

// entry is one connection, or an empty slot (state stateEmpty).
type entry struct {
	src, dst     [4]byte
	sport, dport uint16
	proto        uint8
	state        State
	_            uint16
	dest         uint32
	expires      Ticks
	packets      uint32
	_            uint32
}

// Counts is how many connections a destination has.
type Counts struct{ active, inactive atomic.Int32 }

// Active is the number of connections that IPVS calls active: TCP from SYN to FIN.
func (c *Counts) Active() int { return int(c.active.Load()) }

// Inactive is the number of all others, UDP among them.
func (c *Counts) Inactive() int { return int(c.inactive.Load()) }

// New makes an empty table.
func New(cfg Config) *Table {
	t := &Table{
		max: int64(cfg.Max), sloppy: cfg.SloppyTCP, times: cfg.Timeouts.ticks(),
		seed:   [2]uint64{rand.Uint64(), rand.Uint64()},
		shards: make([]shard, numShards),
	}
	per := slotsPerShard(cfg.Max)
	all := make([]entry, per*numShards)
	hugePages(all)
	for i := range t.shards {
		t.shards[i].slots = all[i*per : (i+1)*per : (i+1)*per]
	}
	return t
}

// slotsPerShard is even, so that every shard begins with a cache line.
func slotsPerShard(maximum int) int {
	return ((maximum*perFlow+numShards-1)/numShards + slack + 1) &^ 1
}

// Len is the number of connections, those that have expired but are not swept yet included.
func (t *Table) Len() int { return int(t.count.Load()) }

// Max is the bound of Len.
func (t *Table) Max() int { return int(t.max) }

// Counts is the number of connections of destination dest, which is below MaxDests. The pointer stays valid.
func (t *Table) Counts(dest uint32) *Counts {
	block := &t.dests[dest/destBlock]
	p := block.Load()
	if p == nil {
		t.mu.Lock()
		if p = block.Load(); p == nil {
			p = new([destBlock]Counts)
			block.Store(p)
		}
		t.mu.Unlock()
	}
	return &p[dest%destBlock]
}

// key is a flow as the table keeps it, with its hash.
type key struct {
	src, dst     [4]byte
	sport, dport uint16
	proto        uint8
	hash         uint64
}

func (t *Table) key(p *packet.Info) key {
	f := &p.Flow
	k := key{src: f.Src.As4(), dst: f.Dst.As4(), sport: f.SrcPort, dport: f.DstPort, proto: f.Proto, hash: p.Hash}
	if k.hash == 0 {
		k.hash = t.hash(k.src, k.dst, k.sport, k.dport, k.proto)
	}
	return k
}

// Touch loads the place of p's flow in the table into the cache, and notes p's hash. In a table that is larger than the cache a lookup waits for
// memory, longer than it works, and behind its lock the processor can't begin with the next one; the loads of several Touches in a row
// overlap. So a worker touches for a whole batch before the first lookup. What is returned only keeps the load alive.
func (t *Table) Touch(p *packet.Info) uint8 {
	f := &p.Flow
	p.Hash = t.hash(f.Src.As4(), f.Dst.As4(), f.SrcPort, f.DstPort, f.Proto)
	s := t.shard(p.Hash)
	i := s.home(p.Hash)
	// Without the lock, as nothing is made of it; slots never move. The search may go on into the next cache line.
	return loadByte(&s.slots[i]) | loadByte(&s.slots[min(i+2, len(s.slots)-1)])
}

// hash is keyed, so that nobody outside can fill one place of the table: two rounds of multiply and fold.
func (t *Table) hash(src, dst [4]byte, sport, dport uint16, proto uint8) uint64 {
	a := uint64(src[0])<<24 | uint64(src[1])<<16 | uint64(src[2])<<8 | uint64(src[3])
	a = a<<32 | uint64(dst[0])<<24 | uint64(dst[1])<<16 | uint64(dst[2])<<8 | uint64(dst[3])
	b := uint64(sport)<<32 | uint64(dport)<<16 | uint64(proto)
	hi, lo := bits.Mul64(a^t.seed[0], b^t.seed[1])
	hi, lo = bits.Mul64(hi^lo, t.seed[0]|1)
	return hi ^ lo
}

func (t *Table) shard(hash uint64) *shard { return &t.shards[hash%numShards] }

// home is the slot at which the search for hash begins.
func (s *shard) home(hash uint64) int {
	hi, _ := bits.Mul64(hash, uint64(len(s.slots)))
	return int(hi)
}

// find returns the slot of k, or the empty slot at which it would be put, -1 when there is neither.
func (s *shard) find(k *key) (slot int, found bool) {
	i := s.home(k.hash)
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

// expects notes that an entry expires at t.
func (s *shard) expects(t Ticks) {
	if int32(t-s.next) < 0 {
		s.next = t
	}
}

// remove empties slot i and moves up what stands behind it for want of a place nearer to its home.
func (t *Table) remove(s *shard, i int) {
	e := &s.slots[i]
	t.tally(e.dest, e.state, -1)
	t.count.Add(-1)
	s.used--
	n := len(s.slots)
	for j := i; ; {
		if j++; j == n {
			j = 0
		}
		e := &s.slots[j]
		if e.state == stateEmpty {
			break
		}
		home := s.home(t.hash(e.src, e.dst, e.sport, e.dport, e.proto))
		// e may move to i unless its home lies behind i, on the way from i to j.
		if (j-home+n)%n >= (j-i+n)%n {
			s.slots[i] = *e
			s.expects(e.expires) // a sweep that has passed i has not seen it
			i = j
		}
	}
	s.slots[i] = entry{}
}

// tally adds n to the count of dest that a connection in state st belongs to.
func (t *Table) tally(dest uint32, st State, n int32) {
	c := t.Counts(dest)
	if st.Active() {
		c.active.Add(n)
	} else {
		c.inactive.Add(n)
	}
}

// flow is e's key in its public form.
func (e *entry) flow() packet.Flow {
	return packet.Flow{Src: netip.AddrFrom4(e.src), Dst: netip.AddrFrom4(e.dst), SrcPort: e.sport, DstPort: e.dport, Proto: e.proto}
}

// Package conntab is the director's connection table. It maps each flow to a destination, and keeps the flow's state
// and timeout as IPVS does. It knows neither services nor schedulers.
//
// The table is a fixed number of fixed-size entries without pointers, so that it costs the garbage collector nothing,
// spread over shards with a short lock each. Within a shard it is a hash table with linear probing: a lookup touches
// one or two cache lines, and a removal moves later entries up, so that there are no tombstones. The memory is
// allocated at once and becomes resident with its use; it never grows. IPv4 and IPv6 have a store each. The first IPv6
// connection makes the IPv6 store.
//
// Time is a parameter of each method, so that tests and replays control the clock.
package conntab

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"vstun/encap/packet"
)

// Ticks is a time in hundredths of a second. It wraps after 497 days. Two Ticks are compared by their difference, so a
// timeout is less than half of that.
type Ticks uint32

// PerSecond is the number of Ticks in a second.
const PerSecond = 100

// reached reports whether now is at or after t.
func (t Ticks) reached(now Ticks) bool { return int32(now-t) >= 0 }

// Config is the settings of a table. Configure changes them. The names in brackets are IPVS's sysctls.
type Config struct {
	Max int // most connections and persistence templates; Configure does not change it
	// most half-open connections among them, at least 8 a shard (2,048 in tables from 16,384 on); 0: no bound
	HalfOpenMax int
	SloppyTCP   bool  // a packet other than SYN may open a TCP connection (sloppy_tcp)
	SecureTCP   bool  // use the state table for SYN floods (secure_tcp 3)
	Reuse       Reuse // of a client's port (conn_reuse_mode)
	// end a connection with its next packet if its destination is gone, and with its next SYN if its destination is
	// quiescent (expire_nodest_conn)
	ExpireNodest bool
	// drop packets of a connection whose destination is gone, as IPVS does; otherwise the connection goes on
	DropRemoved bool
	Timeouts    Timeouts
}

// Reuse selects the states of a connection in which a SYN opens a new one: the client uses the port again.
type Reuse uint8

const (
	ReuseClosed  Reuse = iota // in TIME_WAIT and CLOSE, IPVS's conn_reuse_mode 1
	ReuseNever                // 0
	ReuseClosing              // in FIN_WAIT too, 2
)

// Table is a connection table. All its methods may be called by any number of goroutines.
type Table struct {
	count   atomic.Int64
	half    atomic.Int64 // unassured entries
	evicted atomic.Uint64
	_       [40]byte // keeps the fields above, which are written, out of the cache lines of those below
	rules   atomic.Pointer[rules]
	max     int64
	seed    [2]uint64
	four    store[[4]byte]
	six     atomic.Pointer[store[[16]byte]]
	dests   [maxDests / destBlock]atomic.Pointer[[destBlock]Counts]
	refs    templateRefs
	mu      sync.Mutex // making of a block of dests; taken under a shard's lock
	setup   sync.Mutex // making of six, change of rules and of feeds; not taken under a shard's lock
	feeds   []*Feed
	memory  Memory // of the slots; nil: private memory
}

const (
	maxDests  = 1 << 20
	destBlock = 1 << 10
)

// MaxDests is one more than the largest destination number.
const MaxDests = maxDests

// MaxConnections is the largest Config.Max.
const MaxConnections = 1 << 27

// Counts has the numbers of a destination's connections, and its state.
type Counts struct {
	active, inactive, templates atomic.Int32
	gone, quiescent, replies    atomic.Bool
}

// Active is the number of connections that IPVS calls active: TCP from SYN to FIN, SCTP once established.
func (c *Counts) Active() int { return int(c.active.Load()) }

// Inactive is the number of all others, UDP and pinned flows among them.
func (c *Counts) Inactive() int { return int(c.inactive.Load()) }

// Templates is the number of clients whose persistence leads to the destination.
func (c *Counts) Templates() int { return int(c.templates.Load()) }

// SetState sets whether the destination is gone, that is removed or down, and whether its weight is 0.
func (c *Counts) SetState(gone, quiescent bool) {
	c.gone.Store(gone)
	c.quiescent.Store(quiescent)
}

// Gone reports whether the destination has been removed from the configuration, or is down.
func (c *Counts) Gone() bool { return c.gone.Load() }

// SetReplies sets whether the destination's replies pass this director: new connections then follow the state table of
// both directions from their first packet on (Linux, IP_VS_CONN_F_NOOUTPUT not set). It is for forwarding by NAT.
func (c *Counts) SetReplies(pass bool) { c.replies.Store(pass) }

// New makes an empty table.
func New(cfg Config) *Table { return NewIn(nil, cfg) }

// NewIn makes an empty table whose entries outlive the process, in memory. Adopt takes them over in another process.
// Entries for which there is no room in memory are in private memory.
func NewIn(memory Memory, cfg Config) *Table {
	t := &Table{max: int64(cfg.Max), seed: [2]uint64{rand.Uint64(), rand.Uint64()}, memory: memory}
	t.rules.Store(newRules(cfg, cfg.Max))
	t.refs.init(cfg.Max)
	t.refs.kept = asSlice[uint32](t.section(assuredSection, bitsLayout, len(t.refs.blocks)*childBlock/8))
	t.four.init(t, func(f packet.Flow) key[[4]byte] { return t.key4(&f, 0) },
		func(e *entry[[4]byte]) uint64 { return t.hash4(e.src, e.dst, e.sport, e.dport, e.proto) })
	return t
}

// PrepareIPv6 makes the store of IPv6 if it will be in Memory: no packet shall wait for the allocation.
func (t *Table) PrepareIPv6() {
	if t.memory != nil {
		t.ipv6(true)
	}
}

// ipv6 returns the store of IPv6. Without create it is nil until the first IPv6 connection.
func (t *Table) ipv6(create bool) *store[[16]byte] {
	if s := t.six.Load(); s != nil || !create {
		return s
	}
	t.setup.Lock()
	defer t.setup.Unlock()
	if s := t.six.Load(); s != nil {
		return s
	}
	s := &store[[16]byte]{}
	s.init(t, func(f packet.Flow) key[[16]byte] { return t.key6(&f, 0) },
		func(e *entry[[16]byte]) uint64 { return t.hash6(&e.src, &e.dst, e.sport, e.dport, e.proto) })
	for _, f := range t.feeds {
		s.attach(f)
	}
	t.six.Store(s)
	return s
}

// Len returns the number of connections and templates. Expired ones count until they are removed; pinned flows never
// count.
func (t *Table) Len() int { return int(t.count.Load()) }

// Max is the bound of Len.
func (t *Table) Max() int { return int(t.max) }

// HalfOpenMax is the bound of HalfOpen, 0 for none.
func (t *Table) HalfOpenMax() int { return t.rules.Load().HalfOpenMax }

// HalfOpen returns the number of half-open TCP connections and of unassured templates.
func (t *Table) HalfOpen() int { return int(t.half.Load()) }

// Evicted returns the number of half-open connections and unassured templates that were removed for new entries.
func (t *Table) Evicted() uint64 { return t.evicted.Load() }

// Counts returns the counts of the destination dest, which must be below MaxDests. The pointer stays valid.
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

// Hash returns a keyed hash of f. It is the same for all flows that are equal.
func (t *Table) Hash(f packet.Flow) uint64 {
	if f.Src.Is4() {
		return t.hash4(f.Src.As4(), f.Dst.As4(), f.SrcPort, f.DstPort, f.Proto)
	}
	src, dst := f.Src.As16(), f.Dst.As16()
	return t.hash6(&src, &dst, f.SrcPort, f.DstPort, f.Proto)
}

// Prefetch loads the place of p's flow in the table into the cache, and notes p's hash. In a table that is larger than
// the cache a lookup waits for memory longer than it works, and behind its lock the processor cannot begin with the
// next one; the loads of several Prefetches in a row overlap. So a worker prefetches for a whole batch before the first
// lookup. The result only keeps the load alive.
func (t *Table) Prefetch(p *packet.Info) uint8 {
	if p.Hash = t.Hash(p.Flow); p.Flow.Src.Is4() {
		return t.four.prefetch(p.Hash)
	}
	if s := t.ipv6(false); s != nil {
		return s.prefetch(p.Hash)
	}
	return 0
}

// key4 and key6 return a flow in the table's form, with its hash. A hash of 0 is computed.
func (t *Table) key4(f *packet.Flow, hash uint64) key[[4]byte] {
	k := key[[4]byte]{src: f.Src.As4(), dst: f.Dst.As4(), sport: f.SrcPort, dport: f.DstPort, proto: f.Proto,
		hash: hash}
	if k.hash == 0 {
		k.hash = t.hash4(k.src, k.dst, k.sport, k.dport, k.proto)
	}
	return k
}

func (t *Table) key6(f *packet.Flow, hash uint64) key[[16]byte] {
	k := key[[16]byte]{src: f.Src.As16(), dst: f.Dst.As16(), sport: f.SrcPort, dport: f.DstPort, proto: f.Proto,
		hash: hash}
	if k.hash == 0 {
		k.hash = t.hash6(&k.src, &k.dst, k.sport, k.dport, k.proto)
	}
	return k
}

// hash4 returns a keyed hash: two rounds of multiply and fold. The key keeps a sender from filling one place of the
// table.
func (t *Table) hash4(src, dst [4]byte, sport, dport uint16, proto uint8) uint64 {
	a := uint64(src[0])<<24 | uint64(src[1])<<16 | uint64(src[2])<<8 | uint64(src[3])
	a = a<<32 | uint64(dst[0])<<24 | uint64(dst[1])<<16 | uint64(dst[2])<<8 | uint64(dst[3])
	return t.mix(t.seed[0], a, uint64(sport)<<32|uint64(dport)<<16|uint64(proto))
}

// hash6 is hash4 for IPv6: three rounds.
func (t *Table) hash6(src, dst *[16]byte, sport, dport uint16, proto uint8) uint64 {
	h := t.mix(t.seed[0], word(src, 0), word(src, 8))
	h = t.mix(h^t.seed[1], word(dst, 0), word(dst, 8))
	return t.mix(h^t.seed[0], uint64(sport)<<32|uint64(dport)<<16|uint64(proto), h)
}

func (t *Table) mix(seed, a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^seed, b^t.seed[1])
	hi, lo = bits.Mul64(hi^lo, t.seed[0]|1)
	return hi ^ lo
}

func word(a *[16]byte, at int) (w uint64) {
	for _, b := range a[at : at+8] {
		w = w<<8 | uint64(b)
	}
	return w
}

// adjustCounts adds n to the count of dest for entries in state st.
func (t *Table) adjustCounts(dest uint32, st State, n int32) {
	c := t.Counts(dest)
	switch {
	case st == TemplateState:
		c.templates.Add(n)
	case st.Active():
		c.active.Add(n)
	default:
		c.inactive.Add(n)
	}
}

// Package fastpath decides which connections the kernel forwards by itself (encap/bpf), and takes back what it has
// counted. It is a cache of the balancer's decisions: packets of a connection that it does not have take the TUN device
// as ever.
//
//	worker → connection table ─Busy→ promote → BPF map → packets of the connection stay in the kernel
//	             ↑        └────Left→ drop ─────↗   │
//	             └──────── Refresh ←─ account ─────┘
//
// The connection table stays the only authority. A connection is established when the kernel gets it. A packet that
// begins or ends a connection takes it out of the fast path, in the program at once, and here when a worker has
// processed that packet. The kernel's counts come back every second.
package fastpath

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/bpf"
	"vstun/encap/packet"
)

// Kernel is the program that forwards flows: a *bpf.Director.
type Kernel interface {
	Add(bpf.Path) (bpf.Ref, error)
	Remove(bpf.Ref) error
	Set([]bpf.Flow) (n int, err error)
	Delete([]packet.Flow, func(packet.Flow, bpf.State)) error
	Read(func(f packet.Flow, s bpf.State, live bool)) error
}

// Config is the surroundings of a Cache.
type Config struct {
	Kernel Kernel
	Table  *conntab.Table
	Clock  func() conntab.Ticks
	Worker int      // number under which it counts in the balancer
	Ports  []uint16 // source ports of tunnels over UDP, at least one
	Device int      // interface index of the director's device, by which packets of VS/NAT come back into the kernel
	// Tracked reports whether connections of this host are tracked: packets of VS/NAT stay out then. It is called after
	// the first packet of a connection has left this host, and before the kernel gets the connection.
	Tracked func() bool
	Failed  func(error)
	// NoPath is called with the first error of each Refusal because of which a realserver has no path in the kernel.
	NoPath func(error)
}

// Refusal is why the kernel does not get a connection that has many packets.
type Refusal uint8

const (
	ConnectionsFull Refusal = iota // there is no room for more connections of its family
	PathsFull                      // there is no room for the path to its realserver
	PathError                      // the path cannot be made, or the kernel has refused it
	SecondChance                   // its packets name another realserver, which the kernel does not write
	refusals
)

var refusalNames = [refusals]string{"connections_full", "paths_full", "path_error", "second_chance"}

// String is the reason in status and metrics.
func (r Refusal) String() string { return refusalNames[r] }

// RefusalNames returns the names of all reasons.
func RefusalNames() []string { return refusalNames[:] }

// Cache is the connections in the kernel. Any number of goroutines may use it.
type Cache struct {
	Config
	feed *conntab.Feed

	mu       sync.Mutex
	broken   bool // after an error of the kernel: there is no fast path any more
	paused   bool // see Pause
	snapshot *balancer.Snapshot
	ways     Ways
	excluded func(packet.Flow, *balancer.Dest) bool // connections that stay out; nil: none
	excludes int                                    // calls of Exclude
	paths    map[pathID]path
	conns    map[key]conn
	replies  map[key]key // connections of VS/NAT, by the flow of their replies
	halves   int         // of conns
	answered []key       // of those, the ones whose replies the kernel has forwarded
	wanting  [2]int      // by family: requests for room since the last account that were in vain; 0: there is room
	pass     uint32      // of account

	passes   sync.Mutex // held by account
	took     atomic.Int64
	flows    atomic.Int64
	promoted atomic.Uint64
	refused  [refusals]atomic.Uint64
	told     [refusals]bool // NoPath has been called
	in, out  traffic
}

// traffic is packets and bytes. GSO packets count once.
type traffic struct{ packets, bytes atomic.Uint64 }

// Stats is what a Cache has done.
type Stats struct {
	Connections int    // in the kernel now
	Promoted    uint64 // that have got there
	// Refused is how often the kernel did not get a connection, by Refusal. A connection asks with every 16th packet.
	Refused [refusals]uint64
	// In is what has come, Out what has left: with the headers of tunnels. GSO packets count once.
	InPackets, InBytes, OutPackets, OutBytes uint64
}

// feedSize is the number of changes between two looks at the feed for which there is room.
const feedSize = 1 << 14

// New makes a Cache without connections. Run fills it.
func New(c Config) *Cache {
	return &Cache{Config: c, feed: c.Table.Changes(feedSize, conntab.Busy, conntab.Left), paths: map[pathID]path{},
		conns: map[key]conn{}, replies: map[key]key{}}
}

// The periods of looks at the feed, and of accounts. An account in which there is much to read is followed by a pause
// of accountShare times its duration, but of no more than accountMost: the shortest timeout of a connection in the fast
// path is 10 seconds, and an account has to come before.
const (
	lookEvery    = 10 * time.Millisecond
	accountEvery = time.Second
	accountSoon  = 100 * time.Millisecond // while a connection waits for its replies
	accountMost  = 5 * time.Second
	accountShare = 20
)

// pause is the time between an account of the duration took and the next one.
func pause(took time.Duration) time.Duration {
	return min(max(accountEvery, accountShare*took), accountMost)
}

// Run fills the cache until ctx is cancelled.
func (c *Cache) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	changes := make([]conntab.Change, 512)
	next, soon := time.Now().Add(accountEvery), time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			c.look(changes)
			if now.After(next) || now.After(soon) && c.waits() {
				c.account()
				next = time.Now().Add(pause(time.Duration(c.took.Load())))
				soon = time.Now().Add(max(accountSoon, accountShare*time.Duration(c.took.Load())))
			}
		}
	}
}

// waits reports whether a connection waits for an account to be complete.
func (c *Cache) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.halves > 0
}

// look takes the table's changes: connections that the kernel should have, and those that it must not have any more.
func (c *Cache) look(changes []conntab.Change) {
	for {
		n := c.feed.Next(c.Clock(), changes)
		if n == 0 {
			return
		}
		c.mu.Lock()
		c.take(changes[:n])
		c.mu.Unlock()
	}
}

// take processes changes. The caller holds c.mu.
func (c *Cache) take(changes []conntab.Change) {
	if c.broken {
		return
	}
	var busy []conntab.Conn
	var left []key
	for i := range changes {
		switch at := &changes[i]; at.Kind {
		case conntab.Busy:
			busy = append(busy, at.Conn)
		case conntab.Left:
			left = append(left, keyOf(at.Conn.Flow))
		}
	}
	c.drop(left)
	c.promote(busy)
}

// Follow puts a snapshot in force: no connection of a realserver that is gone, or that packets reach in another way
// than before, is in the kernel when it returns.
func (c *Cache) Follow(s *balancer.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshot = s
	c.revise()
}

// SetWays replaces the ways to realservers, likewise.
func (c *Cache) SetWays(ways Ways) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ways = ways
	c.revise()
}

// Pause takes all connections out of the kernel, and keeps them out until it is called with false.
func (c *Cache) Pause(is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = is
	c.revise()
}

// Exclude keeps connections for which fn is true out of the kernel, until the call of end or the next call of Exclude.
// When it returns, no such connection is there. The flow is the connection's, from client to VIP.
func (c *Cache) Exclude(fn func(packet.Flow, *balancer.Dest) bool) (end func()) {
	var out []key
	c.mu.Lock()
	c.excluded = fn // promote adds no such connection from now on
	c.excludes++
	mine := c.excludes
	if c.snapshot != nil {
		for k, at := range c.conns {
			if d := c.snapshot.Dest(at.dest); d != nil && fn(k.flow(), d) {
				out = append(out, k)
			}
		}
	}
	c.mu.Unlock()
	c.releaseAll(out)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.excludes == mine {
			c.excluded = nil
		}
	}
}

// Has reports whether the kernel forwards the connection f.
func (c *Cache) Has(f packet.Flow) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := keyOf(f)
	at, known := c.conns[k]
	return known && !at.half && c.current(&k, at)
}

// Stats returns what the cache has done up to the last account.
func (c *Cache) Stats() Stats {
	s := Stats{Connections: int(c.flows.Load()), Promoted: c.promoted.Load(),
		InPackets: c.in.packets.Load(), InBytes: c.in.bytes.Load(),
		OutPackets: c.out.packets.Load(), OutBytes: c.out.bytes.Load()}
	for r := range c.refused {
		s.Refused[r] = c.refused[r].Load()
	}
	return s
}

// PathFaults returns the number of realservers whose path the kernel should have and does not, and the error of one of
// them.
func (c *Cache) PathFaults() (realservers int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dests := map[uint32]bool{} // a path has one family
	for id, p := range c.paths {
		if p.err != nil {
			dests[id.dest], err = true, p.err
		}
	}
	return len(dests), err
}

// Close takes the last counts. The caller has detached the program from its devices, and ended Run.
func (c *Cache) Close() {
	c.account()
	c.feed.Close()
}

// fail ends the fast path after an error of the kernel. Without counts, connections in the kernel would end in the
// table; without Remove they would go on where they must not. The caller holds c.mu.
func (c *Cache) fail(err error) {
	if err == nil || c.broken {
		return
	}
	c.broken = true
	clear(c.paths)
	clear(c.conns)
	clear(c.replies)
	c.halves, c.answered = 0, nil
	c.flows.Store(0)
	go c.Failed(err)
}

// errFull reports whether err says that the kernel has no room for more flows.
func errFull(err error) bool { return errors.Is(err, bpf.ErrFull) }

package forward

import (
	"math/rand/v2"
	"sync/atomic"

	"vstun/balancer/conntab"
	"vstun/encap/packet/stats"
)

// Shared is what all workers of a director have in common. It is only touched for packets that are out of the ordinary.
type Shared struct {
	// TooBig gets a value when the kernel says, or a router, that a packet is larger than the way to its realserver
	// takes: the MTU that the balancer was told is not the way's any more.
	TooBig chan struct{}

	fragments reassembler
	counters  stats.Counters          // of what no worker counts
	tap       atomic.Pointer[Capture] // nil: nobody looks

	id  atomic.Uint32 // of the last packet that was sent in fragments
	id6 atomic.Uint32 // likewise over IPv6
}

// NewShared is for all workers of one director.
func NewShared() *Shared {
	s := &Shared{TooBig: make(chan struct{}, 1)}
	s.id6.Store(rand.Uint32()) // not to be foreseen: RFC 7739
	return s
}

// Sweep gives up what has waited too long for its missing fragments, which workers do otherwise when they get a
// fragment. One goroutine calls it.
func (s *Shared) Sweep(now conntab.Ticks) {
	var t stats.Tally
	s.fragments.sweep(now, &t)
	s.counters.Add(&t)
}

// Waiting is the number of fragments that wait for the rest of their packets.
func (s *Shared) Waiting() int {
	s.fragments.mu.Lock()
	defer s.fragments.mu.Unlock()
	return s.fragments.waiting
}

// Read adds what no worker counts to t.
func (s *Shared) Read(t *stats.Tally) { s.counters.Read(t) }

func (s *Shared) tooBig() {
	select {
	case s.TooBig <- struct{}{}:
	default: // somebody is told already
	}
}

// nextID is the ID of a packet that is sent in fragments. No two workers may use one at the same time, or a realserver
// would put together what doesn't belong together. It is never 0, which the kernel would replace.
func (s *Shared) nextID() uint16 {
	for {
		if id := uint16(s.id.Add(1)); id != 0 {
			return id
		}
	}
}

// nextID6 is nextID over IPv6.
func (s *Shared) nextID6() uint32 { return s.id6.Add(1) }

package forward

import (
	"math/rand/v2"
	"sync/atomic"

	"vstun/balancer/conntab"
	"vstun/encap/egress"
	"vstun/encap/packet/stats"
)

// Shared is what all workers of a director have in common. It is only touched for packets that are out of the ordinary.
type Shared struct {
	// TooBig gets a value when the kernel, or a router, says that a packet is larger than the path to its realserver
	// takes: the MTU in the balancer's configuration is not the path's any more.
	TooBig chan struct{}

	fragments reassembler
	counters  stats.Counters          // of what no worker counts
	capture   atomic.Pointer[Capture] // nil: there is none
	ids       *egress.IDs
}

// NewShared is for all workers of one director.
func NewShared() *Shared {
	return &Shared{TooBig: make(chan struct{}, 1), ids: egress.NewIDs(rand.Uint32())}
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
	default: // a value waits already
	}
}

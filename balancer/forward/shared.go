package forward

import (
	"math/rand/v2"
	"sync/atomic"

	"vstun/balancer/conntab"
	"vstun/encap/egress"
	"vstun/encap/packet/stats"
)

// Shared is the common state of a director's workers. Ordinary packets read only its capture.
type Shared struct {
	// TooBig gets a value when the kernel or a router reports that a packet exceeds the path MTU to its realserver. The
	// MTU in the balancer's configuration is then out of date.
	TooBig chan struct{}

	fragments  reassembler
	unresolved unresolved
	counters   stats.Counters          // of fragments that Sweep drops
	capture    atomic.Pointer[Capture] // nil: there is none
	ids        *egress.IDs
	others     atomic.Bool // see ExpectOthers
}

// NewShared makes the Shared for all workers of one director.
func NewShared() *Shared {
	return &Shared{TooBig: make(chan struct{}, 1), ids: egress.NewIDs(rand.Uint32())}
}

// ExpectOthers sets whether packets that are not for a VIP are sent on as they came under a snapshot without VS/NAT,
// too. The rules for VS/NAT, which lead such packets of its realservers into the device, precede the snapshot.
func (s *Shared) ExpectOthers(is bool) { s.others.Store(is) }

// ExpectsOthers returns the value that ExpectOthers has set last.
func (s *Shared) ExpectsOthers() bool { return s.others.Load() }

// Sweep drops packets that have waited too long for missing fragments. Otherwise workers do so only when they get a
// fragment. Only one goroutine may call it.
func (s *Shared) Sweep(now conntab.Ticks) {
	var t stats.Tally
	s.fragments.sweep(now, &t)
	s.counters.Add(&t)
}

// Waiting returns the number of fragments in incomplete packets.
func (s *Shared) Waiting() int {
	s.fragments.mu.Lock()
	defer s.fragments.mu.Unlock()
	return s.fragments.waiting
}

// Read adds the counts of Sweep and SendResolved to t.
func (s *Shared) Read(t *stats.Tally) {
	s.counters.Read(t)
	s.unresolved.counters.Read(t)
}

func (s *Shared) tooBig() {
	select {
	case s.TooBig <- struct{}{}:
	default: // a value waits already
	}
}

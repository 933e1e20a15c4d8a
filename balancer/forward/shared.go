package forward

import "sync/atomic"

// Shared is what all workers of a director have in common. It is only touched for packets that are out of the ordinary.
type Shared struct {
	// TooBig gets a value when the kernel says that a packet is larger than the way to its realserver takes: the MTU that the balancer
	// was told is not the way's any more.
	TooBig chan struct{}

	id atomic.Uint32 // of the last packet that was sent in fragments
}

// NewShared is for all workers of one director.
func NewShared() *Shared { return &Shared{TooBig: make(chan struct{}, 1)} }

func (s *Shared) tooBig() {
	select {
	case s.TooBig <- struct{}{}:
	default: // somebody is told already
	}
}

// nextID is the ID of a packet that is sent in fragments. No two workers may use one at the same time, or a realserver would put together what
// doesn't belong together. It is never 0, which the kernel would replace.
func (s *Shared) nextID() uint16 {
	for {
		if id := uint16(s.id.Add(1)); id != 0 {
			return id
		}
	}
}

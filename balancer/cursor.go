package balancer

import (
	"slices"
	"sync/atomic"
)

// cursor is the position of a scheduler that takes turns, in memory that outlives the process: the number of the
// realserver that it chose last, plus 1, and the weight that wrr had arrived at. A nil cursor forgets.
type cursor struct{ atomic.Uint64 }

// set notes the last choice. d is nil before the first one.
func (c *cursor) set(d *Dest, current int) {
	switch {
	case c == nil:
	case d == nil:
		c.Store(0)
	default:
		c.Store(uint64(d.number+1)<<32 | uint64(uint32(current)))
	}
}

// get returns what set has noted. known is false before the first choice.
func (c *cursor) get() (number uint32, current int, known bool) {
	v := c.Load()
	return uint32(v>>32) - 1, int(uint32(v)), v != 0
}

// turning is a scheduler with a position.
type turning interface {
	// notes makes the scheduler note its position in c.
	notes(c *cursor)
	// resume goes on after the choice of list[position].
	resume(position, current int)
}

// resume lets s go on after the choice of the realserver with this number, if it is still there.
func (s *service) resume(number uint32, current int) {
	at := slices.IndexFunc(s.list, func(d *Dest) bool { return d.number == number })
	if t, ok := s.sched.(turning); ok && at >= 0 {
		t.resume(at, current)
	}
}

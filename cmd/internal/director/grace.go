package director

import (
	"time"

	"vstun/cmd/internal/daemon"
)

// grace is a grace period, as in RCU. It ends when each worker has ended the batch that it was in at the beginning.
// Then no worker uses a snapshot that was replaced before, and its last decisions are in the connection table.
type grace []position

// position is the batch that a worker was in.
type position struct {
	loop  daemon.Loop
	ended uint64 // the batches before it
}

// newGrace begins a grace period of the loops.
func newGrace(loops []daemon.Loop) grace {
	var g grace
	for _, l := range loops {
		if ended, busy := l.Progress(); busy {
			g = append(g, position{l, ended})
		}
	}
	return g
}

// over reports whether the period has ended.
func (g grace) over() bool {
	for _, p := range g {
		if ended, _ := p.loop.Progress(); ended == p.ended {
			return false
		}
	}
	return true
}

// wait waits for the end of the period, but no longer than d, and reports whether it has ended.
func (g grace) wait(d time.Duration) bool {
	for begin := time.Now(); !g.over(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > d {
			return false
		}
	}
	return true
}

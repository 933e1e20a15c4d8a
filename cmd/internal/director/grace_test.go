package director

import (
	"testing"
	"time"

	"vstun/cmd/internal/daemon"
	"vstun/encap/packet/stats"
)

// TestGrace: a grace period ends when each worker that was in a batch has ended it. A worker that was not in one does
// not matter, and neither does a later batch.
func TestGrace(t *testing.T) {
	var busy, idle, other stats.Batches
	busy.Begin(1)
	other.Begin(2)
	g := newGrace([]daemon.Loop{&busy, &idle, &other})
	idle.Begin(1)
	if g.over() {
		t.Error("it is over while two are in their batches")
	}
	other.End()
	other.Begin(1)
	if g.over() || g.wait(time.Millisecond) {
		t.Error("it is over while one is in its batch")
	}
	busy.End()
	if !g.over() || !g.wait(0) {
		t.Error("it is not over")
	}
	if !newGrace(nil).over() || !grace(nil).over() {
		t.Error("without workers it is not over")
	}
}

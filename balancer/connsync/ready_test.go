package connsync

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/testdata/testkit"
)

// nowReady reports whether s is ready.
func (s *Sync) nowReady() bool {
	select {
	case <-s.Ready():
		return true
	default:
		return false
	}
}

// restart starts the last director again, whose peer has n connections, and lets the transfer of them begin, at a rate
// of n/10 records a second.
func (w *network) restart(n int) (from, to *director) {
	w.t.Helper()
	from = w.directors[0]
	w.run(5 * second)
	for i := range n {
		from.open(w, i, vip, 80)
		if i%500 == 499 {
			w.run(10)
		}
	}
	w.run(5 * second)
	w.stop()
	to = w.start(2*n, from.cfg.Key)
	from.cfg.BulkRate = n / 10
	w.run(5 * second)
	if got := to.table.Len(); got == 0 || got >= n || from.cfg.Key != nil && to.nowReady() {
		w.t.Fatalf("%d of %d connections, ready %v: want some", got, n, to.nowReady())
	}
	return from, to
}

// TestClocks: a goroutine that has waited for the lock works with an earlier time than the one before it. That ends no
// wait.
func TestClocks(t *testing.T) {
	w := newNetwork(t, 2, 10_000, key)
	from, to := w.restart(5000)
	from.work(w.now+10, 10)
	for _, b := range from.box.sent {
		to.take(slices.Clone(b), from.addr, w.now+11)
	}
	from.box.sent = nil
	to.work(w.now+10, 10)
	if st := to.Status(); to.nowReady() || st.Peers[0].Complete {
		t.Errorf("ready %v with %d connections, complete %v", to.nowReady(), to.table.Len(), st.Peers[0].Complete)
	}
}

// lockedBox is a Link that counts what is sent.
type lockedBox struct {
	outbox
	sent atomic.Int64
}

func (l *lockedBox) Send([]byte) error {
	l.sent.Add(1)
	return nil
}

// TestSlowStart: the time in which peers may answer begins with Run, however long the start took before.
func TestSlowStart(t *testing.T) {
	table := conntab.New(conntab.Config{Max: 1024})
	var ticks atomic.Uint32
	box := &lockedBox{}
	s := New(Config{Key: key, Size: MaxSize}, box, table, balancer.New(table, 1),
		func() conntab.Ticks { return conntab.Ticks(ticks.Load()) })
	ticks.Add(500)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	defer running.Wait()
	defer cancel()
	testkit.Eventually(t, "the first hello", func() bool { return box.sent.Load() > 0 })
	if s.Status().Ready { // Status waits for what sends the hello
		t.Error("ready with the first hello")
	}
	ticks.Add(300)
	testkit.Eventually(t, "ready without peers", s.nowReady)
}

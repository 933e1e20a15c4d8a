package stats

import "sync/atomic"

// MaxBatch is the largest number of packets that a worker reads before it sends any.
const MaxBatch = 64

// Batches counts the batches of one worker by their number of packets. Only the worker adds, twice a batch. Any
// goroutine may read at any time.
type Batches struct {
	begun [MaxBatch + 1]atomic.Uint64
	ended atomic.Uint64
}

// Begin counts a batch of n packets, which the worker has read and begins to process.
func (b *Batches) Begin(n int) { b.begun[n].Add(1) }

// End counts a batch that the worker has processed.
func (b *Batches) End() { b.ended.Add(1) }

// Read returns how many batches of 0, 1, … packets have begun.
func (b *Batches) Read() (begun [MaxBatch + 1]uint64) {
	for n := range b.begun {
		begun[n] = b.begun[n].Load()
	}
	return begun
}

// Progress returns how many batches have ended, and whether the worker is in the next one. A worker that is busy in two
// calls, with the same number of ended batches, has been in one batch all the time.
func (b *Batches) Progress() (ended uint64, busy bool) {
	ended = b.ended.Load()
	var begun uint64
	for n := range b.begun {
		begun += b.begun[n].Load()
	}
	return ended, begun > ended
}

package wireguard

import (
	"os"
	"sync"
	"time"
)

// queue hands packets from any number of goroutines to one, the library's, in order. The library lends its buffers
// while it waits for packets, and senders put them there: a packet is copied once. While the library is at work on
// packets, senders wait.
type queue struct {
	mu     sync.Mutex
	some   sync.Cond // there is a packet, or the queue is closed
	room   sync.Cond // there is room, or the queue is closed
	closed bool
	ending bool // no packet is added any more
	held   bool // the library gets nothing

	bufs   [][]byte // lent; nil: the library is at work
	sizes  []int    // of the packets in bufs
	offset int      // of a packet in its buffer
	n      int      // packets in bufs
}

func newQueue() *queue {
	q := &queue{}
	q.some.L, q.room.L = &q.mu, &q.mu
	return q
}

// lock begins the adding of packets.
func (q *queue) lock() { q.mu.Lock() }

// add returns the memory for one more packet of n bytes, at most maxPacket. It waits until there is room. It returns
// nil if the queue is closed, or ends. The caller has called lock.
func (q *queue) add(n int) []byte {
	for q.n == len(q.bufs) && !q.closed && !q.ending {
		q.some.Signal()
		q.room.Wait()
	}
	if q.closed || q.ending {
		return nil
	}
	b := q.bufs[q.n][q.offset:]
	q.sizes[q.n] = n
	q.n++
	return b[:n]
}

// unlock ends the adding of packets.
func (q *queue) unlock() {
	q.mu.Unlock()
	q.some.Signal()
}

// hold keeps packets back until release, and waits until the library is not at work, for limit at most.
func (q *queue) hold(limit time.Duration) {
	q.mu.Lock()
	q.held = true
	q.mu.Unlock()
	q.await(limit, func() bool { return q.bufs != nil })
}

// finish lets no more packets in, ends a hold, and waits until the library has got those that are here, for limit at
// most.
func (q *queue) finish(limit time.Duration) {
	q.mu.Lock()
	q.ending, q.held = true, false
	q.mu.Unlock()
	q.some.Signal()
	q.room.Broadcast()
	q.await(limit, func() bool { return q.bufs != nil && q.n == 0 || q.closed })
}

// await waits until done, which is called with q.mu, for limit at most.
func (q *queue) await(limit time.Duration, done func() bool) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(limit / 20) {
		q.mu.Lock()
		is := done()
		q.mu.Unlock()
		if is {
			return
		}
	}
}

// release ends a hold.
func (q *queue) release() {
	q.mu.Lock()
	q.held = false
	q.mu.Unlock()
	q.some.Signal()
}

// take lends bufs until there are packets. It returns their number, and sets their sizes. Each begins at offset. It
// returns os.ErrClosed after close, when no packet is left. One goroutine calls it at a time.
func (q *queue) take(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bufs, q.sizes, q.offset, q.n = bufs, sizes, offset, 0
	q.room.Broadcast()
	for (q.n == 0 || q.held) && !q.closed {
		q.some.Wait()
	}
	q.bufs, q.sizes, n, q.n = nil, nil, q.n, 0
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}

// close ends all waiting.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.some.Broadcast()
	q.room.Broadcast()
}

package wireguard

import (
	"os"
	"sync"
	"time"
)

const (
	// queueBytes and queuePackets bound the packets that wait in one half of a queue.
	queueBytes   = 512 << 10
	queuePackets = 512
)

// queue hands packets from any number of goroutines to one, the library's, in order. It copies each packet twice: into the half that
// is being filled, and out of the half that is being emptied. It allocates nothing after newQueue.
type queue struct {
	mu      sync.Mutex
	some    sync.Cond // there is a packet, or the queue is closed
	room    sync.Cond // there is room, or the queue is closed
	filling half
	closed  bool
	held    bool // the consumer gets nothing
	idle    bool // the consumer waits

	emptying half // of the consumer
	next     int  // its next packet
}

// half is packets one behind the other.
type half struct {
	bytes []byte
	ends  []int // of the packets in bytes
}

func newHalf() half {
	// One packet may begin below the bound and end beyond it.
	return half{make([]byte, 0, queueBytes+maxPacket), make([]int, 0, queuePackets)}
}

// full reports whether no packet may be added.
func (h *half) full() bool { return len(h.bytes) >= queueBytes || len(h.ends) >= queuePackets }

// packet returns packet i.
func (h *half) packet(i int) []byte {
	from := 0
	if i > 0 {
		from = h.ends[i-1]
	}
	return h.bytes[from:h.ends[i]]
}

func newQueue() *queue {
	q := &queue{filling: newHalf(), emptying: newHalf()}
	q.some.L, q.room.L = &q.mu, &q.mu
	return q
}

// lock begins the adding of packets.
func (q *queue) lock() { q.mu.Lock() }

// add returns the memory for one more packet of n bytes, at most maxPacket. It waits while the queue is full. It
// returns nil if the queue is closed. The caller has called lock.
func (q *queue) add(n int) []byte {
	for q.filling.full() && !q.closed {
		q.some.Signal()
		q.room.Wait()
	}
	if q.closed {
		return nil
	}
	h := &q.filling
	at := len(h.bytes)
	h.bytes = h.bytes[:at+n]
	h.ends = append(h.ends, at+n)
	return h.bytes[at:]
}

// unlock ends the adding of packets.
func (q *queue) unlock() {
	q.mu.Unlock()
	q.some.Signal()
}

// hold keeps packets back until release, and waits until the consumer has used those that it has, for limit at most.
func (q *queue) hold(limit time.Duration) {
	q.mu.Lock()
	q.held = true
	q.mu.Unlock()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(limit / 20) {
		q.mu.Lock()
		idle := q.idle
		q.mu.Unlock()
		if idle {
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

// take waits for packets, and calls fn for each in order, until fn returns false: it has not taken that packet. It
// returns os.ErrClosed after close, when no packet is left.
func (q *queue) take(fn func(p []byte) bool) error {
	if q.next == len(q.emptying.ends) {
		if !q.swap() {
			return os.ErrClosed
		}
	}
	for ; q.next < len(q.emptying.ends); q.next++ {
		if !fn(q.emptying.packet(q.next)) {
			return nil
		}
	}
	return nil
}

// swap waits for packets, and makes the filled half the one to empty. It returns false if there will be none.
func (q *queue) swap() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for (len(q.filling.ends) == 0 || q.held) && !q.closed {
		q.idle = true
		q.some.Wait()
	}
	q.idle = false
	if len(q.filling.ends) == 0 {
		return false
	}
	q.filling, q.emptying = q.emptying, q.filling
	q.filling.bytes, q.filling.ends, q.next = q.filling.bytes[:0], q.filling.ends[:0], 0
	q.room.Broadcast()
	return true
}

// close ends all waiting.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.some.Broadcast()
	q.room.Broadcast()
}

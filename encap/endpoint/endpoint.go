// Package endpoint is the realserver's loop: receive → unwrap → check → coalesce → write to the TUN device.
package endpoint

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"vstun/encap/packet"
)

// Source is where tunnel packets come from: sockets.
type Source interface {
	// ReadBatch waits for packets and puts them into bufs, each with its outer headers; where the kernel has put UDP datagrams together, the headers
	// of one, and Offload with GSOUDP. It returns os.ErrClosed to end the loop.
	ReadBatch(bufs []packet.Buf) (int, error)
}

// Sink takes the packets that were in the tunnel: a queue of a TUN device.
type Sink interface {
	// WriteBatch returns how many packets of bufs it took, one in several pieces counting as so many, and their bytes; what their Offload names is
	// left to it. It returns os.ErrClosed to end the loop.
	WriteBatch(bufs []*packet.Buf) (n, bytes int, err error)
}

const (
	// batch is the number of packets that are received before any is written.
	batch = packet.MaxBatch

	// maxParts is the number of datagrams, of those that the kernel has put together, that are treated before any is written. The cache still
	// has them then.
	maxParts = 256
)

// Worker brings the packets of one source into this host.
type Worker struct {
	source   Source
	sink     Sink
	inForce  *atomic.Pointer[Policy]
	merge    bool
	counters packet.Counters
	batches  packet.Batches
	merged   atomic.Uint64 // packets that went behind another one of their connection into one piece with it

	policy   *Policy // of this batch
	bufs     []packet.Buf
	out      []*packet.Buf
	accepted int // packets of out, each piece one
	parts    []packet.Buf
	used     int // of parts
	tally    packet.Tally
	coalesce coalescer
}

// NewWorker makes a worker that moves packets which the policy in force accepts from source to sink. It loads the
// policy once a batch. With merge, consecutive segments of a connection become one packet in several pieces: for a
// sink that takes such.
func NewWorker(source Source, sink Sink, inForce *atomic.Pointer[Policy], merge bool) *Worker {
	return &Worker{source: source, sink: sink, inForce: inForce, merge: merge,
		bufs: packet.NewBufs(batch), parts: make([]packet.Buf, maxParts),
		out: make([]*packet.Buf, 0, batch+maxParts)}
}

// Read adds what the worker has counted to t.
func (w *Worker) Read(t *packet.Tally) { w.counters.Read(t) }

// Batches is what the worker has counted of its batches.
func (w *Worker) Batches() *packet.Batches { return &w.batches }

// Merged is the number of packets that have been written as a part of another one, behind it.
func (w *Worker) Merged() uint64 { return w.merged.Load() }

// Run moves packets until source or sink is closed. It waits in the source's system call, so that the thread that the kernel wakes goes on with it.
func (w *Worker) Run() error {
	for {
		n, err := w.source.ReadBatch(w.bufs)
		if err == nil {
			err = w.move(w.bufs[:n])
		}
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tunnel: %w", err)
		}
	}
}

// move treats one batch.
func (w *Worker) move(bufs []packet.Buf) error {
	w.batches.Begin(len(bufs))
	w.policy = w.inForce.Load()
	var err error
	for i := range bufs {
		b := &bufs[i]
		if b.Offload.GSO == packet.GSOUDP {
			err = w.datagrams(b)
		} else {
			w.packet(b)
		}
		if err != nil {
			break
		}
	}
	err = errors.Join(err, w.flush())
	w.counters.Add(&w.tally)
	w.batches.End()
	return err
}

// packet treats one tunnel packet.
func (w *Worker) packet(b *packet.Buf) {
	w.tally.InPackets++
	w.tally.InBytes += uint64(b.Len())
	in, d := w.policy.unwrap(b)
	w.enter(b, in, d)
}

// datagrams treats what the kernel has made of UDP tunnel packets of one flow (UDP_GRO): the headers of one, and the payloads of all. The
// packets in them stay where they are.
func (w *Worker) datagrams(b *packet.Buf) error {
	size, headers := int(b.Offload.Size), ipHeaderLen(b.Bytes())+packet.UDPHeaderLen
	t, d := w.policy.outer(b)
	if d != packet.Accept {
		b.Strip(headers)
	}
	for at := 0; at < b.Len(); at += size {
		n := min(size, b.Len()-at)
		w.tally.InPackets++
		w.tally.InBytes += uint64(headers + n)
		if d != packet.Accept {
			w.tally.Drop(d)
			continue
		}
		if w.used == len(w.parts) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		part := &w.parts[w.used]
		*part = b.Part(at, n)
		in, d := w.policy.inner(part, &t)
		if w.enter(part, in, d) {
			w.used++
		}
	}
	return nil
}

// enter hands on or drops the packet in b, of which the policy says d, and tells whether b is in use until flush.
func (w *Worker) enter(b *packet.Buf, in inside, d packet.Drop) (kept bool) {
	if d == packet.Accept && !in.fragment {
		mss := w.policy.mss4
		if b.Bytes()[0]>>4 == 6 {
			mss = w.policy.mss6
		}
		d = offloaded(b, in, mss)
	}
	if d != packet.Accept {
		w.tally.Drop(d)
		return false
	}
	w.accepted++
	if in.fragment {
		w.coalesce.finish() // it may be of any connection
	} else {
		if w.merge && in.proto == packet.ProtoTCP && w.coalesce.add(b, in) {
			return true
		}
	}
	w.out = append(w.out, b)
	return true
}

// flush writes what waits.
func (w *Worker) flush() error {
	w.coalesce.finish()
	var err error
	if len(w.out) > 0 {
		if merged := w.accepted - len(w.out); merged > 0 {
			w.merged.Add(uint64(merged))
		}
		var n, bytes int
		n, bytes, err = w.sink.WriteBatch(w.out)
		w.tally.OutPackets += uint64(n)
		w.tally.OutBytes += uint64(bytes)
		for range w.accepted - n {
			w.tally.Drop(packet.DropTUNError)
		}
	}
	w.out, w.accepted, w.used = w.out[:0], 0, 0
	return err
}

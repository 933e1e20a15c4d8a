// Package endpoint is the receiving half of a tunnel end: receive → decapsulate → check → coalesce → write to the TUN
// device. It also forwards servers' answers that the kernel routes into the TUN device.
package endpoint

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Source receives tunnel packets: sockets.
type Source interface {
	// ReadBatch waits for packets and puts them into bufs, each with its outer headers. UDP datagrams that the kernel
	// has merged (GRO) are one GSO packet. ReadBatch returns os.ErrClosed to end the loop.
	ReadBatch(bufs []packet.Buf) (int, error)
}

// Sink writes inner packets: a queue of a TUN device.
type Sink interface {
	// WriteBatch writes packets and completes them as their Offload says. It returns the number of packets that it
	// took, each piece counting as one, and their bytes. It returns os.ErrClosed to end the loop.
	WriteBatch(bufs []*packet.Buf) (n, bytes int, err error)
}

const (
	// batch is the number of packets that are received before any is written.
	batch = stats.MaxBatch

	// maxParts is the number of datagrams of GSO packets that are processed before any is written. That many are still
	// in the processor's cache.
	maxParts = 256
)

// Worker decapsulates the packets of one source and writes them to a sink.
type Worker struct {
	source   Source
	sink     Sink
	inForce  *atomic.Pointer[Policy]
	merge    bool
	counters stats.Counters
	batches  stats.Batches
	merged   atomic.Uint64 // packets that were appended to an earlier packet of their connection

	questions      chan<- Asked
	questionsTaken atomic.Uint64
	directors      Addrs // outer sources that are let in
	strangers      Addrs // outer sources that are refused
	destinations   Addrs // inner destinations that are refused

	chances  atomic.Pointer[SecondChance] // nil: there are none
	fromPeer atomic.Uint64                // packets that other realservers have sent on

	policy   *Policy       // of this batch
	chance   *SecondChance // of this batch
	bufs     []packet.Buf
	out      []*packet.Buf
	accepted int // packets of out; each piece counts as one
	parts    []packet.Buf
	used     int // of parts
	tally    stats.Tally
	coalesce coalescer
}

// These are the numbers of addresses for which a worker counts packets. A service has few directors, but a prefix may
// contain many.
const (
	mostDirectors = 32
	mostRefused   = 8
)

// NewWorker makes a worker that moves packets which the policy in force accepts from source to sink. Without a source,
// nil, packets come by Take. The worker loads the policy once a batch. With merge, consecutive segments of a connection
// become one packet in several pieces. The sink must accept such packets.
func NewWorker(source Source, sink Sink, inForce *atomic.Pointer[Policy], merge bool) *Worker {
	return &Worker{source: source, sink: sink, inForce: inForce, merge: merge,
		bufs: packet.NewBufs(batch), parts: make([]packet.Buf, maxParts), out: make([]*packet.Buf, 0, batch+maxParts),
		directors: newAddrs(mostDirectors), strangers: newAddrs(mostRefused), destinations: newAddrs(mostRefused)}
}

// SendQuestions makes the worker send directors' questions to ch. The worker drops a question if ch is full.
// SendQuestions must be called before Run.
func (w *Worker) SendQuestions(ch chan<- Asked) { w.questions = ch }

// Read adds the worker's counts to t.
func (w *Worker) Read(t *stats.Tally) { w.counters.Read(t) }

// Batches returns the sizes of the worker's batches.
func (w *Worker) Batches() *stats.Batches { return &w.batches }

// Merged is the number of packets that were appended to an earlier packet of their connection.
func (w *Worker) Merged() uint64 { return w.merged.Load() }

// Questions is the number of questions that the worker has sent to the channel of SendQuestions.
func (w *Worker) Questions() uint64 { return w.questionsTaken.Load() }

// FromPeers is the number of packets that other realservers have sent on.
func (w *Worker) FromPeers() uint64 { return w.fromPeer.Load() }

// Directors counts the packets of recent outer sources that are directors, without questions.
func (w *Worker) Directors() *Addrs { return &w.directors }

// Strangers counts the packets of recent outer sources that were refused (not_director).
func (w *Worker) Strangers() *Addrs { return &w.strangers }

// Destinations counts the packets to recent inner destinations that were refused (inner_destination).
func (w *Worker) Destinations() *Addrs { return &w.destinations }

// Run moves packets until source or sink is closed. It waits in the source's system call. The thread that the kernel
// wakes then processes the packets itself.
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

// Take processes packets that no source has: as many as stats.MaxBatch at the most, each with its outer headers. They
// are borrowed until Take returns. One goroutine calls it at a time. It returns os.ErrClosed once the sink is closed.
func (w *Worker) Take(bufs []packet.Buf) error { return w.move(bufs) }

// move processes one batch.
func (w *Worker) move(bufs []packet.Buf) error {
	w.batches.Begin(len(bufs))
	w.policy = w.inForce.Load()
	if w.chance = w.chances.Load(); w.chance != nil {
		w.chance.begin()
	}
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
	if w.chance != nil {
		w.chance.end()
	}
	w.directors.publish()
	w.strangers.publish()
	w.destinations.publish()
	w.counters.Add(&w.tally)
	w.batches.End()
	return err
}

// packet processes one tunnel packet.
func (w *Worker) packet(b *packet.Buf) {
	w.tally.InPackets++
	w.tally.InBytes += uint64(b.Len())
	t, d := w.policy.outer(b)
	if d != drop.Accept {
		w.refuse(&t, d, 1)
		return
	}
	w.inner(b, &t)
}

// refuse counts n packets that the policy refuses by their outer headers.
func (w *Worker) refuse(t *arrival, d drop.Reason, n uint64) {
	w.tally.DropN(d, n)
	if d == drop.NotDirector {
		w.strangers.add(t.from, n)
	} else if t.from.IsValid() {
		w.directors.add(t.from, n)
	}
}

// inner processes the packet in b, behind its outer headers, and reports whether b is in use until flush.
func (w *Worker) inner(b *packet.Buf, t *arrival) (kept bool) {
	in, d := w.policy.inner(b, t)
	if d == drop.InnerDestination {
		if w.asked(b, t.from, in) {
			return false
		}
		w.destinations.add(t.refused, 1)
	}
	if t.fromPeer {
		w.fromPeer.Add(1)
		return w.enter(b, in, d)
	}
	w.directors.add(t.from, 1)
	if w.chance != nil && d == drop.Accept {
		if taken, d := w.chance.takes(b, in, t, w.policy); taken {
			if d != drop.Accept {
				w.tally.Drop(d)
			}
			return false
		}
	}
	return w.enter(b, in, d)
}

// datagrams processes a GSO packet that the kernel has merged from UDP tunnel packets of one flow (UDP_GRO). It does
// not copy the inner packets.
func (w *Worker) datagrams(b *packet.Buf) error {
	size, headers := int(b.Offload.Size), ipHeaderLen(b.Bytes())+packet.UDPHeaderLen
	t, d := w.policy.outer(b)
	if d != drop.Accept {
		n := uint64((b.Len() - headers + size - 1) / size)
		w.tally.InPackets += n
		w.tally.InBytes += n*uint64(headers) + uint64(b.Len()-headers)
		w.refuse(&t, d, n)
		return nil
	}
	for at := 0; at < b.Len(); at += size {
		n := min(size, b.Len()-at)
		w.tally.InPackets++
		w.tally.InBytes += uint64(headers + n)
		if w.used == len(w.parts) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		part := &w.parts[w.used]
		*part = b.Part(at, n)
		if w.inner(part, &t) {
			w.used++
		}
	}
	return nil
}

// enter queues or drops the inner packet in b. d is the policy's decision. enter reports whether b is in use until
// flush.
func (w *Worker) enter(b *packet.Buf, in inside, d drop.Reason) (kept bool) {
	if d == drop.Accept && !in.fragment {
		d = offloaded(b, in, w.policy.mss(b))
	}
	if d != drop.Accept {
		w.tally.Drop(d)
		return false
	}
	w.accepted++
	if in.fragment {
		w.coalesce.finish() // the fragment may belong to any connection
	} else {
		if w.merge && in.proto == packet.ProtoTCP && w.coalesce.add(b, in) {
			return true
		}
	}
	w.out = append(w.out, b)
	return true
}

// flush writes the queued packets.
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
			w.tally.Drop(drop.TUNError)
		}
	}
	w.out, w.accepted, w.used = w.out[:0], 0, 0
	return err
}

// Package forward is the director's loop: read → decide → wrap → send.
package forward

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/packet"
)

// Source is where packets come from: a queue of a TUN device.
type Source interface {
	// ReadBatch waits for packets and puts them into bufs. It returns os.ErrClosed to end the loop.
	ReadBatch(bufs []packet.Buf) (int, error)
}

// Sink is where packets go: a raw socket.
type Sink interface {
	// Send sends the first packets of segs and returns how many went out; 0 and an error when the first was refused.
	Send(segs []packet.Segment) (int, error)
}

// batch is the number of packets that are read before any is sent.
const batch = 64

// Worker forwards the packets of one queue.
//
//	             ┌──────────────────── a batch ─────────────────────┐
//	TUN queue →  ReadBatch → Parse → Decide → Wrap → (Fragment) → Send → realserver
//	                           │        │                  ↑
//	                           │        └ counted reason   │
//	                           └ echo request, too big ────┘ answers to the client
//
// Nothing on this way allocates, logs, or waits for another worker longer than a shard of the connection table is locked.
type Worker struct {
	id       int
	source   Source
	sink     Sink
	balancer *balancer.Balancer
	clock    func() conntab.Ticks
	counters packet.Counters
	lastErr  atomic.Int32 // errno of the last packet that the kernel refused

	bufs  []packet.Buf
	out   []packet.Segment
	info  packet.Info
	tally packet.Tally
	room  []byte // headers of fragments
	free  []byte // what is left of room in this batch
	errs  []packet.Buf
	nerrs int
	id16  uint16 // ID of the last fragmented packet
}

// fragmentedPackets is how many of the largest packets can wait to be sent in the smallest fragments.
const fragmentedPackets = 2

// NewWorker makes worker number id, from 0, which forwards from source to sink.
func NewWorker(id int, source Source, sink Sink, b *balancer.Balancer, clock func() conntab.Ticks) *Worker {
	return &Worker{id: id, source: source, sink: sink, balancer: b, clock: clock,
		bufs: packet.NewBufs(batch), errs: packet.NewBufs(1), id16: uint16(id),
		out:  make([]packet.Segment, 0, batch+1+fragmentedPackets*encap.MaxFragments),
		room: make([]byte, fragmentedPackets*encap.MaxFragments*packet.IPv4HeaderLen)}
}

// Read adds what the worker has counted to t.
func (w *Worker) Read(t *packet.Tally) { w.counters.Read(t) }

// LastError is the kernel's reason for the last packet that it refused to send, nil for none.
func (w *Worker) LastError() error {
	if e := w.lastErr.Load(); e != 0 {
		return unix.Errno(e)
	}
	return nil
}

// Run forwards until source or sink is closed. It owns an OS thread meanwhile.
func (w *Worker) Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		n, err := w.source.ReadBatch(w.bufs)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("worker %d: %w", w.id, err)
		}
		w.forward(w.bufs[:n])
	}
}

// forward treats one batch.
func (w *Worker) forward(bufs []packet.Buf) {
	snap, now := w.balancer.Snapshot(), w.clock()
	w.out, w.free, w.nerrs = w.out[:0], w.room, 0
	for i := range bufs {
		b := &bufs[i]
		w.tally.InPackets++
		w.tally.InBytes += uint64(b.Len())
		if d := w.packet(snap, b, now); d != packet.Accept {
			w.tally.Drop(d)
		}
	}
	w.send()
	w.counters.Add(&w.tally)
}

// packet treats one packet: what is to be sent is appended to w.out.
func (w *Worker) packet(snap *balancer.Snapshot, b *packet.Buf, now conntab.Ticks) packet.Drop {
	p := &w.info // in the worker, since a scheduler behind an interface lets it escape
	if d := p.Parse(b.Bytes()); d != packet.Accept {
		return d
	}
	b.SetLen(p.Len) // a link's padding goes
	switch p.Flow.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
	case packet.ProtoICMP:
		return w.icmp(snap, b, p)
	default:
		return packet.DropProtocol
	}
	dest, d := snap.Decide(p, now)
	if d != packet.Accept {
		return d
	}
	inner := dest.MTU - encap.IPIPOverhead
	if p.Len > inner && p.DF {
		return w.tooBig(b, p, inner)
	}
	dest.Count(w.id, p.Len)
	dest.Tunnel.Wrap(b)
	if p.Len > inner {
		w.fragment(b, dest.MTU)
		return packet.Accept
	}
	w.out = append(w.out, packet.Segment{Head: b.Bytes()})
	return packet.Accept
}

// icmp answers a ping of the VIP in its name.
func (w *Worker) icmp(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info) packet.Drop {
	if !snap.HasVIP(p.Flow.Dst) {
		return packet.DropNoService
	}
	if d := packet.EchoReply(b.Bytes()); d != packet.Accept {
		return d
	}
	w.out = append(w.out, packet.Segment{Head: b.Bytes()})
	return packet.Accept
}

// tooBig tells the sender of the packet in b how large a packet may be. One such error a batch is enough.
func (w *Worker) tooBig(b *packet.Buf, p *packet.Info, mtu int) packet.Drop {
	if w.nerrs < len(w.errs) {
		e := &w.errs[w.nerrs]
		w.nerrs++
		e.SetLen(packet.FragmentationNeeded(e.Room(), b.Bytes(), p.Flow.Dst, mtu))
		w.out = append(w.out, packet.Segment{Head: e.Bytes()})
	}
	return packet.DropTooBig
}

// fragment appends the wrapped packet in b as pieces of at most mtu bytes.
func (w *Worker) fragment(b *packet.Buf, mtu int) {
	if len(w.free) < encap.MaxFragments*packet.IPv4HeaderLen {
		w.send()
		w.out, w.free = w.out[:0], w.room
	}
	if w.id16++; w.id16 == 0 {
		w.id16++
	}
	before := len(w.out)
	w.out = encap.Fragment(w.out, b.Bytes(), mtu, w.id16, w.free)
	w.free = w.free[(len(w.out)-before-1)*packet.IPv4HeaderLen:]
}

// send sends all of w.out, and counts it. A packet that the kernel refuses costs that packet alone.
func (w *Worker) send() {
	for out := w.out; len(out) > 0; {
		n, err := w.sink.Send(out)
		for i := range out[:n] {
			w.tally.OutPackets++
			w.tally.OutBytes += uint64(out[i].Len())
		}
		out = out[n:]
		if err == nil {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var errno unix.Errno
		if errors.As(err, &errno) {
			w.lastErr.Store(int32(errno))
		}
		if errno == unix.EMSGSIZE {
			w.tally.Drop(packet.DropTooBig)
		} else {
			w.tally.Drop(packet.DropSendError)
		}
		out = out[1:]
	}
}

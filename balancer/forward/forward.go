// Package forward is the director's loop: read → decide → wrap → send.
package forward

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// Source is where packets come from: a queue of a TUN device.
type Source interface {
	// ReadBatch waits for packets and puts them into bufs. It returns os.ErrClosed to end the loop.
	ReadBatch(bufs []packet.Buf) (int, error)
}

// batch is the number of packets that are read before any is sent.
const batch = 64

// Worker forwards the packets of one queue.
//
//	             ┌──────────────────── a batch ─────────────────────┐
//	TUN queue →  ReadBatch → Parse ⇒ Decide → Wrap → (Segment, Fragment) → Send → realserver
//	                           │        │                                   ↑
//	                           │        └ counted reason                    │
//	                           └ echo request, too big ─────────────────────┘ answers to the client
//
// The whole batch is parsed before the first decision (⇒), so that the table's memory is on its way to the cache meanwhile.
// Nothing on this way allocates, logs, or waits for another worker longer than a shard of the connection table is locked.
type Worker struct {
	id       int
	source   Source
	balancer *balancer.Balancer
	clock    func() conntab.Ticks
	counters packet.Counters
	out      output

	bufs  []packet.Buf
	infos []packet.Info // of the packets of a batch: here, since a scheduler behind an interface would let them escape
	drops []packet.Drop // what parsing them found
	sink  uint8
	tally packet.Tally
	errs  []packet.Buf // ICMP errors
	nerrs int
}

// NewWorker makes worker number id, from 0, which forwards from source to sink, and super-packets for tunnels over UDP to segments, if that is not
// nil.
func NewWorker(id int, source Source, sink Sink, segments SegmentSink, b *balancer.Balancer, shared *Shared, clock func() conntab.Ticks) *Worker {
	w := &Worker{id: id, source: source, balancer: b, clock: clock, bufs: packet.NewBufs(batch),
		infos: make([]packet.Info, batch), drops: make([]packet.Drop, batch), errs: packet.NewBufs(1)}
	w.out.init(sink, segments, &w.tally, shared)
	return w
}

// Read adds what the worker has counted to t.
func (w *Worker) Read(t *packet.Tally) { w.counters.Read(t) }

// LastError is the kernel's reason for the last packet that it refused to send, nil for none.
func (w *Worker) LastError() error {
	if e := w.out.lastErr.Load(); e != 0 {
		return unix.Errno(e)
	}
	return nil
}

// Run forwards until source or sink is closed. It waits in the source's system call, so that the thread that the kernel wakes goes on with it.
func (w *Worker) Run() error {
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
	w.nerrs = 0
	for i := range bufs {
		b, p := &bufs[i], &w.infos[i]
		w.tally.InPackets++
		w.tally.InBytes += uint64(b.Len())
		w.drops[i] = p.Parse(b.Bytes())
	}
	for i := range bufs { // a loop of its own, so short that the processor is ahead by several loads
		if w.drops[i] == packet.Accept {
			w.sink |= snap.Touch(&w.infos[i])
		}
	}
	for i := range bufs {
		d := w.drops[i]
		if d == packet.Accept {
			d = w.packet(snap, &bufs[i], &w.infos[i], now)
		}
		if d != packet.Accept {
			w.tally.Drop(d)
		}
	}
	w.out.flush()
	w.counters.Add(&w.tally)
}

// packet treats one packet, p its headers: what is to be sent is added to w.out.
func (w *Worker) packet(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) packet.Drop {
	b.SetLen(p.Len) // a link's padding goes
	switch p.Flow.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
	case packet.ProtoICMP:
		return w.icmp(snap, b, p)
	default:
		return packet.DropProtocol
	}
	dest, d := snap.Decide(p, now)
	if d != packet.Accept {
		return d
	}
	inner := dest.MTU - dest.Tunnel.Overhead()
	if b.Offload.GSO != packet.GSONone {
		return w.super(b, p, dest, inner)
	}
	if p.Len > inner && p.DF {
		return w.tooBig(b, p, inner)
	}
	if d := b.Finish(); d != packet.Accept {
		return d
	}
	dest.Count(w.id, p.Len)
	dest.Tunnel.Wrap(b, w.out.port(p.Hash))
	if p.Len > inner {
		w.out.fragment(b, dest.MTU)
		return packet.Accept
	}
	w.out.add(b.Bytes())
	return packet.Accept
}

// super treats a super-packet: it has been looked up once, and becomes packets now.
func (w *Worker) super(b *packet.Buf, p *packet.Info, dest *balancer.Dest, inner int) packet.Drop {
	headers, payload, d := packet.SplitSize(b, p, inner)
	if d != packet.Accept {
		return d
	}
	if headers+payload > inner && p.DF {
		return w.tooBig(b, p, inner)
	}
	dest.Count(w.id, p.Len)
	dest.Tunnel.Wrap(b, w.out.port(p.Hash))
	if headers+payload > inner {
		w.out.segmentAndFragment(&dest.Tunnel, b, p, headers, payload, dest.MTU)
	} else {
		w.out.segment(&dest.Tunnel, b, p, headers, payload)
	}
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
	w.out.add(b.Bytes())
	return packet.Accept
}

// tooBig tells the sender of the packet in b how large a packet may be. One such error a batch is enough.
func (w *Worker) tooBig(b *packet.Buf, p *packet.Info, mtu int) packet.Drop {
	if w.nerrs < len(w.errs) {
		e := &w.errs[w.nerrs]
		w.nerrs++
		e.SetLen(packet.FragmentationNeeded(e.Room(), b.Bytes(), p.Flow.Dst, mtu))
		w.out.add(e.Bytes())
	}
	return packet.DropTooBig
}

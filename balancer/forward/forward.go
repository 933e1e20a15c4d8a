// Package forward is the director's loop: read → decide → wrap → send.
package forward

import (
	"errors"
	"fmt"
	"os"

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

// batch is the number of packets that are read before any is sent.
const batch = packet.MaxBatch

// Worker forwards the packets of one queue.
//
//	             ┌──────────────────── a batch ─────────────────────┐
//	TUN queue →  ReadBatch → Parse ⇒ Decide → Wrap → (Segment, Fragment) → Send → realserver
//	                           │  ↑     │                                   ↑
//	                 fragments └──┘     └ counted reason                    │
//	             echo request, too big, no server, unknown connection ──────┘ answers to the client
//
// The whole batch is parsed before the first decision (⇒), so that the table's memory is on its way to the cache
// meanwhile. Nothing on this way allocates, logs, or waits for another worker longer than a shard of the connection
// table is locked; only fragments wait for the reassembler, which all workers share.
type Worker struct {
	id       int
	source   Source
	balancer *balancer.Balancer
	clock    func() conntab.Ticks
	counters packet.Counters
	batches  packet.Batches
	out      output

	bufs  []packet.Buf
	infos []packet.Info // of the packets of a batch: here, since a scheduler behind an interface would let them escape
	drops []packet.Drop // what parsing them found
	sink  uint8
	tally packet.Tally

	answers answers
	resets  resets
}

// NewWorker makes worker number id, from 0, which forwards from source to sink, and super-packets for tunnels over UDP
// to segments, if that is not nil.
func NewWorker(id int, source Source, sink Sink, segments SegmentSink, b *balancer.Balancer, shared *Shared,
	clock func() conntab.Ticks) *Worker {
	w := &Worker{id: id, source: source, balancer: b, clock: clock, bufs: packet.NewBufs(batch),
		infos: make([]packet.Info, batch), drops: make([]packet.Drop, batch)}
	w.answers.init()
	w.resets.init()
	w.out.init(sink, segments, &w.tally, shared)
	return w
}

// Read adds what the worker has counted to t.
func (w *Worker) Read(t *packet.Tally) { w.counters.Read(t) }

// Batches is what the worker has counted of its batches.
func (w *Worker) Batches() *packet.Batches { return &w.batches }

// LastError is the kernel's reason for the last packet that it refused to send, nil for none.
func (w *Worker) LastError() error {
	if e := w.out.lastErr.Load(); e != 0 {
		return unix.Errno(e)
	}
	return nil
}

// Run forwards until source or sink is closed. It waits in the source's system call, so that the thread that the kernel
// wakes goes on with it.
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
	w.batches.Begin(len(bufs))
	snap, now, tap := w.balancer.Snapshot(), w.clock(), w.out.shared.tap.Load()
	w.out.tap = tap
	w.answers.free, w.resets.free = w.answers.room, w.resets.room
	for i := range bufs {
		b, p := &bufs[i], &w.infos[i]
		w.tally.InPackets++
		w.tally.InBytes += uint64(b.Len())
		w.drops[i] = p.Parse(b.Bytes())
	}
	for i := range bufs { // a loop of its own, so short that the processor is ahead by several loads
		if w.drops[i] == packet.Accept {
			w.sink |= snap.Prefetch(&w.infos[i])
		}
	}
	for i := range bufs {
		b, p, d := &bufs[i], &w.infos[i], w.drops[i]
		later := tap != nil && tap.read(snap, b.Bytes(), now)
		switch d {
		case packet.Accept:
			d = w.packet(snap, b, p, now)
		case packet.DropFragment:
			d = w.fragment(snap, b, p, now)
		}
		if later && d == packet.Accept {
			tap.opened(snap, b, p, now)
		}
		if d != packet.Accept {
			w.tally.Drop(d)
		}
	}
	w.out.flush()
	w.counters.Add(&w.tally)
	w.batches.End()
}

// packet treats one packet, p its headers: what is to be sent is added to w.out.
func (w *Worker) packet(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) packet.Drop {
	b.SetLen(p.Len) // a link's padding goes
	if b.Offload.Misplaced(p) {
		return packet.DropOffload
	}
	switch p.Flow.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return w.icmp(snap, b, p, packet.MaxLen, now)
	default:
		return packet.DropProtocol
	}
	dest, d := snap.Decide(p, now)
	if d != packet.Accept {
		w.refuse(snap, d, b, p, now)
		return d
	}
	inner := dest.Inner()
	if b.Offload.GSO != packet.GSONone {
		return w.super(b, p, dest, inner, now)
	}
	if p.Len > inner && p.DF && p.Len > smallest(p) {
		return w.tooBig(b, p, max(inner, smallest(p)), now)
	}
	if d := b.Finish(); d != packet.Accept {
		return d
	}
	return w.send(b, p, dest)
}

// send wraps the packet in b for dest, and adds it to w.out, in outer fragments if it doesn't fit.
func (w *Worker) send(b *packet.Buf, p *packet.Info, dest *balancer.Dest) packet.Drop {
	n := p.Len + dest.Via.Overhead()
	if n > packet.MaxLen {
		return packet.DropTooBig // no packet is that large, fragments or not
	}
	dest.Count(w.id, p.Len)
	dest.Via.Out(b, p, w.out.port(p.Hash))
	w.out.apart(dest.Encap.UDP(), p, b.Bytes())
	if n > dest.MTU {
		w.out.fragment(b.Bytes(), dest.MTU)
		return packet.Accept
	}
	w.out.addWrapped(dest.Encap.UDP(), b.Bytes())
	return packet.Accept
}

// super treats a super-packet: it has been looked up once, and becomes packets now.
func (w *Worker) super(b *packet.Buf, p *packet.Info, dest *balancer.Dest, inner int, now conntab.Ticks) packet.Drop {
	headers, payload, d := packet.SplitSize(b, p, inner)
	if d != packet.Accept {
		return d
	}
	if n := headers + payload; n > inner && p.DF && n > smallest(p) {
		return w.tooBig(b, p, max(inner, smallest(p)), now)
	}
	if headers+payload+dest.Via.Overhead() > packet.MaxLen {
		return packet.DropTooBig
	}
	dest.Count(w.id, p.Len)
	dest.Via.Out(b, p, w.out.port(p.Hash))
	if headers+payload > inner {
		w.out.segmentAndFragment(dest.Via, b, p, headers, payload, dest.MTU)
	} else {
		w.out.segment(dest.Via, dest.Encap.UDP(), b, p, headers, payload)
	}
	return packet.Accept
}

// fragment treats a fragment: with the last that was missing, the packet goes the way of all. What its sender has cut
// already needn't fit the tunnel.
func (w *Worker) fragment(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) packet.Drop {
	if !w.out.shared.fragments.add(b, now, &w.tally) {
		return packet.Accept // it waits, or is counted
	}
	if d := p.Parse(b.Bytes()); d != packet.Accept {
		return d
	}
	if p.Flow.Proto == packet.ProtoICMP || p.Flow.Proto == packet.ProtoICMPv6 {
		return w.icmp(snap, b, p, pingMTU, now)
	}
	p.DF = false
	return w.packet(snap, b, p, now)
}

// pingMTU is the size of the fragments in which a ping is answered that came in fragments: all that is known of the way
// back is that IPv6 could use it.
const pingMTU = encap.MinMTU6

// icmp answers a ping of the VIP in its name, unless it is one of the director's own that checks a realserver, and
// takes an error from a client's path to the realserver whose answer it is about. The answer goes out in fragments of
// mtu bytes.
func (w *Worker) icmp(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, mtu int, now conntab.Ticks) packet.Drop {
	if d := b.Finish(); d != packet.Accept {
		return d
	}
	q, d := packet.QuotedFlow(b.Bytes())
	if d == packet.Accept {
		dest := snap.Find(q.Flow.Reverse(), now)
		if dest == nil {
			return packet.DropNoConnection
		}
		return w.send(b, p, dest)
	}
	if d != packet.DropICMP {
		return d
	}
	if f, ok := packet.EchoFlow(b.Bytes(), p); ok {
		if dest := snap.Pinned(f, now); dest != nil {
			return w.send(b, p, dest)
		}
	}
	if !snap.HasVIP(p.Flow.Dst) {
		return packet.DropNoService
	}
	if d := packet.EchoReply(b.Bytes()); d != packet.Accept {
		return d
	}
	if p.Len > mtu && (p.Offset == packet.IPv4HeaderLen || p.Offset == packet.IPv6HeaderLen) { // no options
		w.out.fragment(b.Bytes(), mtu)
	} else {
		w.out.add(b.Bytes())
	}
	return packet.Accept
}

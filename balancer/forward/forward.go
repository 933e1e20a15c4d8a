// Package forward is the director's loop: read → decide → encapsulate or translate for the realserver → send.
package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Source returns packets, as a queue of a TUN device does.
type Source interface {
	// ReadBatch waits for packets and puts them into bufs. It returns os.ErrClosed to end the loop.
	ReadBatch(bufs []packet.Buf) (int, error)
}

// batch is the number of packets that are read before any is sent.
const batch = stats.MaxBatch

// Worker forwards the packets of one queue.
//
//	             ┌──────────────────── a batch ─────────────────────┐
//	TUN queue →  ReadBatch → Parse ⇒ Decide → Out → (Split, Fragment) → Send → realserver
//	    ↑                      │  ↑  │  │      └ DR: whole ───────────→ Send → neighbour
//	    │            fragments └──┘  │  └ counted reason                 ↑
//	    │     echo request, too big, │ no server, unknown connection ────┘ answers to the client
//	    │                            └→ Reply → Back ─┐
//	    └── WriteBatch ← VS/NAT: large requests, ─────┴─ replies, packets of no connection
//
// Packets of VS/NAT come from both sides. Replies are written back into the TUN device: see translate.go.
//
// The whole batch is parsed and prefetched before the first decision (⇒), so that the table's memory is in the cache by
// then. Nothing on this path allocates, logs, or waits for another worker longer than a shard of the connection table
// is locked; only fragments wait for the reassembler, which all workers share.
type Worker struct {
	id       int
	source   Source
	balancer *balancer.Balancer
	shared   *Shared
	clock    func() conntab.Ticks
	counters stats.Counters
	batches  stats.Batches
	out      egress.Output

	bufs  []packet.Buf
	infos []packet.Info       // of a batch; local variables would escape to the heap through the scheduler interface
	drops []drop.Reason       // results of parsing them
	from  []*balancer.Backend // of replies of VS/NAT; nil: it is none
	sink  uint8
	tally stats.Tally

	written  bool // packets can be written back into the TUN device
	ethernet bool // WorkerConfig.Ethernet
	largest  int  // size of the largest fragment in which the current packet came; 0: it came whole
	loops    loops
	requests bool // of VS/NAT wait in out for the TUN device

	capture  *Capture // of the batch; nil: none
	interest interest // of the capture in the current packet

	answers  answers
	resets   resets
	clients  [batch]egress.Peer // receivers of answers, and of packets of VS/NAT that do not leave by the TUN device
	answered int                // number of clients in use in this batch
}

// WorkerConfig has the parameters of a Worker.
type WorkerConfig struct {
	ID       int // from 0, less than the balancer's number of workers
	Source   Source
	Raw      egress.Port
	UDP      egress.Port   // for tunnels over UDP; nil: Raw sends their packets, too
	UDPPorts []uint16      // source ports of UDP
	Sealed   egress.Port   // for tunnels of WireGuard; nil: none
	Link     egress.Port   // for VS/DR; with Ethernet for answers to clients, too
	TUN      egress.Writer // for VS/NAT: the queue's writer; nil: no realserver of VS/NAT is reachable
	// Ethernet: the source's packets come from an Ethernet network, with their Ethernet header in front
	// (packet.Buf.Before), and no kernel has lowered their TTL. Answers go back to the frame's source: the client, or
	// its router. The host need not have a route to the client.
	Ethernet bool
	Balancer *balancer.Balancer
	Shared   *Shared
	Clock    func() conntab.Ticks
}

// NewWorker makes the worker that c describes.
func NewWorker(c WorkerConfig) *Worker {
	w := &Worker{id: c.ID, source: c.Source, balancer: c.Balancer, shared: c.Shared, clock: c.Clock,
		bufs: packet.NewBufs(batch), infos: make([]packet.Info, batch), drops: make([]drop.Reason, batch),
		from: make([]*balancer.Backend, batch)}
	w.written, w.ethernet = c.TUN != nil, c.Ethernet
	w.answers.init()
	w.resets.init()
	w.out.Init(egress.Config{Raw: c.Raw, UDP: c.UDP, UDPPorts: c.UDPPorts, Sealed: c.Sealed, Link: c.Link,
		TUN: c.TUN, IDs: c.Shared.ids, Tally: &w.tally,
		TooBig: c.Shared.tooBig})
	return w
}

// Read adds the worker's counts to t.
func (w *Worker) Read(t *stats.Tally) { w.counters.Read(t) }

// Batches returns the worker's counts of its batches.
func (w *Worker) Batches() *stats.Batches { return &w.batches }

// LastError returns the kernel's error for the last packet that it refused to send, nil for none.
func (w *Worker) LastError() error { return w.out.LastError() }

// Run forwards packets until the source is closed. It waits in the source's system call, so that the thread that the
// kernel wakes processes the batch.
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

// forward processes one batch.
func (w *Worker) forward(bufs []packet.Buf) {
	w.batches.Begin(len(bufs))
	snap, now := w.balancer.Snapshot(), w.clock()
	w.observe(w.shared.capture.Load())
	w.answers.free, w.resets.free, w.answered, w.requests = w.answers.room, w.resets.room, 0, false
	for i := range bufs {
		b, p := &bufs[i], &w.infos[i]
		w.tally.InPackets++
		w.tally.InBytes += uint64(b.Len())
		w.drops[i] = p.Parse(b.Bytes())
	}
	for i := range bufs { // a short loop of its own, so that several loads overlap
		w.from[i] = nil
		if w.drops[i] == drop.Accept {
			w.from[i] = snap.Backend(&w.infos[i])
			w.sink |= snap.Prefetch(&w.infos[i])
		}
	}
	for i := range bufs {
		b, p, d := &bufs[i], &w.infos[i], w.drops[i]
		if w.capture != nil {
			w.look(b.Bytes(), w.from[i] != nil)
		}
		switch d {
		case drop.Accept:
			d = w.packet(snap, b, p, w.from[i], now)
		case drop.Fragment:
			d = w.fragment(snap, b, p, now)
		}
		if d != drop.Accept {
			w.tally.Drop(d)
		}
	}
	w.out.Flush()
	w.counters.Add(&w.tally)
	w.batches.End()
}

// packet processes the packet in b. p describes its headers. from is snap.Backend's result. It adds the packets to send
// to w.out.
func (w *Worker) packet(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, from *balancer.Backend,
	now conntab.Ticks) drop.Reason {
	b.SetLen(p.Len) // removes a link's padding
	if b.Offload.Misplaced(p) {
		return drop.Offload
	}
	switch p.Flow.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return w.icmp(snap, b, p, packet.MaxLen, now)
	default:
		return drop.Protocol
	}
	if from != nil {
		dest := snap.Reply(p, from, now)
		if w.capture != nil {
			w.lookAtReply(b.Bytes(), p, dest)
		}
		if dest != nil {
			return w.reply(b, p, dest)
		}
	}
	dest, d := snap.Decide(p, now)
	if d == drop.NoService && w.foreign(snap, p) {
		if from != nil && early(snap, p) {
			return drop.NoConnection
		}
		return w.plain(b, p, now)
	}
	if d != drop.Accept {
		if w.interest == byRealserver {
			w.dropped(snap, b, p, now)
		}
		w.refuse(snap, d, b, p, now)
		return d
	}
	if w.interest == byRealserver {
		w.decided(dest, b.Bytes())
	}
	if w.ethernet && !packet.LowerTTL(b.Bytes()) {
		return w.timeExceeded(b, p, now)
	}
	inner := dest.Inner()
	switch dest.Kind {
	case method.DR:
		return w.toNeighbour(b, p, dest, now)
	case method.NAT:
		if d = w.request(b, p, dest, now); d == drop.Unreachable {
			w.refuse(snap, d, b, p, now)
		}
		return d
	}
	if b.Offload.GSO != packet.GSONone {
		return w.super(b, p, dest, inner, now)
	}
	if p.Len > inner && p.DF && p.Len > minMTU(p) {
		return w.tooBig(b, p, max(inner, minMTU(p)), now)
	}
	if d := b.Finish(); d != drop.Accept {
		return d
	}
	return w.send(b, p, dest, &p.Flow)
}

// send encapsulates the packet in b for dest and adds it to w.out, in outer fragments if it doesn't fit. f is the flow
// of the connection that the packet concerns.
func (w *Worker) send(b *packet.Buf, p *packet.Info, dest *balancer.Dest, f *packet.Flow) drop.Reason {
	if p.Len+dest.Overhead() > packet.MaxLen {
		return drop.TooBig // no packet is that large, fragments or not
	}
	dest.Count(w.id, 1, uint64(p.Len))
	var hop egress.Hop
	if port := w.out.SourcePort(p.Hash); dest.Hops == nil {
		hop = dest.Via.Out(b, p, port)
	} else {
		hop = named(b, p, dest, f, port)
	}
	w.out.AddWrapped(b, p, &hop, dest.MTU)
	return drop.Accept
}

// named encapsulates the packet in b for dest, which has Hops, and returns its hop. f is the flow of its connection.
func named(b *packet.Buf, p *packet.Info, dest *balancer.Dest, f *packet.Flow, port uint16) egress.Hop {
	if next, ok := dest.NextHop(netip.AddrPortFrom(f.Src, f.SrcPort)); ok {
		return dest.Hops.OutHop(b, port, next.As4())
	}
	return dest.Via.Out(b, p, port)
}

// super processes a GSO packet. One look-up serves all its segments.
func (w *Worker) super(b *packet.Buf, p *packet.Info, dest *balancer.Dest, inner int, now conntab.Ticks) drop.Reason {
	cut, d := packet.NewCut(b, p, inner)
	if d != drop.Accept {
		return d
	}
	n := cut.Headers + cut.Payload
	if n > inner && p.DF && n > minMTU(p) {
		return w.tooBig(b, p, max(inner, minMTU(p)), now)
	}
	if dest.Overhead()+n > packet.MaxLen {
		return drop.TooBig
	}
	dest.Count(w.id, 1, uint64(p.Len))
	var hop egress.Hop
	if port := w.out.SourcePort(p.Hash); dest.Hops == nil {
		hop = dest.Via.Out(b, p, port)
	} else {
		hop = named(b, p, dest, &p.Flow, port)
	}
	cut.Overhead = b.Len() - p.Len
	w.out.AddSegments(dest.Via, b, p, &hop, cut, dest.MTU)
	return drop.Accept
}

// fragment processes a fragment. When its packet is complete, the packet is processed like any other. Its DF bit is
// ignored: a packet that came in fragments is sent in outer fragments if it doesn't fit the tunnel.
func (w *Worker) fragment(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) drop.Reason {
	largest := w.shared.fragments.add(b, now, &w.tally)
	if largest == 0 {
		return drop.Accept // it waits, or is counted as dropped
	}
	if d := p.Parse(b.Bytes()); d != drop.Accept {
		return d
	}
	w.largest = largest
	defer func() { w.largest = 0 }()
	from := snap.Backend(p)
	if w.capture != nil {
		w.lookAgain(b.Bytes(), from != nil)
	}
	if p.Flow.Proto == packet.ProtoICMP || p.Flow.Proto == packet.ProtoICMPv6 {
		return w.icmp(snap, b, p, pingMTU, now)
	}
	p.DF = false
	return w.packet(snap, b, p, from, now)
}

// pingMTU is the size of the fragments of an echo reply, if the request came in fragments. The path MTU to the client
// is unknown; pingMTU is IPv6's minimum.
const pingMTU = encap.MinMTU6

// icmp answers a ping of a VIP. A ping of the director's own checks goes to its realserver instead. An error from a
// client's path goes to the realserver whose packet it quotes, and one from a VS/NAT realserver's path to the client.
// An echo reply, or an error of VS/NAT, is sent in fragments of mtu bytes if it is longer and has no options.
func (w *Worker) icmp(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, mtu int, now conntab.Ticks) drop.Reason {
	if d := b.Finish(); d != drop.Accept {
		return d
	}
	q, d := packet.QuotedFlow(b.Bytes())
	if d == drop.Accept {
		f := q.Flow.Reverse()
		if dest := snap.Find(f, now); dest != nil {
			w.decided(dest, b.Bytes())
			if dest.Kind == method.NAT {
				return w.errorToServer(b, p, &q, dest, mtu)
			}
			if w.ethernet && !packet.LowerTTL(b.Bytes()) {
				return drop.TTL
			}
			return w.sendICMP(b, p, dest, &f, now)
		}
		if w.errorToClient(snap, b, p, &q, mtu, now) {
			return drop.Accept
		}
		d = drop.NoConnection
	}
	if w.foreign(snap, p) {
		return w.plain(b, p, now)
	}
	if d != drop.ICMP {
		return d
	}
	if f, ok := packet.EchoFlow(b.Bytes(), p); ok {
		if dest := snap.Pinned(f, now); dest != nil {
			w.decided(dest, b.Bytes())
			return w.sendICMP(b, p, dest, &f, now)
		}
	}
	if !snap.HasVIP(p.Flow.Dst) {
		return drop.NoService
	}
	if packet.NeighbourDiscovery(b.Bytes(), p) {
		return drop.Neighbour // a neighbour checks a VIP on the LAN; the kernel forwards that like any other packet
	}
	if d := packet.EchoReply(b.Bytes()); d != drop.Accept {
		return d
	}
	hop := w.toClient(b, p)
	w.sendWhole(b, p, &hop, mtu)
	return drop.Accept
}

// sendICMP sends the complete ICMP message in b to a realserver. f is the flow of the connection that it concerns.
func (w *Worker) sendICMP(b *packet.Buf, p *packet.Info, dest *balancer.Dest, f *packet.Flow,
	now conntab.Ticks) drop.Reason {
	if dest.Kind == method.DR {
		return w.toNeighbour(b, p, dest, now)
	}
	return w.send(b, p, dest, f)
}

// sendWhole adds the packet in b to w.out, in fragments of mtu bytes if it is longer and has no options. p describes
// the lengths of its headers.
func (w *Worker) sendWhole(b *packet.Buf, p *packet.Info, hop *egress.Hop, mtu int) {
	if p.Len > mtu && (p.Offset == packet.IPv4HeaderLen || p.Offset == packet.IPv6HeaderLen) { // no options
		w.out.AddFragments(b.Bytes(), hop, mtu)
	} else {
		w.out.Add(b.Bytes(), hop)
	}
}

// answer adds a, an answer to the packet in b that p describes, to w.out.
func (w *Worker) answer(a []byte, b *packet.Buf, p *packet.Info) {
	w.out.Mark = w.interest == wanted
	hop := w.toClient(b, p)
	w.out.Add(a, &hop)
}

// toClient returns the hop of an answer to the packet in b that p describes. It is called before b changes.
func (w *Worker) toClient(b *packet.Buf, p *packet.Info) egress.Hop {
	h := w.hop(p.Flow.Src, p.Flow.Dst)
	if w.ethernet {
		w.clients[w.answered-1].MAC = packet.Ethernet(b.Before(packet.EthernetHeaderLen)).Src()
		h.Kind = egress.Link
	}
	return h
}

// hop returns the hop of a packet from src to dst without a tunnel. It is called at most once for a packet that was
// read.
func (w *Worker) hop(dst, src netip.Addr) egress.Hop {
	to := &w.clients[w.answered]
	w.answered++
	*to = egress.Peer{Dst: dst, Src: src}
	return egress.Hop{To: to}
}

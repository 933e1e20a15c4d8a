package endpoint

import (
	"errors"
	"os"
	"sync/atomic"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Inbound takes the packets of point-to-point tunnels out of a source, and writes them to the tunnels' devices. The
// other packets it passes on: it is a Source itself.
//
//	source → ReadBatch → find ─┬→ no tunnel's: to the caller
//	                           └→ Decap → clamp MSS → coalesce → sink of the tunnel's device
//
// A packet belongs to a tunnel by its outer source, protocol, UDP port and GRE key, and by whether WireGuard has
// brought it. Its outer destination is an address of this host, and counts for nothing: a raw IPv6 socket and a UDP
// socket do not report it.
type Inbound struct {
	source    Source
	peers     *atomic.Pointer[Peers]
	id        int // of this source: the index of its sinks
	merge     bool
	sealed    bool // WireGuard has brought the packets
	strangers *stats.Counters

	finds    [batch]found
	parts    []packet.Buf
	used     int // of parts
	coalesce coalescer
	tally    stats.Tally // of end
	end      *End        // whose packets are queued
	out      []*packet.Buf
	links    []int8 // lengths of their link-layer headers
	accepted int    // packets of out; each piece counts as one
}

// NewInbound makes an Inbound. peers may change at any time; nil means no tunnels. id is the index of the Inbound among
// those of the same tunnels. With merge, consecutive segments of a connection become one packet in several pieces. A
// sealed Inbound takes the packets of tunnels in WireGuard only, any other one those of the other tunnels only.
// strangers counts the packets to a port of a tunnel that are not its peer's, as drop.NotPeer.
func NewInbound(source Source, peers *atomic.Pointer[Peers], id int, merge, sealed bool,
	strangers *stats.Counters) *Inbound {
	return &Inbound{source: source, peers: peers, id: id, merge: merge, sealed: sealed, strangers: strangers}
}

// ReadBatch is Source.ReadBatch for the packets that belong to no tunnel.
func (w *Inbound) ReadBatch(bufs []packet.Buf) (int, error) {
	for {
		n, err := w.source.ReadBatch(bufs[:min(len(bufs), batch)])
		if n == 0 {
			return 0, err
		}
		if n = len(w.Take(bufs[:n])); n > 0 || err != nil {
			return n, err
		}
	}
}

// Take writes the packets of tunnels in bufs, as many as stats.MaxBatch at the most, to their devices. It moves the
// others to the front, and returns them. It is for packets that no source has. One goroutine calls it at a time.
func (w *Inbound) Take(bufs []packet.Buf) (rest []packet.Buf) {
	if peers := w.peers.Load(); peers.any(w.sealed) {
		return bufs[:w.take(peers, bufs)]
	}
	return bufs
}

// take writes the packets of tunnels in bufs to their devices. It moves the others to the front, and returns how many
// there are.
func (w *Inbound) take(peers *Peers, bufs []packet.Buf) (rest int) {
	strangers := uint64(0)
	for i := range bufs {
		f := &w.finds[i]
		if *f = peers.find(&bufs[i], w.sealed); f.end != nil {
			w.receive(f, &bufs[i])
		} else if f.stranger {
			strangers++
		}
	}
	w.flush()
	w.end = nil
	if strangers > 0 {
		t := stats.Tally{InPackets: strangers}
		t.DropN(drop.NotPeer, strangers)
		w.strangers.Add(&t)
	}
	for i := range bufs { // nothing refers to the bufs any more
		if f := &w.finds[i]; f.end != nil || f.stranger {
			continue
		}
		if i != rest {
			bufs[rest], bufs[i] = bufs[i], bufs[rest]
		}
		rest++
	}
	return rest
}

// receive processes the packet in b, which is behind its outer IP and UDP headers.
func (w *Inbound) receive(f *found, b *packet.Buf) {
	if w.end != f.end {
		w.flush()
		w.end = f.end
	}
	headers := packet.IPv4HeaderLen
	if f.end.Remote.Is6() {
		headers = packet.IPv6HeaderLen
	}
	if f.end.Decap.Kind.UDP() {
		headers += packet.UDPHeaderLen
	}
	if b.Offload.GSO != packet.GSOUDP {
		w.tally.InPackets++
		w.tally.InBytes += uint64(headers + b.Len())
		w.packet(f, b)
		return
	}
	if w.parts == nil {
		w.parts = make([]packet.Buf, maxParts)
	}
	size := int(b.Offload.Size)
	for at := 0; at < b.Len(); at += size { // as Worker.datagrams
		n := min(size, b.Len()-at)
		w.tally.InPackets++
		w.tally.InBytes += uint64(headers + n)
		if w.used == len(w.parts) {
			w.flush()
		}
		part := &w.parts[w.used]
		*part = b.Part(at, n)
		w.used++
		w.packet(f, part)
	}
}

// packet takes the tunnel header off the packet in b, and queues what is behind it.
func (w *Inbound) packet(f *found, b *packet.Buf) {
	e := f.end
	d := e.Decap.Decap(b, f.proto, f.class)
	if d != drop.Accept {
		w.tally.Drop(d)
		return
	}
	var in inside
	link, ip := 0, true
	if e.Decap.Ethernet {
		var version int
		link, version = packet.Ethernet(b.Bytes()).IP()
		b.Strip(link)
		ip = version == 4 && packet.IPv4(b.Bytes()).Check() == drop.Accept ||
			version == 6 && packet.IPv6(b.Bytes()).Check() == drop.Accept
	}
	if ip {
		if in, _, _, _, d = transport(b.Bytes()); d != drop.Accept && link == 0 {
			w.tally.Drop(d)
			return
		}
		ip = d == drop.Accept // a frame's contents are no matter of the tunnel's
	}
	in.link = link
	if ip && !in.fragment {
		if d = w.offloads(e, b, in); d != drop.Accept {
			w.tally.Drop(d)
			return
		}
	}
	w.queue(b, in, ip)
}

// offloads detects work that is left to do in the packet in b, and lowers the MSS of a SYN, whose checksum it keeps
// right if it is finished.
func (w *Inbound) offloads(e *End, b *packet.Buf, in inside) drop.Reason {
	p := b.Bytes()
	most, size := e.MSS4, e.MTU-packet.IPv4HeaderLen-packet.TCPHeaderLen
	if packet.Version(p) == 6 {
		most, size = e.MSS6, e.MTU-packet.IPv6HeaderLen-packet.TCPHeaderLen
	}
	syn := false
	if in.proto == packet.ProtoTCP && len(p) >= in.offset+packet.TCPHeaderLen {
		t := packet.TCP(p[in.offset:])
		if syn = t.Flags()&packet.FlagSYN != 0; !syn && len(t) > packet.TCPHeaderLen+minSegment {
			if noted := e.Sizes.find(p, in.offset); noted > 0 {
				size = min(size, max(noted, minSegment))
			}
		}
	}
	d := offloaded(b, in, size)
	if syn {
		packet.ClampMSS(b, in.offset, most)
	}
	return d
}

// minSegment is the MSS, in bytes, that no GSO packet goes below, whatever a SYN has advertised: TCP_MIN_MSS of Linux.
const minSegment = 88

// queue queues the packet in b. ip reports whether it is an IP packet.
func (w *Inbound) queue(b *packet.Buf, in inside, ip bool) {
	w.accepted++
	if !ip || in.fragment {
		w.coalesce.finish() // it may belong to any connection
	} else if w.merge && in.proto == packet.ProtoTCP && w.coalesce.add(b, in) {
		return
	}
	w.out, w.links = append(w.out, b), append(w.links, int8(in.link))
}

// flush writes the queued packets, and adds the counts to those of their tunnel.
func (w *Inbound) flush() {
	w.coalesce.finish()
	if w.end == nil {
		return
	}
	if len(w.out) > 0 {
		n, bytes, err := w.write(w.end.Sinks[w.id])
		w.tally.OutPackets += uint64(n)
		w.tally.OutBytes += uint64(bytes)
		if !errors.Is(err, os.ErrClosed) { // otherwise the tunnel has just been removed
			w.tally.DropN(drop.TUNError, uint64(w.accepted-n))
		}
	}
	w.end.Counters.Add(&w.tally)
	w.out, w.links, w.accepted, w.used = w.out[:0], w.links[:0], 0, 0
}

// write writes the queued packets to s. It returns the number of packets that s took, each piece counting as one, and
// their bytes, without link-layer headers.
func (w *Inbound) write(s EndSink) (n, bytes int, err error) {
	if !w.end.Decap.Ethernet {
		return s.WriteBatch(w.out)
	}
	for i, b := range w.out {
		if sent := s.Send(b.Before(int(w.links[i])), b); sent != nil {
			err = sent
			continue
		}
		n += b.Pieces()
		bytes += b.ChainLen()
	}
	return n, bytes, err
}

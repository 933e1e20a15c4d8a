package egress

import (
	"errors"
	"math/bits"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// sendBatch is the number of packets that wait for one system call.
const sendBatch = 64

// Config is the ports, IDs and counters of an Output.
type Config struct {
	Raw      Port
	UDP      Port     // nil: none
	Sealed   Port     // of Kind WireGuard; nil: none
	Link     Port     // nil: none
	TUN      Writer   // nil: none
	UDPPorts []uint16 // source ports of UDP, at least one
	IDs      *IDs
	Tally    *stats.Tally // counts packets that are sent or refused
	TooBig   func()       // called when the kernel refuses a packet that is larger than the path MTU
}

// An Observer is notified of packets that were sent.
type Observer interface {
	// Sent is called with packets that the kernel has accepted. They are borrowed until Sent returns.
	Sent(out []Outgoing)
}

// Output queues and sends the packets of one worker. The bytes of an added packet must not change until Flush. One
// goroutine uses an Output, except for LastError.
type Output struct {
	Observer Observer // nil: none
	Mark     bool     // of packets that are added from now on, for the Observer

	raw, udp   Port
	sealed     Port
	link       Port
	tun        Writer
	ports      []uint16 // of udp
	ids        *IDs
	tally      *stats.Tally
	pathShrunk func()
	refusals   int          // consecutive calls that udp has refused
	lastErr    atomic.Int32 // errno of the last packet that the kernel refused

	toLink      []Outgoing
	toTUN       []Outgoing
	written     []*packet.Buf // of toTUN
	batch       []Outgoing
	inUDP       int    // packets of Kind UDP in batch
	headerArena []byte // for the headers of segments and fragments
	free        []byte // the unused part of headerArena

	groTTL    [256]uint8 // decrement of the next datagram's TTL, by the hash of its flow
	gso       gsoBatch
	segments  []packet.Segment // of one GSO packet
	fragments []packet.Segment // of one packet
	whole     []packet.Buf     // one datagram of a GSO packet that has to be fragmented
}

// Init prepares o. It is called once, before all other methods.
func (o *Output) Init(c Config) {
	o.link, o.tun, o.sealed = c.Link, c.TUN, c.Sealed
	o.toLink, o.toTUN = make([]Outgoing, 0, sendBatch+packet.MaxPieces), make([]Outgoing, 0, sendBatch)
	o.written = make([]*packet.Buf, 0, sendBatch)
	o.raw, o.udp, o.ids, o.tally, o.pathShrunk = c.Raw, c.UDP, c.IDs, c.Tally, c.TooBig
	if c.UDP != nil {
		o.ports = c.UDPPorts
	}
	o.batch = make([]Outgoing, 0, sendBatch+packet.MaxPieces)
	o.segments = make([]packet.Segment, 0, packet.MaxPieces)
	o.fragments = make([]packet.Segment, 0, packet.MaxPieces)
	o.headerArena = make([]byte, packet.PieceRoom+fragmentRoom)
	o.free = o.headerArena
	o.whole = packet.NewBufs(1)
}

// LastError is the kernel's error for the last packet that it refused to send, nil if there was none.
func (o *Output) LastError() error {
	if e := o.lastErr.Load(); e != 0 {
		return unix.Errno(e)
	}
	return nil
}

// SourcePort is the UDP source port for a flow of this hash. All packets of a flow have it, GSO packets or not.
func (o *Output) SourcePort(hash uint64) uint16 {
	if len(o.ports) == 0 {
		return encap.SourcePort(hash)
	}
	n, _ := bits.Mul64(hash, uint64(len(o.ports)))
	return o.ports[n]
}

// Add adds the packet b. One of Kind Link is complete, except for the ID of an IPv4 packet, which may be 0: the kernel
// fills in nothing.
func (o *Output) Add(b []byte, h *Hop) {
	if h.Kind == Link {
		o.addLink(b, h)
		return
	}
	if len(o.batch) >= sendBatch {
		o.Flush()
	}
	o.push(b, nil, h)
	if h.Kind == UDP {
		o.inUDP++
	}
}

// addLink is Add for Kind Link.
func (o *Output) addLink(b []byte, h *Hop) {
	if ip := packet.IPv4(b); ip.Version() == 4 && ip.ID() == 0 && !ip.DF() { // RFC 6864, section 4.1
		ip.SetID(o.ids.next())
		ip.SetChecksum()
	}
	if len(o.toLink) >= sendBatch {
		o.Flush()
	}
	o.extend(&o.toLink, h).Head = b
}

// push appends a packet to the batch. It copies h field by field: a wide load of a Hop whose fields were just stored
// waits for the processor's store buffer.
func (o *Output) push(head, body []byte, h *Hop) {
	o.batch = append(o.batch, Outgoing{})
	p := &o.batch[len(o.batch)-1]
	p.Head, p.Body, p.Mark = head, body, o.Mark
	p.To, p.Kind, p.SrcPort, p.Class, p.TTL, p.DF = h.To, h.Kind, h.SrcPort, h.Class, h.TTL, h.DF
}

// AddFragments adds the packet b as fragments of at most mtu bytes. Its IP header has no extension headers that routers
// read, and options only if mtu is not small: the room for the fragments' headers is fragmentRoom. Fragments of Kind
// Link have the packet's own ID.
func (o *Output) AddFragments(b []byte, h *Hop, mtu int) {
	o.reserve(fragmentRoom)
	o.fragment(b, h, mtu)
}

// AddWrapped adds the wrapped packet in b, in fragments if it is larger than mtu. p describes the inner packet.
func (o *Output) AddWrapped(b *packet.Buf, p *packet.Info, h *Hop, mtu int) {
	if mayMerge(p, h) {
		o.defeatGRO(b.Bytes(), p, h)
	}
	if b.Len() > mtu && h.Kind != WireGuard {
		o.AddFragments(b.Bytes(), h, mtu)
		return
	}
	o.Add(b.Bytes(), h)
}

// AddSegments splits the GSO packet in b, which is wrapped in t, into segments as c describes, and adds them. p
// describes the inner packet. It fragments segments that are larger than mtu.
func (o *Output) AddSegments(t Tunnel, b *packet.Buf, p *packet.Info, h *Hop, c packet.Cut, mtu int) {
	if c.Overhead+c.Headers+c.Payload > mtu && h.Kind != WireGuard {
		o.addFragmentedSegments(t, b, p, h, c, mtu)
		return
	}
	together := h.Kind == UDP && o.udp != nil
	if together {
		o.Flush() // keeps the order of packets
	}
	o.reserve((c.Segments(p.Len) + 1) * (c.Overhead + c.Headers))
	before := len(o.batch)
	o.segments, o.free = packet.Split(o.segments[:0], b, p, c, o.free)
	o.queue(o.segments, h)
	if together && o.sendSegments() {
		return
	}
	for i := before; i < len(o.batch); i++ {
		s := &o.batch[i]
		if mayMerge(p, h) {
			o.defeatGRO(s.Head, p, h)
		}
		t.Seal(s.Segment)
	}
}

// queue appends segs to the batch.
func (o *Output) queue(segs []packet.Segment, h *Hop) {
	for _, s := range segs {
		o.push(s.Head, s.Body, h)
	}
}

// addFragmentedSegments is AddSegments for segments that are larger than mtu. It copies each segment: the case is rare.
func (o *Output) addFragmentedSegments(t Tunnel, b *packet.Buf, p *packet.Info, h *Hop, c packet.Cut, mtu int) {
	o.Flush()
	o.reserve(packet.PieceRoom + fragmentRoom)
	o.segments, o.free = packet.Split(o.segments[:0], b, p, c, o.free)
	for _, s := range o.segments {
		w := &o.whole[0]
		room := w.Room()
		n := copy(room, s.Head)
		w.SetLen(n + copy(room[n:], s.Body))
		t.Seal(packet.Segment{Head: w.Bytes()})
		left := o.free
		o.fragment(w.Bytes(), h, mtu)
		o.send()
		o.sendLink()
		o.free = left
	}
	o.Flush()
}

// fragmentRoom is the room for the headers of one packet's fragments, in bytes.
const fragmentRoom = packet.MaxPieces * encap.Fragment6HeadLen

// fragment is AddFragments without a check for room.
func (o *Output) fragment(b []byte, h *Hop, mtu int) {
	if h.To.Dst.Is4() {
		ip := packet.IPv4(b)
		id := ip.ID()
		if h.Kind != Link || id == 0 {
			id = o.ids.next()
		}
		o.fragments = encap.Fragment(o.fragments[:0], ip, max(mtu, encap.MinMTU), id, o.free)
		o.free = o.free[(len(o.fragments)-1)*ip.HeaderLen():]
	} else {
		o.fragments = encap.Fragment6(o.fragments[:0], b, max(mtu, encap.MinMTU6), o.ids.next6(), o.free)
		o.free = o.free[len(o.fragments)*encap.Fragment6HeadLen:]
	}
	if h.Kind == Link {
		o.queueLink(o.fragments, h)
		return
	}
	raw := *h
	raw.Kind = Raw
	o.queue(o.fragments, &raw)
}

// queueLink appends segs, fragments of a packet of Kind Link, to its batch. It computes their IPv4 header checksums.
func (o *Output) queueLink(segs []packet.Segment, h *Hop) {
	for _, s := range segs {
		if h.To.Dst.Is4() {
			packet.IPv4(s.Head).SetChecksum()
		}
		p := o.extend(&o.toLink, h)
		p.Head, p.Body = s.Head, s.Body
	}
}

// mayMerge reports whether GRO at the tunnel's far end may merge p with other packets.
func mayMerge(p *packet.Info, h *Hop) bool { return p.Flow.Proto == packet.ProtoUDP && h.Kind != UDP }

// defeatGRO varies the outer TTL so that GRO at the tunnel's far end does not merge datagrams of a flow. b is the
// datagram p in a tunnel. The kernel there merges inner datagrams if a server uses UDP_GRO (HTTP/3, WireGuard). It does
// not report the datagrams' sizes to raw sockets. Each datagram therefore has another outer TTL than the three before
// it, unless its TTL is at most 32 (Linux net/ipv4/udp_offload.c, udp_gro_receive_segment, compares the TTL since 6.9).
func (o *Output) defeatGRO(b []byte, p *packet.Info, h *Hop) {
	lower := &o.groTTL[p.Hash%uint64(len(o.groTTL))]
	const least = 32
	if h.To.Dst.Is6() {
		if ip := packet.IPv6(b); ip.HopLimit() > least {
			ip.SetHopLimit(ip.HopLimit() - *lower)
		}
	} else if ip := packet.IPv4(b); ip.TTL() > least {
		ip.SetTTL(ip.TTL() - *lower)
	}
	*lower = (*lower + 1) % 4
}

// maxRefusals is the number of consecutive refused calls after which an Output stops using its port of UDP sockets.
const maxRefusals = 1000

// sendUDP is udp.Send. The kernel refuses to send packets together if it is too old. Before Linux 6.11 it also refuses
// if the device has no checksum offload, or if the path uses IPsec. Other errors concern a packet or a temporary state:
// no route, a smaller path MTU, a firewall.
func (o *Output) sendUDP(out []Outgoing) (int, error) {
	n, err := o.udp.Send(out)
	switch err {
	case nil:
		o.refusals = 0
		o.sent(out[:n])
	case unix.EOPNOTSUPP, unix.EIO:
		if o.refusals++; o.refusals == maxRefusals {
			o.udp = nil
		}
	}
	return n, err
}

// sendSegments sends the batch, the segments of one GSO packet, by as few calls as possible. If the kernel refuses a
// call, it returns false and leaves the rest in the batch.
func (o *Output) sendSegments() bool {
	for len(o.batch) > 0 {
		n, err := o.sendUDP(o.batch)
		if errors.Is(err, os.ErrClosed) {
			break
		}
		if err != nil {
			return false
		}
		o.batch = o.batch[:copy(o.batch, o.batch[n:])]
	}
	o.batch = o.batch[:0]
	return true
}

// reserve makes sure that there is room for n bytes of headers.
func (o *Output) reserve(n int) {
	if len(o.batch) >= sendBatch || len(o.toLink) >= sendBatch || len(o.free) < n {
		o.Flush()
	}
}

// Flush sends all packets that have been added.
func (o *Output) Flush() {
	o.send()
	o.sendLink()
	o.free = o.headerArena
	if len(o.toTUN) > 0 {
		o.write()
	}
}

// AddWhole adds the packet in b, whose hop is of Kind Link or TUN. A GSO packet stays whole, and an unfinished checksum
// unfinished. b must not change until Flush.
func (o *Output) AddWhole(b *packet.Buf, h *Hop) {
	to := &o.toTUN
	if h.Kind == Link {
		to = &o.toLink
	}
	if len(*to) >= sendBatch {
		o.Flush()
	}
	p := o.extend(to, h)
	p.Head, p.Buf = b.Bytes(), b
}

// extend appends a packet with the hop h, whose bytes are not set, to a batch.
func (o *Output) extend(to *[]Outgoing, h *Hop) *Outgoing {
	*to = append(*to, Outgoing{})
	p := &(*to)[len(*to)-1]
	p.Mark, p.To, p.Kind = o.Mark, h.To, h.Kind
	return p
}

// sendLink sends the packets of Kind Link.
func (o *Output) sendLink() {
	o.sendTo(o.link, o.toLink)
	o.toLink = o.toLink[:0]
}

// write writes the packets of Kind TUN. A packet that the kernel refuses does not affect the others.
func (o *Output) write() {
	o.written = o.written[:0]
	for i := range o.toTUN {
		o.written = append(o.written, o.toTUN[i].Buf)
	}
	for at := 0; at < len(o.toTUN); at++ {
		n, err := o.tun.Write(o.written[at:])
		o.sent(o.toTUN[at : at+n])
		at += n
		if _, refused := err.(unix.Errno); err != nil && !refused { // the reader of the device reports its end
			for range o.toTUN[at:] {
				o.tally.Drop(drop.SendError)
			}
			break
		}
		if err != nil {
			o.refused(err)
		}
	}
	o.toTUN = o.toTUN[:0]
}

// send sends the batch. A packet that the kernel refuses does not affect the others.
func (o *Output) send() {
	if o.inUDP > 1 && o.udp != nil && len(o.batch) <= sendBatch {
		o.sendTogether()
	}
	o.inUDP = 0
	for rest := o.batch; len(rest) > 0; {
		n := 1
		for n < len(rest) && (rest[n].Kind == WireGuard) == (rest[0].Kind == WireGuard) {
			n++
		}
		if rest[0].Kind == WireGuard {
			o.sendSealed(rest[:n])
		} else {
			o.sendTo(o.raw, rest[:n])
		}
		rest = rest[n:]
	}
	o.batch = o.batch[:0]
}

// sendSealed sends packets of Kind WireGuard.
func (o *Output) sendSealed(out []Outgoing) {
	if o.sealed == nil {
		for range out {
			o.refused(unix.ENOKEY)
		}
		return
	}
	o.sendTo(o.sealed, out)
}

// sendTo sends packets by a port.
func (o *Output) sendTo(port Port, out []Outgoing) {
	for len(out) > 0 {
		n, err := port.Send(out)
		o.sent(out[:n])
		out = out[n:]
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrClosed) {
			break
		}
		o.refused(err)
		out = out[1:]
	}
}

// sent counts packets that the kernel has accepted.
func (o *Output) sent(out []Outgoing) {
	if o.Observer != nil {
		o.Observer.Sent(out)
	}
	for i := range out {
		o.tally.OutPackets++
		o.tally.OutBytes += uint64(out[i].Len())
	}
}

// refused counts a packet that the kernel has refused with err.
func (o *Output) refused(err error) {
	errno, ok := err.(unix.Errno)
	if ok {
		o.lastErr.Store(int32(errno))
	}
	if errno == unix.EMSGSIZE {
		o.tally.Drop(drop.TooBig)
		o.pathShrunk()
	} else {
		o.tally.Drop(drop.SendError)
	}
}

package forward

import (
	"errors"
	"math/bits"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
)

// Sink is where packets go: a raw socket.
type Sink interface {
	// Send sends the first packets of segs and returns how many went out; 0 and an error when the first was refused: a
	// unix.Errno, not wrapped, since each refused packet has one.
	Send(segs []packet.Segment) (int, error)
}

// SegmentSink is where the segments of super-packets go that are wrapped in UDP: sockets that send many by one call.
type SegmentSink interface {
	// Ports are the source ports that the segments may have, at least one.
	Ports() []uint16
	// Send sends the first of segs, which have one source port, one destination and, but for the last, one size, and
	// returns how many went out. Their IP and UDP headers are made by the kernel. An error is about all of them: a
	// unix.Errno, not wrapped, EOPNOTSUPP or EIO where that can't be done.
	Send(segs []packet.Segment) (int, error)
}

// sendBatch is the number of packets that wait for one system call.
const sendBatch = 64

// output is what a worker has to send. What is added stays where it is until flush, and is cut no sooner than it is
// added.
type output struct {
	sink    Sink
	udp     SegmentSink // nil: none
	ports   []uint16    // of udp
	tally   *packet.Tally
	shared  *Shared
	tap     *Capture     // of the batch; nil: nobody looks
	refused int          // calls that udp can't, since one that it could
	lastErr atomic.Int32 // errno of the last packet that the kernel refused

	segs  []packet.Segment
	inUDP int    // of segs: whole packets in UDP, some of which may go together
	room  []byte // for the headers of pieces
	free  []byte // what is left of it

	turns  [256]uint8 // of the datagrams of one flow, by hash
	trains trains
	large  [packet.MaxPieces]packet.Segment // datagrams of a super-packet that have to be fragmented each
	spare  []packet.Buf                     // one of them
}

func (o *output) init(sink Sink, udp SegmentSink, tally *packet.Tally, shared *Shared) {
	o.sink, o.udp, o.tally, o.shared = sink, udp, tally, shared
	if udp != nil {
		o.ports = udp.Ports()
	}
	o.segs = make([]packet.Segment, 0, sendBatch+packet.MaxPieces)
	o.room = make([]byte, packet.PieceRoom+fragmentRoom)
	o.free = o.room
	o.spare = packet.NewBufs(1)
}

// add appends a packet.
func (o *output) add(p []byte) {
	if len(o.segs) >= sendBatch {
		o.flush()
	}
	o.segs = append(o.segs, packet.Segment{Head: p})
}

// addWrapped is add for a packet in a tunnel.
func (o *output) addWrapped(inUDP bool, p []byte) {
	o.add(p)
	if inUDP {
		o.inUDP++
	}
}

// fragment appends the packet p, of an IP header without options or extension headers, as pieces of at most mtu bytes.
func (o *output) fragment(p []byte, mtu int) {
	o.reserve(fragmentRoom)
	o.cut(p, mtu)
}

// fragmentRoom is what the headers of one packet's fragments may need, in bytes.
const fragmentRoom = packet.MaxPieces * encap.Fragment6HeadLen

// cut is fragment, where there is room.
func (o *output) cut(p []byte, mtu int) {
	before := len(o.segs)
	if p[0]>>4 == 6 {
		o.segs = encap.Fragment6(o.segs, p, max(mtu, encap.MinMTU6), o.shared.nextID6(), o.free)
		o.free = o.free[(len(o.segs)-before)*encap.Fragment6HeadLen:]
		return
	}
	o.segs = encap.Fragment(o.segs, p, max(mtu, encap.MinMTU), o.shared.nextID(), o.free)
	o.free = o.free[(len(o.segs)-before-1)*packet.IPv4HeaderLen:]
}

// port is the UDP source port for a flow of this hash, if its tunnel has one. A flow keeps it, whether its packets are
// super-packets or not.
func (o *output) port(hash uint64) uint16 {
	if len(o.ports) == 0 {
		return encap.SourcePort(hash)
	}
	n, _ := bits.Mul64(hash, uint64(len(o.ports)))
	return o.ports[n]
}

// segment appends the super-packet in b, wrapped for t, as packets of so many bytes of headers and payload.
func (o *output) segment(t method.Method, inUDP bool, b *packet.Buf, p *packet.Info, headers, payload int) {
	pieces := (p.Len-headers+payload-1)/payload + 1
	large := inUDP && o.udp != nil
	if large {
		o.flush() // what has come before goes before
	}
	o.reserve(pieces * (t.Overhead() + headers))
	before := len(o.segs)
	o.segs, o.free = packet.Split(o.segs, b, p, t.Overhead(), headers, payload, o.free)
	if large && o.sendLarge() {
		return
	}
	for _, s := range o.segs[before:] {
		o.apart(inUDP, p, s.Head)
		t.Seal(s)
	}
}

// apart keeps the datagram p, wrapped for t in head, from being put together with others of its flow where its tunnel
// ends. The kernel there does that (GRO) as soon as a server asks for it (UDP_GRO: HTTP/3, WireGuard), before it is out
// of the tunnel, and does not tell the agent's raw sockets where each ends, as it tells UDP sockets. So each has
// another outer TTL than the three before it, if it is not near its end (Linux net/ipv4/udp_offload.c,
// udp_gro_receive_segment, minds that since 6.9).
func (o *output) apart(inUDP bool, p *packet.Info, head []byte) {
	if p.Flow.Proto != packet.ProtoUDP || inUDP {
		return
	}
	turn := &o.turns[p.Hash%uint64(len(o.turns))]
	ttl := &head[8]
	if head[0]>>4 == 6 {
		ttl = &head[7]
	}
	if *ttl > 32 {
		*ttl -= *turn
	}
	*turn = (*turn + 1) % 4
}

// refusals is the number of calls after which who can't send many packets by one is not asked for that any more.
const refusals = 1000

// sendUDP is udp.Send. It can't where the kernel is too old, or, before Linux 6.11, where the device leaves checksums
// to the kernel or there is IPsec on the way. Other errors are about a packet or the moment, however long that lasts:
// no route, a path that has shrunk, a firewall.
func (o *output) sendUDP(segs []packet.Segment) (int, error) {
	n, err := o.udp.Send(segs)
	switch err {
	case nil:
		o.refused = 0
	case unix.EOPNOTSUPP, unix.EIO:
		if o.refused++; o.refused == refusals {
			o.udp = nil
		}
	}
	return n, err
}

// sendLarge sends all of segs, which are one super-packet's, by as few calls as can be, and counts them. It returns
// false, with what is left in segs, where the kernel refuses that.
func (o *output) sendLarge() bool {
	for len(o.segs) > 0 {
		n, err := o.sendUDP(o.segs)
		if errors.Is(err, os.ErrClosed) {
			break
		}
		if err != nil {
			return false
		}
		if o.tap != nil {
			o.tap.sent(o.segs[:n])
		}
		for i := range o.segs[:n] {
			o.tally.OutPackets++
			o.tally.OutBytes += uint64(o.segs[i].Len())
		}
		o.segs = o.segs[:copy(o.segs, o.segs[n:])]
	}
	o.segs = o.segs[:0]
	return true
}

// segmentAndFragment is segment for datagrams that are larger than mtu: each goes out in fragments. That is rare enough
// for a copy.
func (o *output) segmentAndFragment(t method.Method, b *packet.Buf, p *packet.Info, headers, payload, mtu int) {
	o.flush()
	o.reserve(packet.PieceRoom + fragmentRoom)
	o.segs, o.free = packet.Split(o.segs, b, p, t.Overhead(), headers, payload, o.free)
	datagrams := o.large[:copy(o.large[:], o.segs)]
	o.segs = o.segs[:0]
	for _, d := range datagrams {
		s := &o.spare[0]
		room := s.Room()
		n := copy(room, d.Head)
		s.SetLen(n + copy(room[n:], d.Body))
		t.Seal(packet.Segment{Head: s.Bytes()})
		left := o.free
		o.cut(s.Bytes(), mtu)
		o.send()
		o.free = left
	}
	o.flush()
}

// reserve makes sure that there is room for so many bytes of headers.
func (o *output) reserve(n int) {
	if len(o.segs) >= sendBatch || len(o.free) < n {
		o.flush()
	}
}

// flush sends what waits.
func (o *output) flush() {
	o.send()
	o.free = o.room
}

// send sends all of segs, and counts it. A packet that the kernel refuses costs that packet alone.
func (o *output) send() {
	if o.inUDP > 1 && o.udp != nil && len(o.segs) <= sendBatch {
		o.sendTrains()
	}
	o.inUDP = 0
	for segs := o.segs; len(segs) > 0; {
		n, err := o.sink.Send(segs)
		if o.tap != nil {
			o.tap.sent(segs[:n])
		}
		for i := range segs[:n] {
			o.tally.OutPackets++
			o.tally.OutBytes += uint64(segs[i].Len())
		}
		segs = segs[n:]
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrClosed) {
			break
		}
		errno, ok := err.(unix.Errno)
		if ok {
			o.lastErr.Store(int32(errno))
		}
		if errno == unix.EMSGSIZE {
			o.tally.Drop(packet.DropTooBig)
			o.shared.tooBig()
		} else {
			o.tally.Drop(packet.DropSendError)
		}
		segs = segs[1:]
	}
	o.segs = o.segs[:0]
}

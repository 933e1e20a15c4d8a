package endpoint

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// AnswerSink sends answers by raw sockets. The kernel routes their packets by source and destination.
type AnswerSink interface {
	egress.Port
	// PathMTU returns the size of the largest packet that the path from src to dst takes, in bytes.
	PathMTU(src, dst netip.Addr) (int, error)
}

// AnswerWorker forwards packets that this host's servers send into one queue of the TUN device with a VIP as source.
// The kernel routes such answers there for sockets that are bound to the device (SO_BINDTODEVICE) or that answer by the
// request's interface (IP_PKTINFO). The kernel routes most answers to the network, past this worker.
//
//	TUN queue → ReadBatch → check → Finish, or Split → Send → client
//	                                                     ├ too big, without DF: Fragment → client
//	                                                     └ too big, with DF: ICMP error → TUN queue → server
//
// It works like a router: it decrements the TTL, and respects the path MTU and DF. It holds no packet longer than a
// batch.
type AnswerWorker struct {
	source   Source
	sink     AnswerSink
	tun      Sink
	inForce  *atomic.Pointer[Policy]
	sent     *Sent
	port     uint16
	counters stats.Counters
	batches  stats.Batches
	lastErr  atomic.Int32 // errno of the last packet that the kernel refused

	policy   *Policy // of this batch
	bufs     []packet.Buf
	info     packet.Info // of the current packet; a local variable would escape to the heap
	out      []egress.Outgoing
	clients  [batch]egress.Peer
	accepted int              // number of clients in this batch
	segs     []packet.Segment // of one GSO packet, or fragments of a packet
	room     []byte           // for the headers of segments
	free     []byte           // the unused part of room
	tally    stats.Tally

	large  path              // of the last packet of this batch that was too big
	spare  []packet.Buf      // two: the packet that was too big, in one piece, and an ICMP error
	pieces []egress.Outgoing // its fragments
	heads  []byte            // headers of the fragments
	quote  [packet.IPv6HeaderLen + packet.UDPHeaderLen]byte
	errs   []*packet.Buf // the ICMP error
	id     uint16        // of the last packet that had none and was sent in fragments
	errors int           // ICMP errors in this batch
}

// path is the path of a packet, and its MTU in bytes.
type path struct {
	src, dst netip.Addr
	mtu      int
	reported bool // an ICMP error with the MTU was sent in this batch
}

const (
	// answerBatch is the number of packets that wait for one system call.
	answerBatch = 64

	// errorsInBatch is the largest number of ICMP errors that a worker sends for one batch.
	errorsInBatch = 16
)

// NewAnswerWorker makes a worker that moves the answers that the policy in force accepts from source to sink, and ICMP
// errors about them to tun. It loads the policy once a batch. All workers of a device share sent. port is the UDP port
// of a socket on the device (wire.DevicePort). The worker repeats each ICMP error about UDP as an error about a
// datagram of that socket.
func NewAnswerWorker(source Source, sink AnswerSink, tun Sink, inForce *atomic.Pointer[Policy], sent *Sent,
	port uint16) *AnswerWorker {
	w := &AnswerWorker{source: source, sink: sink, tun: tun, inForce: inForce, sent: sent, port: port,
		bufs: packet.NewBufs(batch), spare: packet.NewBufs(2),
		out:    make([]egress.Outgoing, 0, answerBatch+packet.MaxPieces),
		segs:   make([]packet.Segment, 0, packet.MaxPieces),
		pieces: make([]egress.Outgoing, 0, packet.MaxPieces), room: make([]byte, packet.PieceRoom),
		id: uint16(rand.Uint32())}
	w.free, w.heads, w.errs = w.room, make([]byte, packet.MaxPieces*packet.IPv4HeaderLen), []*packet.Buf{&w.spare[1]}
	return w
}

// Read adds the worker's counts to t: In is packets read, Out is packets sent.
func (w *AnswerWorker) Read(t *stats.Tally) { w.counters.Read(t) }

// Batches returns the sizes of the worker's batches.
func (w *AnswerWorker) Batches() *stats.Batches { return &w.batches }

// LastError is the kernel's error for the last packet that it refused to send, nil if there was none.
func (w *AnswerWorker) LastError() error {
	if e := w.lastErr.Load(); e != 0 {
		return unix.Errno(e)
	}
	return nil
}

// Run moves packets until source, sink or tun is closed.
func (w *AnswerWorker) Run() error {
	for {
		n, err := w.source.ReadBatch(w.bufs)
		if err == nil {
			err = w.move(w.bufs[:n])
		}
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answers: %w", err)
		}
	}
}

// move processes one batch.
func (w *AnswerWorker) move(bufs []packet.Buf) (err error) {
	w.batches.Begin(len(bufs))
	w.policy, w.large, w.errors, w.accepted = w.inForce.Load(), path{}, 0, 0
	for i := range bufs {
		w.tally.InPackets++
		w.tally.InBytes += uint64(bufs[i].Len())
		d, closed := w.packet(&bufs[i])
		if d != drop.Accept {
			w.tally.Drop(d)
		}
		if err = errors.Join(err, closed); err != nil {
			break
		}
	}
	err = errors.Join(err, w.flush())
	w.counters.Add(&w.tally)
	w.batches.End()
	return err
}

// packet processes one packet. It adds the packets to send to w.out. An error ends the loop.
func (w *AnswerWorker) packet(b *packet.Buf) (drop.Reason, error) {
	p := &w.info
	d := p.Parse(b.Bytes())
	fragment := d == drop.Fragment
	if fragment {
		p.Flow.Src, p.Flow.Dst, p.Len = ends(b.Bytes())
		p.Flow.Proto, p.Offset = 0, ipHeaderLen(b.Bytes())
	} else if d == drop.Protocol { // ICMP of the other family
		return drop.NotAnswer, nil
	} else if d != drop.Accept {
		return d, nil
	}
	b.SetLen(p.Len)
	if !w.policy.answers(p.Flow.Src, p.Flow.Dst) {
		return drop.NotAnswer, nil
	}
	if b.Offload.GSO == packet.GSONone && w.sent.has(b.Bytes(), p) || !packet.LowerTTL(b.Bytes()) {
		return drop.AnswerLoop, nil
	}
	if fragment {
		if b.Offload != (packet.Offload{}) {
			return drop.Offload, nil
		}
		return drop.Accept, w.add(b.Bytes(), p)
	}
	if b.Offload.Misplaced(p) {
		return drop.Offload, nil
	}
	if b.Offload.GSO != packet.GSONone {
		return w.split(b, p)
	}
	if d := b.Finish(); d != drop.Accept {
		return d, nil
	}
	return drop.Accept, w.add(b.Bytes(), p)
}

// add adds a whole packet to w.out.
func (w *AnswerWorker) add(b []byte, p *packet.Info) error {
	if len(w.out) >= answerBatch {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.sent.put(b, p)
	w.out = append(w.out, egress.Outgoing{Segment: packet.Segment{Head: b}, Hop: w.toClient(p)})
	return nil
}

// split adds the segments of the GSO packet in b to w.out.
func (w *AnswerWorker) split(b *packet.Buf, p *packet.Info) (drop.Reason, error) {
	cut, d := packet.NewCut(b, p, packet.MaxLen)
	if d != drop.Accept {
		return d, nil
	}
	n := cut.Segments(p.Len) + 1
	if len(w.out) >= answerBatch || len(w.free) < n*cut.Headers {
		if err := w.flush(); err != nil {
			return drop.Accept, err
		}
	}
	w.segs, w.free = packet.Split(w.segs[:0], b, p, cut, w.free)
	for _, s := range w.segs {
		w.sent.put(s.Head, p)
	}
	w.out = appendAll(w.out, w.segs, w.toClient(p))
	return drop.Accept, nil
}

// toClient is the hop of the answer that p describes. It must be called at most once for a packet.
func (w *AnswerWorker) toClient(p *packet.Info) egress.Hop {
	to := &w.clients[w.accepted]
	w.accepted++
	*to = egress.Peer{Dst: p.Flow.Dst, Src: p.Flow.Src}
	return egress.Hop{To: to}
}

// appendAll appends segs, which all go to h, to out.
func appendAll(out []egress.Outgoing, segs []packet.Segment, h egress.Hop) []egress.Outgoing {
	for _, s := range segs {
		out = append(out, egress.Outgoing{Segment: s, Hop: h})
	}
	return out
}

// flush sends w.out. An error ends the loop.
func (w *AnswerWorker) flush() (err error) {
	for rest := w.out; len(rest) > 0 && err == nil; {
		n, refused := w.sink.Send(rest)
		for i := range rest[:n] {
			w.count(&rest[i])
		}
		if refused != nil {
			var d drop.Reason
			if d, err = w.refused(&rest[0], refused); d != drop.Accept {
				w.tally.Drop(d)
			}
			n = 1
		}
		rest = rest[n:]
	}
	w.out, w.free = w.out[:0], w.room
	return err
}

func (w *AnswerWorker) count(s *egress.Outgoing) {
	w.tally.OutPackets++
	w.tally.OutBytes += uint64(s.Len())
}

// refused processes a packet that the kernel refused with err. If the packet is too big for its path, refused fragments
// it, or sends its sender an ICMP error with the MTU. An error of refused ends the loop.
func (w *AnswerWorker) refused(s *egress.Outgoing, err error) (drop.Reason, error) {
	if errors.Is(err, os.ErrClosed) {
		return drop.Accept, err
	}
	errno, ok := err.(unix.Errno)
	if !ok {
		return drop.Accept, err
	}
	if errno != unix.EMSGSIZE {
		w.lastErr.Store(int32(errno))
		return drop.SendError, nil
	}
	src, dst := s.To.Src, s.To.Dst
	if w.large.src != src || w.large.dst != dst {
		mtu, err := w.sink.PathMTU(src, dst)
		if err != nil {
			if cause, ok := errors.AsType[unix.Errno](err); ok {
				errno = cause
			}
			w.lastErr.Store(int32(errno))
			return drop.SendError, nil
		}
		w.large = path{src: src, dst: dst, mtu: max(mtu, smallestMTU(dst))}
	}
	mtu := w.large.mtu
	if s.Len() <= mtu { // the route's MTU is larger than its device's
		w.lastErr.Store(int32(unix.EMSGSIZE))
		return drop.SendError, nil
	}
	b := w.whole(&s.Segment)
	if dst.Is4() && !packet.IPv4(b).DF() {
		return w.fragment(b, s.Hop, mtu)
	}
	if w.large.reported {
		return drop.TooBig, nil
	}
	w.large.reported = true
	return drop.TooBig, w.reportMTU(b, mtu)
}

// whole copies a packet into one piece.
func (w *AnswerWorker) whole(s *packet.Segment) []byte {
	b := &w.spare[0]
	room := b.Room()
	n := copy(room, s.Head)
	b.SetLen(n + copy(room[n:], s.Body))
	return b.Bytes()
}

// fragment sends the IPv4 packet b to h in fragments of at most mtu bytes.
func (w *AnswerWorker) fragment(b packet.IPv4, h egress.Hop, mtu int) (drop.Reason, error) {
	if b.HeaderLen() > packet.IPv4HeaderLen {
		return drop.TooBig, nil // not every option belongs in each fragment: RFC 791, section 3.1
	}
	id := b.ID()
	for ; id == 0 && !b.Fragment(); id = w.id { // all fragments of a datagram have one ID
		w.id++
	}
	w.segs = encap.Fragment(w.segs[:0], b, mtu, id, w.heads)
	for pieces := appendAll(w.pieces[:0], w.segs, h); len(pieces) > 0; {
		n, err := w.sink.Send(pieces)
		if errno, ok := err.(unix.Errno); ok {
			w.lastErr.Store(int32(errno))
			return drop.SendError, nil
		} else if err != nil {
			return drop.Accept, err
		}
		for i := range pieces[:n] {
			w.count(&pieces[i])
		}
		pieces = pieces[n:]
	}
	return drop.Accept, nil
}

// reportMTU sends an ICMP error with the path MTU to the sender of b, which has DF. It writes the error to the TUN
// device: a socket that is bound to the device receives no other errors.
func (w *AnswerWorker) reportMTU(b []byte, mtu int) error {
	if w.errors >= errorsInBatch || !packet.MayAnswer(b) {
		return nil
	}
	w.errors++
	if err := w.write(b, mtu, false); err != nil {
		return err
	}
	var p packet.Info // not w.info, which may be in use
	if p.Parse(b) != drop.Accept || p.Flow.Proto != packet.ProtoUDP {
		return nil
	}
	// From an error about a datagram of a socket that is not bound to the device, the kernel may learn the MTU of
	// another route: the one to the network. The server's datagrams do not take that route.
	q, n := w.quote[:], packet.IPv4HeaderLen
	if p.Flow.Dst.Is4() {
		packet.IPv4(q).Encode(packet.IPv4Fields{
			TotalLen: n + packet.UDPHeaderLen, TTL: 64, Protocol: packet.ProtoUDP, Src: p.Flow.Src.As4(),
			Dst: p.Flow.Dst.As4(),
		})
	} else {
		n = packet.IPv6HeaderLen
		packet.IPv6(q).Encode(packet.IPv6Fields{
			TotalLen: n + packet.UDPHeaderLen, HopLimit: 64, NextHeader: packet.ProtoUDP, Src: p.Flow.Src.As16(),
			Dst: p.Flow.Dst.As16(),
		})
	}
	q = q[:n+packet.UDPHeaderLen]
	u := packet.UDP(q[n:])
	u.SetSrcPort(w.port)
	u.SetDstPort(p.Flow.DstPort)
	u.SetLen(packet.UDPHeaderLen)
	u.ClearChecksum()
	return w.write(q, mtu, true)
}

// write writes an ICMP error about b to the TUN device, as if a router next to its destination had sent it. If
// anonymous is set, it quotes an IPv6 packet with the source :: (see wire.DevicePort).
func (w *AnswerWorker) write(b []byte, mtu int, anonymous bool) error {
	_, dst, _ := ends(b)
	e := &w.spare[1]
	room := e.Room()
	if dst.Is4() {
		e.SetLen(packet.FragmentationNeeded(room, b, dst, mtu))
	} else {
		e.SetLen(packet.PacketTooBig(room, b, dst, mtu))
		if h := packet.IPv6(e.Bytes()); anonymous {
			t := packet.ICMP(h[packet.IPv6HeaderLen:])
			packet.IPv6(t.Payload()).ClearSrc()
			t.SetChecksum(h.PseudoSum(packet.ProtoICMPv6, len(t)))
		}
	}
	_, _, err := w.tun.WriteBatch(w.errs)
	return err
}

// ends returns source and destination of a packet with a right IP header, and its length in bytes.
func ends(p []byte) (src, dst netip.Addr, n int) {
	if h := packet.IPv6(p); h.Version() == 6 {
		return h.Src(), h.Dst(), h.TotalLen()
	}
	h := packet.IPv4(p)
	return h.Src(), h.Dst(), h.TotalLen()
}

// smallestMTU is the smallest MTU that a path to dst can have, in bytes.
func smallestMTU(dst netip.Addr) int {
	if dst.Is4() {
		return encap.MinMTU
	}
	return encap.MinMTU6
}

// Sent holds hashes of about 4,000 recent answers of all workers of a device. Workers use it to recognise an answer
// that the kernel routes back into the device. Such a packet has the TTL with which it was sent; a server's
// retransmission has a larger TTL. An answer that is no longer in Sent, or that comes back as fragments, is recognised
// at its next round, or dropped when its TTL is used up.
type Sent struct {
	seed  maphash.Seed
	marks [4096]atomic.Uint64
}

// NewSent returns an empty Sent.
func NewSent() *Sent { return &Sent{seed: maphash.MakeSeed()} }

// put stores the hash of an answer's headers, which are in b.
func (s *Sent) put(b []byte, p *packet.Info) {
	m := s.mark(b, p)
	s.marks[m%uint64(len(s.marks))].Store(m)
}

// has reports whether Sent holds the hash of these headers.
func (s *Sent) has(b []byte, p *packet.Info) bool {
	m := s.mark(b, p)
	return s.marks[m%uint64(len(s.marks))].Load() == m
}

// mark is a hash of IP and transport header, except an IPv4 header's ID and checksum, which the kernel may have
// changed. The transport header's checksum stands for the payload.
func (s *Sent) mark(b []byte, p *packet.Info) uint64 {
	n := p.Offset + packet.UDPHeaderLen
	if p.Flow.Proto == packet.ProtoTCP {
		n = p.Offset + packet.TCPHeaderLen
	}
	var h [128]byte // the longest IPv4 and TCP header, or more IPv6 extension headers than servers send
	n = copy(h[:], b[:min(n, len(b))])
	if ip := packet.IPv4(h[:]); ip.Version() == 4 {
		ip.SetID(0)
		ip.ClearChecksum()
	}
	return maphash.Bytes(s.seed, h[:n])
}

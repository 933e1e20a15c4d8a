package forward

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/packet"
)

// CaptureFilter says which packets a Tap wants: the zero value all. It is about the connection that they belong to, as
// its client sees it.
type CaptureFilter struct {
	Client     netip.Addr // the zero Addr: all
	ClientPort uint16     // 0: all
	VIP        netip.Addr
	Port       uint16
	Realserver netip.Addr
}

// Capture takes copies of packets of a director's, as they are read and as they are sent, for people to look at.
// Workers never wait for whom it is for: what there is no room for is lost, and counted. Shared.Watch lets it begin.
//
// An ICMP error is of the connection that it is about. What the director answers itself is there without a realserver
// in the filter, and so are the fragments in which a client's packet comes, which have no ports.
type Capture struct {
	filter CaptureFilter
	ready  chan struct{} // something is there, or nothing more will be

	mu    sync.Mutex
	left  int // packets that are wanted still
	bytes int // and the room for them in all
	page  page
	taken page // by Take
	lost  uint64
	cut   [16]cutID // packets in outer fragments whose first is wanted
	at    int       // in cut
}

// cutID is what the outer fragments of a packet have in common.
type cutID struct {
	dst netip.Addr
	id  uint32
}

// page is as much as a Tap holds at once: a worker fills it, and it is taken whole.
type page struct {
	data []byte
	list []Captured
}

const (
	pageBytes   = 4 << 20
	pagePackets = 16384
)

func newPage() page { return page{make([]byte, 0, pageBytes), make([]Captured, 0, pagePackets)} }

// Captured is one packet of a Tap.
type Captured struct {
	Time time.Time
	Sent bool // into the tunnel, or to a client; else it is as it was read
	// from its IP header on. Of a packet that is sent the IPv4 header has no checksum, and may have neither source nor
	// ID: those are the kernel's
	Bytes []byte
}

// NewCapture makes a Tap for so many packets, of so many bytes together.
func NewCapture(f CaptureFilter, packets, bytes int) *Capture {
	return &Capture{filter: f, ready: make(chan struct{}, 1), left: packets, bytes: bytes, page: newPage(),
		taken: newPage()}
}

// StartCapture lets t take its packets from now on. It returns false where another one does.
func (s *Shared) StartCapture(t *Capture) bool { return s.tap.CompareAndSwap(nil, t) }

// StopCapture ends that. A batch that a worker has begun may still come.
func (s *Shared) StopCapture(t *Capture) {
	s.tap.CompareAndSwap(t, nil)
	t.mu.Lock()
	t.left = 0
	t.mu.Unlock()
	t.wake()
}

// StopCurrentCapture is Unwatch for the one that takes packets now, if any does.
func (s *Shared) StopCurrentCapture() {
	if t := s.tap.Load(); t != nil {
		s.StopCapture(t)
	}
}

// Next waits for packets and returns them. They are valid until the next Next. None are returned at the end: when t has
// as many as it wanted, when Unwatch was called, or with ctx's end. One goroutine calls it.
func (t *Capture) Next(ctx context.Context) []Captured {
	for {
		ended := ctx.Err() != nil // before the last look
		t.mu.Lock()
		p, over := t.page, t.left <= 0 || ended
		if len(p.list) > 0 {
			t.page, t.taken = page{t.taken.data[:0], t.taken.list[:0]}, p
		}
		t.mu.Unlock()
		if len(p.list) > 0 || over {
			return p.list
		}
		select {
		case <-ctx.Done():
		case <-t.ready:
		}
	}
}

// Lost is the number of packets for which there was no room.
func (t *Capture) Lost() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

func (t *Capture) wake() {
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// put copies a packet.
func (t *Capture) put(sent bool, head, body []byte) {
	now, n := time.Now(), len(head)+len(body)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left <= 0 {
		return
	}
	p := &t.page
	if len(p.data)+n > cap(p.data) || len(p.list) == cap(p.list) {
		t.lost++
		return
	}
	if t.bytes -= n; t.bytes < 0 {
		t.left = 0
		t.wake()
		return
	}
	begin := len(p.data)
	p.data = append(append(p.data, head...), body...)
	p.list = append(p.list, Captured{Time: now, Sent: sent, Bytes: p.data[begin:len(p.data):len(p.data)]})
	t.left--
	t.wake()
}

// read takes the packet in b, as it was read, if it is wanted. It returns true where that is known only when it has its
// connection: see opened.
func (t *Capture) read(snap *balancer.Snapshot, b []byte, now conntab.Ticks) (later bool) {
	f, ok := t.flow(b)
	if !ok {
		return false
	}
	if t.filter.Realserver.IsValid() {
		d := snap.Find(f, now)
		if d == nil || d.Address != t.filter.Realserver {
			return d == nil
		}
	}
	t.put(false, b, nil)
	return false
}

// opened takes the packet p in b, which read could not judge, and which has been wrapped since, where it has opened a
// connection.
func (t *Capture) opened(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) {
	d := snap.Find(p.Flow, now)
	if d == nil || d.Address != t.filter.Realserver {
		return
	}
	if n := d.Via.Overhead(); b.Len() == p.Len+n {
		t.put(false, b.Bytes()[n:], nil)
	}
}

// sent takes of segs, which have been sent, those that are wanted.
func (t *Capture) sent(segs []packet.Segment) {
	for _, s := range segs {
		if t.wants(s) {
			t.put(true, s.Head, s.Body)
		}
	}
}

// flow is the connection that the packet in b, of which the front suffices, belongs to, as its client sees it, if that
// is wanted.
func (t *Capture) flow(b []byte) (packet.Flow, bool) {
	if q, d := packet.QuotedFlow(b); d == packet.Accept {
		// A client's error is about an answer, the director's own about a client's packet.
		f := q.Flow.Reverse()
		return f, t.match(f, true) || t.match(q.Flow, true)
	}
	q, d := packet.QuotedPacket(b)
	switch {
	case d == packet.Accept:
		switch f := q.Flow; f.Proto {
		case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
			return f, t.match(f, true)
		default: // a ping, or its answer
			return f, t.filter.ClientPort == 0 && t.filter.Port == 0 &&
				(t.match(f, false) || t.match(f.Reverse(), false))
		}
	case d == packet.DropFragment && b[0]>>4 == 6:
		q.Flow = packet.Flow{Src: packet.IPv6(b).Src(), Dst: packet.IPv6(b).Dst()}
	case d == packet.DropFragment:
		q.Flow = packet.Flow{Src: packet.IPv4(b).Src(), Dst: packet.IPv4(b).Dst()}
	default:
		return q.Flow, false
	}
	return q.Flow, !t.filter.Realserver.IsValid() && t.match(q.Flow, false)
}

// match reports whether the filter, but for the realserver, has f, with or without its ports.
func (t *Capture) match(f packet.Flow, ports bool) bool {
	w := &t.filter
	return (!w.Client.IsValid() || w.Client == f.Src) && (!w.VIP.IsValid() || w.VIP == f.Dst) &&
		(!ports || (w.ClientPort == 0 || w.ClientPort == f.SrcPort) && (w.Port == 0 || w.Port == f.DstPort))
}

// wants reports whether s, which has been sent, is wanted: a tunnel's packet is judged by the one in it.
func (t *Capture) wants(s packet.Segment) bool {
	h := s.Head
	var dst netip.Addr
	var proto byte
	var id cutID
	first, cut := true, false // of the outer fragments, and whether it is one
	if h[0]>>4 == 6 {
		ip := packet.IPv6(h)
		dst, proto, h = ip.Dst(), ip.NextHeader(), h[packet.IPv6HeaderLen:]
		if proto == protoFragment {
			id, cut = cutID{dst, binary.BigEndian.Uint32(h[4:])}, true
			first = binary.BigEndian.Uint16(h[2:])&^7 == 0
			proto, h = h[0], h[encap.Fragment6HeadLen-packet.IPv6HeaderLen:]
		}
	} else {
		ip := packet.IPv4(h)
		dst, proto, h = ip.Dst(), ip.Protocol(), h[packet.IPv4HeaderLen:]
		if ip.Fragment() {
			id, cut = cutID{dst, uint32(ip.ID())}, true
			first = binary.BigEndian.Uint16(ip[6:])&0x1fff == 0
		}
	}
	if !first {
		return t.isCut(id)
	}
	if len(h) == 0 {
		h = s.Body // of a fragment
	}
	switch proto {
	case packet.ProtoGRE:
		n := 4 // flags and protocol type; then checksum and key, where there are (RFC 2890)
		for _, bit := range []byte{0x80, 0x20} {
			if h[0]&bit != 0 {
				n += 4
			}
		}
		h = h[n:]
	case packet.ProtoUDP:
		if h = h[packet.UDPHeaderLen:]; h[0]>>4 == 0 {
			h = h[4:] // GUE's header
		}
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if t.filter.Realserver.IsValid() {
			return false
		}
		h = s.Head // no tunnel: an answer to a client
	case packet.ProtoTCP: // likewise: a reset
		q, d := packet.QuotedPacket(s.Head)
		return d == packet.Accept && !t.filter.Realserver.IsValid() && t.match(q.Flow.Reverse(), true)
	}
	if t.filter.Realserver.IsValid() && t.filter.Realserver != dst {
		return false
	}
	if _, ok := t.flow(h); !ok {
		return false
	}
	if cut {
		t.noteCut(id)
	}
	return true
}

// protoFragment is IPv6's fragment header (RFC 8200, section 4.5).
const protoFragment = 44

func (t *Capture) noteCut(id cutID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cut[t.at] = id
	t.at = (t.at + 1) % len(t.cut)
}

func (t *Capture) isCut(id cutID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.cut {
		if c == id {
			return true
		}
	}
	return false
}

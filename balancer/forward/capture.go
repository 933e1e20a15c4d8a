package forward

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// CaptureFilter selects the packets of a Capture by their connection, as its client sees it. The zero value selects
// all.
type CaptureFilter struct {
	Client     netip.Addr // the zero Addr: all
	ClientPort uint16     // 0: all
	VIP        netip.Addr
	Port       uint16
	Realserver netip.AddrPort // port 0: all; else the port of packets at the realserver
}

// Capture takes copies of packets as workers read them, and as they send them. Workers never wait for the reader:
// packets for which there is no room are lost, and counted. Shared.StartCapture begins it.
//
// A worker checks the filter when it reads a packet, and again when the packet has a realserver. The packets that it
// sends for a captured packet are captured, too. An ICMP error belongs to the connection that it quotes. Without a
// realserver in the filter, the capture has also the director's own answers, and a client's fragments, for which the
// ports of the filter do not count. With a realserver in the filter, a packet in fragments is captured when it is
// complete.
type Capture struct {
	filter CaptureFilter
	ready  chan struct{} // has a value when there are packets, or the capture has ended

	mu    sync.Mutex
	left  int // packets that it still takes
	bytes int // bytes that it still takes
	page  page
	taken page // by Next
	lost  uint64
}

// page has the packets that a Capture holds at once. Workers fill it, and Next takes it whole.
type page struct {
	data []byte
	list []Captured
}

const (
	pageBytes   = 4 << 20
	pagePackets = 16384
)

func newPage() page { return page{make([]byte, 0, pageBytes), make([]Captured, 0, pagePackets)} }

// Captured is one packet of a Capture.
type Captured struct {
	Time time.Time
	Sent bool // as sent into the tunnel or to a client; false: as read
	// Bytes is the packet from its IP header on. The IPv4 header of a sent packet has no checksum, and may lack source
	// and ID: the kernel fills them in.
	Bytes []byte
}

// NewCapture makes a Capture that takes at most the given number of packets, and of bytes in all.
func NewCapture(f CaptureFilter, packets, bytes int) *Capture {
	return &Capture{filter: f, ready: make(chan struct{}, 1), left: packets, bytes: bytes, page: newPage(),
		taken: newPage()}
}

// StartCapture makes c the Capture of all workers. It returns false if there is one already.
func (s *Shared) StartCapture(c *Capture) bool { return s.capture.CompareAndSwap(nil, c) }

// StopCapture ends c. It takes no more packets; Next still returns those that it has.
func (s *Shared) StopCapture(c *Capture) {
	s.capture.CompareAndSwap(c, nil)
	c.mu.Lock()
	c.left = 0
	c.mu.Unlock()
	c.wake()
}

// StopCurrentCapture ends the Capture that takes packets now, if there is one.
func (s *Shared) StopCurrentCapture() {
	if c := s.capture.Load(); c != nil {
		s.StopCapture(c)
	}
}

// Next waits for packets and returns them. They are valid until the next call. It returns none at the end: when c has
// reached its bound of packets or bytes, after StopCapture, or when ctx is done. Only one goroutine may call it.
func (c *Capture) Next(ctx context.Context) []Captured {
	for {
		ended := ctx.Err() != nil // before the last look
		c.mu.Lock()
		p, over := c.page, c.left <= 0 || ended
		if len(p.list) > 0 {
			c.page, c.taken = page{c.taken.data[:0], c.taken.list[:0]}, p
		}
		c.mu.Unlock()
		if len(p.list) > 0 || over {
			return p.list
		}
		select {
		case <-ctx.Done():
		case <-c.ready:
		}
	}
}

// Lost is the number of packets for which there was no room.
func (c *Capture) Lost() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

func (c *Capture) wake() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// put adds a copy of a packet, if there is room.
func (c *Capture) put(sent bool, head, body []byte) {
	now, n := time.Now(), len(head)+len(body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left <= 0 {
		return
	}
	p := &c.page
	if len(p.data)+n > cap(p.data) || len(p.list) == cap(p.list) {
		c.lost++
		return
	}
	if c.bytes -= n; c.bytes < 0 {
		c.left = 0
		c.wake()
		return
	}
	begin := len(p.data)
	p.data = append(append(p.data, head...), body...)
	p.list = append(p.list, Captured{Time: now, Sent: sent, Bytes: p.data[begin:len(p.data):len(p.data)]})
	c.left--
	c.wake()
}

// interest is how a capture selects the worker's current packet.
type interest uint8

const (
	ignored      interest = iota
	byRealserver          // take the packet if it goes to the realserver of the filter
	wanted                // take the packet, and all packets that are sent for it
)

// interest returns the interest in the packet in b. The beginning of the packet suffices.
func (c *Capture) interest(b []byte) interest {
	switch {
	case !c.matches(b):
		return ignored
	case c.filter.Realserver.IsValid():
		return byRealserver
	}
	return wanted
}

// Sent captures the marked packets of out, which have been sent.
func (c *Capture) Sent(out []egress.Outgoing) {
	for i := range out {
		if p := &out[i]; p.Mark {
			c.put(true, p.Head, p.Body)
		}
	}
}

// observe makes c, nil for none, the capture of the batch.
func (w *Worker) observe(c *Capture) {
	w.capture, w.interest, w.out.Mark = c, ignored, false
	w.out.Observer = nil
	if c != nil {
		w.out.Observer = c
	}
}

// look sets the capture's interest in the packet b, and captures it if it is wanted. It leaves a packet that may be a
// reply of VS/NAT to lookAtReply: the packet does not have the addresses that its client sees.
func (w *Worker) look(b []byte, reply bool) {
	w.lookAgain(b, reply)
	if w.interest == wanted {
		w.capture.put(false, b, nil)
	}
}

// lookAgain is look for a reassembled packet, whose fragments have been captured already.
func (w *Worker) lookAgain(b []byte, reply bool) {
	if w.interest = ignored; !reply {
		w.interest = w.capture.interest(b)
	}
	w.out.Mark = w.interest == wanted
}

// lookAtReply is look for the packet b, which may be a reply of VS/NAT. p.Flow is its connection's flow if d, its
// realserver, is not nil.
func (w *Worker) lookAtReply(b []byte, p *packet.Info, d *balancer.Dest) {
	if d != nil {
		w.lookAt(p.Flow, d, b)
		return
	}
	w.look(b, false)
}

// lookAt is look for the packet b of the connection f, whose realserver is d, if it is not captured already.
func (w *Worker) lookAt(f packet.Flow, d *balancer.Dest, b []byte) {
	c := w.capture
	if w.interest == wanted || !c.match(f, true) || c.filter.Realserver.IsValid() && !c.filter.has(d, f) {
		return
	}
	w.interest, w.out.Mark = wanted, true
	if w.largest == 0 || c.filter != (CaptureFilter{}) { // otherwise its fragments have been captured
		c.put(false, b, nil)
	}
}

// decided captures the packet in b, which goes to d, if d is the realserver of the filter.
func (w *Worker) decided(d *balancer.Dest, b []byte) {
	if w.interest == byRealserver && w.capture.filter.goesTo(d, b) {
		w.capture.put(false, b, nil)
		w.out.Mark = true
	}
}

// goesTo reports whether the packet in b, which goes to d, goes to the realserver of the filter.
func (f *CaptureFilter) goesTo(d *balancer.Dest, b []byte) bool {
	if f.Realserver.Port() == 0 || d.Address != f.Realserver.Addr() {
		return d.Address == f.Realserver.Addr()
	}
	if q, reason := packet.QuotedFlow(b); reason == drop.Accept {
		return f.has(d, q.Flow.Reverse()) // a client's error is about an answer
	}
	q, reason := packet.QuotedPacket(b)
	return reason == drop.Accept && f.has(d, q.Flow)
}

// has reports whether d is the realserver of the filter for the connection c.
func (f *CaptureFilter) has(d *balancer.Dest, c packet.Flow) bool {
	port := f.Realserver.Port()
	return d.Address == f.Realserver.Addr() && (port == 0 || port == d.Real(c).DstPort)
}

// dropped captures the packet in b, which is dropped, if its connection's realserver is that of the filter.
func (w *Worker) dropped(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) {
	if d := snap.Find(p.Flow, now); d != nil { // its connection may exist, though the packet is refused
		w.decided(d, b.Bytes())
	}
}

// matches reports whether the filter, except for its realserver, matches the connection of the packet in b, as its
// client sees it. The beginning of the packet suffices.
func (c *Capture) matches(b []byte) bool {
	if q, d := packet.QuotedFlow(b); d == drop.Accept {
		return c.match(q.Flow.Reverse(), true) // a client's error is about an answer
	}
	q, d := packet.QuotedPacket(b)
	switch {
	case d == drop.Accept:
		switch f := q.Flow; f.Proto {
		case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
			return c.match(f, true)
		default: // a ping
			return c.filter.ClientPort == 0 && c.filter.Port == 0 && c.match(f, false)
		}
	case d != drop.Fragment || c.filter.Realserver.IsValid():
		return false
	case packet.Version(b) == 6:
		return c.match(packet.Flow{Src: packet.IPv6(b).Src(), Dst: packet.IPv6(b).Dst()}, false)
	}
	return c.match(packet.Flow{Src: packet.IPv4(b).Src(), Dst: packet.IPv4(b).Dst()}, false)
}

// Selects reports whether the filter selects the connection f, whose realserver is d.
func (c *Capture) Selects(f packet.Flow, d *balancer.Dest) bool {
	return c.match(f, true) && (!c.filter.Realserver.IsValid() || c.filter.has(d, f))
}

// match reports whether the filter, except for its realserver, matches f, with or without its ports.
func (c *Capture) match(f packet.Flow, ports bool) bool {
	w := &c.filter
	return (!w.Client.IsValid() || w.Client == f.Src) && (!w.VIP.IsValid() || w.VIP == f.Dst) &&
		(!ports || (w.ClientPort == 0 || w.ClientPort == f.SrcPort) && (w.Port == 0 || w.Port == f.DstPort))
}

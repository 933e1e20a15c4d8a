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

// CaptureFilter says which packets a Capture takes: the zero value all. It is about the connection that they belong to,
// as its client sees it.
type CaptureFilter struct {
	Client     netip.Addr // the zero Addr: all
	ClientPort uint16     // 0: all
	VIP        netip.Addr
	Port       uint16
	Realserver netip.Addr
}

// Capture takes copies of packets, as a director's workers read them and as they send them. Workers never wait for its
// reader: packets for which there is no room are lost, and counted. Shared.StartCapture begins it.
//
// A worker looks at a packet when it reads it, and again when the decision has named a realserver. What is sent because
// of the packet is taken with it. An ICMP error belongs to the connection that it is about. Without a realserver in the
// filter, the director's own answers are taken, and the fragments in which a client's packet comes, which have no
// ports. With one, a packet in fragments is taken when it is complete.
type Capture struct {
	filter CaptureFilter
	ready  chan struct{} // something is there, or nothing more will be

	mu    sync.Mutex
	left  int // packets that it still takes
	bytes int // room for them in all
	page  page
	taken page // by Next
	lost  uint64
}

// page is as much as a Capture holds at once: workers fill it, and Next takes it whole.
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
	Sent bool // into the tunnel, or to a client; else it is as it was read
	// Bytes is the packet from its IP header on. The IPv4 header of a packet that is sent has no checksum, and may have
	// neither source nor ID: those are the kernel's.
	Bytes []byte
}

// NewCapture makes a Capture of at most so many packets, of so many bytes together.
func NewCapture(f CaptureFilter, packets, bytes int) *Capture {
	return &Capture{filter: f, ready: make(chan struct{}, 1), left: packets, bytes: bytes, page: newPage(),
		taken: newPage()}
}

// StartCapture lets c take packets from now on. It returns false while another Capture does.
func (s *Shared) StartCapture(c *Capture) bool { return s.capture.CompareAndSwap(nil, c) }

// StopCapture ends c. Packets of batches that workers have begun may still come.
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
// as many packets as it takes, after StopCapture, or when ctx is done. One goroutine calls it.
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

// put copies a packet.
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

// interest is a capture's in a packet that a worker has at hand.
type interest uint8

const (
	ignored      interest = iota
	byRealserver          // the packet, if it goes to the realserver of the filter
	wanted                // the packet, and what is sent because of it
)

// interest is that in the packet in b, of which the front suffices.
func (c *Capture) interest(b []byte) interest {
	switch {
	case !c.matches(b):
		return ignored
	case c.filter.Realserver.IsValid():
		return byRealserver
	}
	return wanted
}

// Sent takes packets that have gone out.
func (c *Capture) Sent(out []egress.Outgoing) {
	for i := range out {
		if p := &out[i]; p.Mark {
			c.put(true, p.Head, p.Body)
		}
	}
}

// observe lets c, nil for none, take packets of the batch.
func (w *Worker) observe(c *Capture) {
	w.capture, w.interest, w.out.Mark = c, ignored, false
	w.out.Observer = nil
	if c != nil {
		w.out.Observer = c
	}
}

// look begins a packet with what was read, b.
func (w *Worker) look(b []byte) {
	w.lookAgain(b)
	if w.interest == wanted {
		w.capture.put(false, b, nil)
	}
}

// lookAgain is look for a packet whose fragments have been taken as they were read.
func (w *Worker) lookAgain(b []byte) {
	w.interest = w.capture.interest(b)
	w.out.Mark = w.interest == wanted
}

// decided notes that the packet in b goes to d.
func (w *Worker) decided(d *balancer.Dest, b []byte) {
	if w.interest == byRealserver && d.Address == w.capture.filter.Realserver {
		w.capture.put(false, b, nil)
		w.out.Mark = true
	}
}

// dropped notes that no decision leads the packet in b to a realserver.
func (w *Worker) dropped(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, now conntab.Ticks) {
	if d := snap.Find(p.Flow, now); d != nil { // of its connection, which it may not use any more
		w.decided(d, b.Bytes())
	}
}

// matches reports whether the filter, except for its realserver, has the connection that the packet in b belongs to, as
// its client sees it. The front of the packet suffices.
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

// match reports whether the filter, except for its realserver, has f, with or without its ports.
func (c *Capture) match(f packet.Flow, ports bool) bool {
	w := &c.filter
	return (!w.Client.IsValid() || w.Client == f.Src) && (!w.VIP.IsValid() || w.VIP == f.Dst) &&
		(!ports || (w.ClientPort == 0 || w.ClientPort == f.SrcPort) && (w.Port == 0 || w.Port == f.DstPort))
}

package forward

import (
	"errors"
	"os"
	"sync"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Packets to a realserver of VS/DR wait while its MAC address is not known: waitingFor packets for each realserver, as
// the kernel keeps some for a neighbour that it resolves (unres_qlen_bytes in arp(7)). They wait no longer than the
// kernel asks for a neighbour, three times a second apart. More wait after HoldMore: holdMore in all. Super-packets are
// large: all packets together have no more than holdBytes, as many full packets as holdMore.
const (
	waitingFor  = 3
	mostWaiting = 256
	longestWait = 3 * conntab.PerSecond
	holdMore    = 16384
	holdBytes   = holdMore * 1500
)

// unresolved is copies of the packets that wait, in the order of their arrival. Workers use it only for such packets.
type unresolved struct {
	sending  sync.Mutex  // for port, locked before mu: a port serves one goroutine
	port     egress.Port // nil: there is none
	counters stats.Counters

	mu      sync.Mutex // for the following; hold does not wait for a full socket
	packets []unresolvedPacket
	bytes   int           // of packets
	more    conntab.Ticks // until then more packets may wait
}

type unresolvedPacket struct {
	dest    *balancer.Dest
	buf     *packet.Buf
	since   conntab.Ticks
	worker  int
	capture *Capture // that takes the packet when it is sent; nil: none
}

// UseLink sets the port by which packets leave that have waited for the MAC address of their realserver. It is called
// before the workers run.
func (s *Shared) UseLink(port egress.Port) { s.unresolved.port = port }

// HoldMore lets more packets wait until the time end. A director that has adopted a device knows few MAC addresses, or
// none, and reads the packets that have waited in the device before the answers to its requests.
func (s *Shared) HoldMore(end conntab.Ticks) {
	u := &s.unresolved
	u.mu.Lock()
	defer u.mu.Unlock()
	u.more = end
}

// hold keeps a copy of the packet in b, which is for dest, if there is room.
func (w *Worker) hold(dest *balancer.Dest, b *packet.Buf, now conntab.Ticks) drop.Reason {
	p := unresolvedPacket{dest: dest, since: now, worker: w.id}
	if w.out.Mark {
		p.capture = w.capture
	}
	return w.shared.unresolved.hold(p, b)
}

// hold keeps p with a copy of the packet in b, if there is room.
func (u *unresolved) hold(p unresolvedPacket, b *packet.Buf) drop.Reason {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.port == nil || p.since >= u.more && u.full(p.dest) || len(u.packets) >= holdMore ||
		u.bytes+b.Len() > holdBytes {
		return drop.Unresolved
	}
	p.buf = b.Clone()
	u.bytes += b.Len()
	u.packets = append(u.packets, p)
	return drop.Accept
}

// full reports whether no further packet for dest may wait. The caller holds mu.
func (u *unresolved) full(dest *balancer.Dest) bool {
	n := 0
	for i := range u.packets {
		if u.packets[i].dest.Address == dest.Address {
			n++
		}
	}
	return n >= waitingFor || len(u.packets) >= mostWaiting
}

// SendResolved sends the waiting packets whose realservers have a known MAC address in snap. It drops those that have
// waited too long. Any number of goroutines may call it.
func (s *Shared) SendResolved(snap *balancer.Snapshot, now conntab.Ticks) {
	u := &s.unresolved
	u.sending.Lock()
	defer u.sending.Unlock()
	var t stats.Tally
	for _, w := range u.resolved(snap, now, &t) { // without mu: Send waits while the socket is full
		u.send(w, &t)
	}
	u.counters.Add(&t)
}

// resolved removes the packets that can be sent and those that have waited too long, and returns the former. Their dest
// is the realserver in snap.
func (u *unresolved) resolved(snap *balancer.Snapshot, now conntab.Ticks, t *stats.Tally) (ready []unresolvedPacket) {
	u.mu.Lock()
	defer u.mu.Unlock()
	stay := u.packets[:0]
	u.bytes = 0
	for _, w := range u.packets {
		to := neighbour(snap, w.dest)
		switch {
		case to != nil:
			w.dest = to
			ready = append(ready, w)
		case now-w.since > longestWait:
			t.Drop(drop.Unresolved)
		default:
			stay = append(stay, w)
			u.bytes += w.buf.Len()
		}
	}
	clear(u.packets[len(stay):])
	u.packets = stay
	return ready
}

// send sends one packet to its realserver.
func (u *unresolved) send(w unresolvedPacket, t *stats.Tally) {
	hop := w.dest.Via.Out(w.buf, nil, 0)
	_, err := u.port.Send([]egress.Outgoing{{Segment: packet.Segment{Head: w.buf.Bytes()}, Hop: hop, Buf: w.buf}})
	switch {
	case errors.Is(err, os.ErrClosed):
	case err != nil:
		t.Drop(drop.SendError)
	default:
		w.dest.Count(w.worker, 1, uint64(w.buf.Len()))
		t.OutPackets++
		t.OutBytes += uint64(w.buf.Len())
		if w.capture != nil {
			w.capture.put(true, w.buf.Bytes(), nil)
		}
	}
}

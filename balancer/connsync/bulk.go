package connsync

import (
	"encoding/binary"
	"time"

	"vstun/balancer/conntab"
)

// bulk is a transfer of the table to all peers, a part at a time.
type bulk struct {
	walker   *conntab.Walker
	entries  []conntab.Conn // that have been visited and not sent yet
	parts    parts
	due      float64       // records that may be sent
	first    uint64        // sequence number of its first datagram
	sessions []uint64      // of the peers that have asked for it
	done     chan struct{} // closed at its end
	began    conntab.Ticks
}

// SendTable sends the whole table to the peers, at a limited rate. Half-open connections are part of it with halfOpen,
// in the mode VSTUN: before a planned switch. The channel is closed when all is sent.
func (s *Sync) SendTable(halfOpen bool) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := known
	if halfOpen && s.sealer != nil {
		what |= halfOpens
	}
	return s.begin(what).done
}

// parts are the parts of the table that a bulk transfer sends.
type parts uint8

const (
	known     parts = 1 << iota // what is sent at any time
	halfOpens                   // half-open connections
)

// begin begins a bulk transfer, in place of one that is going on. Its parts, peers and waiters are taken over.
func (s *Sync) begin(what parts) *bulk {
	b := &bulk{walker: s.table.NewWalker(), parts: what, first: s.out.seq + 1,
		began: s.latest, done: make(chan struct{})}
	if s.bulk != nil {
		b.parts, b.sessions, b.done = what|s.bulk.parts, s.bulk.sessions, s.bulk.done
	}
	s.bulk = b
	s.wakeUp()
	return b
}

// restLeast is the least time between a bulk transfer and one that is owed. It is as long as the former one took, if
// that is longer: what makes this director owe its table takes half of the rate at most.
const restLeast = 3 * conntab.PerSecond

// beginOwed begins a bulk transfer that is owed, when it is due.
func (s *Sync) beginOwed(now conntab.Ticks) {
	if s.owes && s.bulk == nil && now-s.rested >= max(restLeast, s.took) {
		s.owes = false
		s.begin(known)
	}
}

// wakeUp lets Run work at once.
func (s *Sync) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// During a bulk transfer, the work of a tick is done in bulkParts parts, partEvery apart: all of it at once would keep
// a core, and packets of clients waiting for it, for one to two milliseconds.
const (
	bulkParts = 5
	partEvery = bulkEvery / bulkParts
)

// share returns the share of what is due that a call of work or sendMore does: all, or a part during a bulk transfer.
// The part is larger if the machine was too busy for a call in each tick.
func (s *Sync) share(elapsed conntab.Ticks) float64 {
	if s.bulk == nil {
		return 1
	}
	return float64(min(max(elapsed, 1), bulkParts)) / bulkParts
}

// sendBulk sends a part of a bulk transfer, of which elapsed has made more due.
func (s *Sync) sendBulk(now, elapsed conntab.Ticks) {
	if b := s.bulk; b != nil {
		rate := float64(s.cfg.BulkRate)
		b.due = min(b.due+rate*float64(max(elapsed, 1))/conntab.PerSecond, rate/10)
		s.sendPart(now, s.share(elapsed))
	}
}

// sendPart sends a share of the records that are due of the bulk transfer.
func (s *Sync) sendPart(now conntab.Ticks, share float64) {
	b := s.bulk
	left := b.due - max(b.due*share, float64(s.cfg.BulkRate)/conntab.PerSecond/bulkParts)
	snapshot := s.balancer.Snapshot()
	slots := int(float64(s.table.Slots()) / 20 * share) // a sparse table is passed in 0.2 s or more
	if b.parts == halfOpens {                           // the switch is now
		left, slots = 0, s.table.Slots()/5
	}
	for {
		before := s.counts.sent.Records
		for len(b.entries) > 0 && b.due > max(left, 0) {
			if c := &b.entries[0]; s.inBulk(c) {
				s.repeat(snapshot, c)
			}
			b.entries = b.entries[1:]
			b.due -= float64(s.counts.sent.Records - before)
			before = s.counts.sent.Records
		}
		if len(b.entries) > 0 || slots < 0 {
			return
		}
		if b.walker == nil {
			break
		}
		entries, n, more := b.walker.Next(now)
		b.entries = entries
		if slots -= n; !more {
			b.walker = nil // the entries are still to be sent
		}
	}
	s.out.flush()
	for _, session := range b.sessions {
		body := binary.BigEndian.AppendUint64(make([]byte, 0, 16), session)
		s.out.send(bulkEnd, binary.BigEndian.AppendUint64(body, b.first), 0)
		if p := s.peers[peerID{session: session}]; p != nil {
			p.given, p.gave = true, now
		}
	}
	s.bulk, s.rested, s.took = nil, now, now-b.began
	s.counts.bulks++
	close(b.done)
}

// inBulk reports whether c is part of the bulk transfer. In the mode IPVS, records do not say that they are hearsay: a
// peer would take the old end of its own connection for a new one.
func (s *Sync) inBulk(c *conntab.Conn) bool {
	switch {
	case !c.Template && halfOpen(c.State):
		return s.bulk.parts&halfOpens != 0
	case s.bulk.parts&known == 0:
		return false
	case c.Reported && s.sealer == nil && !c.Template && !c.State.Active() && c.State != conntab.UDP:
		return false
	case c.Template:
		return true
	case c.State == conntab.UDP && c.Packets < threshold:
		return false
	}
	return synced(c.State) && c.Expires >= time.Second
}

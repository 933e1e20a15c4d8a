package connsync

import (
	"vstun/balancer/conntab"
	"vstun/balancer/envelope"
)

// window is the number of sequence numbers from the next one on that are taken. Lower ones are replays or too late.
const window = kept

// Times of a gap in a peer's sequence numbers.
const (
	askAfter = conntab.PerSecond / 50 // the datagrams may be reordered
	askEvery = conntab.PerSecond / 20
	giveUpIn = conntab.PerSecond
	askMost  = 256 // datagrams at once
)

// stream puts a peer's datagrams into order. Each is delivered once at most, and none after a later one: a record never
// overrules a newer one.
type stream struct {
	next    uint64 // the sequence number to deliver
	pending map[uint64][]byte
	gap     conntab.Ticks // since when next is missing, with pending ones
	asked   conntab.Ticks
	skipped uint64 // beyond the window, not reported by giveUp yet
	newest  uint64 // the highest sequence number that is lost, 0 for none

	lost, recovered uint64
}

// push takes the datagram b with the envelope e. It returns false for one that came before or comes too late. b is kept
// until the next pop, and copied if it must wait for others.
func (s *stream) push(e *envelope.Envelope, b []byte, now conntab.Ticks) bool {
	if _, twice := s.pending[e.Seq]; twice || e.Seq < s.next {
		return false
	}
	if s.pending == nil {
		s.pending = map[uint64][]byte{}
	}
	if e.Seq-s.next >= window {
		s.skipped += e.Seq - s.next
		s.next, s.newest = e.Seq, e.Seq-1
		clear(s.pending)
	}
	switch {
	case e.Seq == s.next:
		if len(s.pending) > 0 && s.asked != s.gap {
			s.recovered++
		}
		s.pending[e.Seq] = b
		return true
	case len(s.pending) == 0:
		s.gap, s.asked = now, now
	}
	s.pending[e.Seq] = append([]byte(nil), b...)
	return true
}

// pop returns the next datagram in order.
func (s *stream) pop(now conntab.Ticks) (b []byte, ok bool) {
	if b, ok = s.pending[s.next]; ok {
		delete(s.pending, s.next)
		s.next++
		s.gap, s.asked = now, now
	}
	return b, ok
}

// missing returns the sequence number and number of datagrams to ask for, 0 for none.
func (s *stream) missing(now conntab.Ticks) (from uint64, n int) {
	if len(s.pending) == 0 || now-s.gap < askAfter || s.asked != s.gap && now-s.asked < askEvery {
		return 0, 0
	}
	s.asked = now
	return s.next, int(min(s.first()-s.next, askMost))
}

// first returns the lowest pending sequence number. There is one.
func (s *stream) first() uint64 {
	first := ^uint64(0)
	for seq := range s.pending {
		first = min(first, seq)
	}
	return first
}

// giveUp returns the number of datagrams that do not come any more. Those behind them are next.
func (s *stream) giveUp(now conntab.Ticks) (lost uint64) {
	lost, s.skipped = s.skipped, 0
	if len(s.pending) > 0 && now-s.gap >= giveUpIn {
		first := s.first()
		lost += first - s.next
		s.next, s.newest, s.gap, s.asked = first, first-1, now, now
	}
	s.lost += lost
	return lost
}

package connsync

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
	"vstun/balancer/envelope"
)

// meet processes a datagram of a session that is no peer yet.
func (s *Sync) meet(e *envelope.Envelope, from netip.Addr, now conntab.Ticks) {
	switch {
	case e.Kind == answer && len(e.Body) == 16 && binary.BigEndian.Uint64(e.Body) == s.session &&
		slices.Contains(s.nonces[:], binary.BigEndian.Uint64(e.Body[8:])):
		if len(s.peers) >= maxPeers {
			p := s.mostSilent(now)
			if p.alive(now) {
				s.refuse(Stranger, from, now)
				return
			}
			s.forget(p)
		}
		id := peerID{session: e.Session}
		s.met++
		s.peers[id] = &peer{id: id, met: s.met, addr: from, heard: now, stream: stream{next: e.Seq + 1}, wanted: true}
		s.asked = true // for its table
		return
	case e.Kind == hello && len(e.Body) >= 8:
		if s.mayAnswer(e.Session, now) {
			s.sendAnswer(e.Session, binary.BigEndian.Uint64(e.Body))
		}
	default:
		s.refuse(Unverified, from, now)
	}
	s.asked = true
}

// A session that is no peer gets an answer every answerEvery at most, the newest maxAnswered of them: its hello may be
// a recording. Recordings of some former sessions do not keep a new one from its answer.
const (
	answerEvery = conntab.PerSecond / 10
	maxAnswered = 256
)

// mayAnswer reports whether a session that is no peer gets an answer now.
func (s *Sync) mayAnswer(session uint64, now conntab.Ticks) bool {
	last, known := s.answered[session]
	if known && now-last < answerEvery {
		return false
	}
	if !known && len(s.answered) >= maxAnswered {
		delete(s.answered, slices.MaxFunc(slices.Collect(maps.Keys(s.answered)), func(a, b uint64) int {
			return cmp.Compare(now-s.answered[a], now-s.answered[b])
		}))
	}
	s.answered[session] = now
	return true
}

// takeHello processes a challenge of a peer: a nonce, and the sessions of its own peers, each with a byte that is 1 if
// it wants the whole table of that one.
func (s *Sync) takeHello(p *peer, body []byte, now conntab.Ticks) {
	if len(body) < 8 || (len(body)-8)%9 != 0 {
		return
	}
	knows := false // this director's session
	for list := body[8:]; len(list) > 0; list = list[9:] {
		if binary.BigEndian.Uint64(list) != s.session {
			continue
		}
		knows = true
		// It repeats its wish until it has got the end of the bulk transfer.
		if list[8] == 0 || p.given && now-p.gave < aliveFor ||
			s.bulk != nil && slices.Contains(s.bulk.sessions, p.id.session) {
			continue
		}
		b := s.begin(known)
		b.sessions = append(b.sessions, p.id.session)
	}
	if knows {
		s.known = now
	} else {
		s.sendAnswer(p.id.session, binary.BigEndian.Uint64(body))
	}
}

// sendAnswer answers the challenge of a session.
func (s *Sync) sendAnswer(session, nonce uint64) {
	body := binary.BigEndian.AppendUint64(make([]byte, 0, 16), session)
	s.out.flush() // sequence numbers are in the order of the records
	s.out.send(answer, binary.BigEndian.AppendUint64(body, nonce), 0)
}

// sendHello sends a challenge to all, with the sessions of this director's peers.
func (s *Sync) sendHello(now conntab.Ticks) {
	s.hello, s.asked = now, false
	if now-s.challenged >= helloEvery { // an answer may take that long
		s.challenged = now
		s.nonces[1], s.nonces[0] = s.nonces[0], envelope.Random()
	}
	body := binary.BigEndian.AppendUint64(make([]byte, 0, 128), s.nonces[0])
	for _, p := range s.list() {
		if p.alive(now) {
			wanted := byte(0)
			if p.wanted {
				wanted = 1
			}
			body = append(binary.BigEndian.AppendUint64(body, p.id.session), wanted)
		}
	}
	s.out.flush()
	s.out.send(hello, body, 0)
}

// unknownFor is the time after which a director that no peer knows takes a new session.
const unknownFor = 2 * aliveFor

// renew takes a new session if peers are heard, and none of them has this one: they refuse its datagrams as replayed. A
// virtual machine that goes back to an earlier state has sent its sequence numbers already.
func (s *Sync) renew(now, elapsed conntab.Ticks) {
	heard := slices.ContainsFunc(s.list(), func(p *peer) bool { return p.alive(now) })
	if !heard || elapsed >= aliveFor { // after a pause the peers' datagrams are old
		s.known = now
	}
	if now-s.known < unknownFor {
		return
	}
	s.out.flush()
	s.session, s.known, s.asked = envelope.Random(), now, true
	s.out.seq = 0
	clear(s.out.sent)
	for _, p := range s.peers {
		p.given = false
	}
	if s.bulk != nil {
		s.bulk.sessions, s.bulk.first = nil, 1
	}
}

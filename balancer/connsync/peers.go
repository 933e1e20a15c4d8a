package connsync

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"vstun/balancer/conntab"
)

// peerID identifies a peer: in the mode VSTUN by its session, in the mode IPVS by its address.
type peerID struct {
	session uint64
	addr    netip.Addr
}

// peer is another director.
type peer struct {
	id    peerID
	addr  netip.Addr
	heard conntab.Ticks
	stream
	received Traffic
	wanted   bool // its whole table is wanted
	hasSent  bool // it has sent its whole table, and has completed that at sentAt
	sentAt   conntab.Ticks
	given    bool // it has got the whole table of this director, completely at gave
	gave     conntab.Ticks
}

// answerEvery is the least time between two answers to sessions that are no peers.
const answerEvery = conntab.PerSecond / 20

// giveEvery is the least time between two bulk transfers for a peer in the mode IPVS: anyone can ask for one.
const giveEvery = 3 * conntab.PerSecond

// kernelHellos is the number of datagrams without records by which a director in the mode IPVS asks its peers for their
// tables when it starts.
const kernelHellos = 2

// maxPeers is the largest number of peers. Further ones are strangers.
const maxPeers = 64

// list returns the peers by their addresses.
func (s *Sync) list() []*peer {
	return slices.SortedFunc(maps.Values(s.peers), func(a, b *peer) int { return a.addr.Compare(b.addr) })
}

// takeKernel processes a datagram of the mode IPVS.
func (s *Sync) takeKernel(b []byte, from netip.Addr, now conntab.Ticks) {
	if len(s.cfg.Peers) > 0 && !slices.Contains(s.cfg.Peers, from) {
		s.counts.refuse(Stranger)
		return
	}
	h, rest, fault := parseHeader(b)
	switch {
	case fault != Accepted:
		s.counts.refuse(fault)
		return
	case s.otherID(h.id):
		s.counts.refuse(OtherID)
		return
	}
	id := peerID{addr: from}
	p := s.peers[id]
	if p == nil {
		if s.makeRoom(now); len(s.peers) >= maxPeers {
			s.counts.refuse(Stranger)
			return
		}
		p = &peer{id: id, addr: from, gave: now - giveEvery}
		s.peers[id] = p
		if s.bulk == nil && h.count > 0 {
			s.begin(known)
		}
	}
	p.heard = now
	p.count(b, s.takeRecords(rest, h.count, conntab.Unordered, now))
	// A kernel director sends no datagram without records. One of ours does when it starts.
	switch {
	case h.count > 0:
	case s.bulk != nil:
		s.bulk.again = true
	case now-p.gave >= giveEvery:
		p.gave = now
		s.begin(known)
	}
}

// otherID reports whether datagrams with a syncid are for others (Linux ip_vs_sync.c, ip_vs_process_message).
func (s *Sync) otherID(id uint8) bool { return s.cfg.ID != 0 && id != s.cfg.ID }

// makeRoom removes a peer that has not been heard for long if there are too many.
func (s *Sync) makeRoom(now conntab.Ticks) {
	for id, p := range s.peers {
		if now-p.heard >= forgetAfter || len(s.peers) >= maxPeers && now-p.heard >= aliveFor {
			delete(s.peers, id)
		}
	}
}

// takeRecords puts records into the table, and returns the number of those that it has taken.
func (s *Sync) takeRecords(b []byte, count int, how conntab.Report, now conntab.Ticks) (n int) {
	snapshot := s.balancer.Snapshot()
	eachRecord(b, count, func(r *Record) {
		c, fault := r.connection(snapshot.ServiceAt)
		if fault == Accepted {
			by := how
			if r.Hearsay {
				by = conntab.Hearsay
			}
			fault = faultOf(snapshot.Report(&c, by, now))
		}
		if fault != Accepted {
			s.counts.refuse(fault)
			return
		}
		n++
	}, s.counts.refuse)
	s.counts.received.Records += uint64(n)
	return n
}

// count counts a datagram with n records that were taken.
func (p *peer) count(b []byte, n int) {
	p.received.Datagrams++
	p.received.Bytes += uint64(len(b))
	p.received.Records += uint64(n)
}

// takeEnvelope processes a datagram of the mode VSTUN. A session becomes a peer when it answers a challenge: its
// datagrams cannot be recordings of an earlier time.
func (s *Sync) takeEnvelope(b []byte, from netip.Addr, now conntab.Ticks) {
	e, fault := s.sealer.open(b)
	switch {
	case fault != Accepted:
		s.counts.refuse(fault)
		return
	case e.session == s.session:
		s.counts.refuse(Replayed) // of this director itself
		return
	case s.otherID(e.id):
		s.counts.refuse(OtherID)
		return
	}
	p := s.peers[peerID{session: e.session}]
	if p == nil {
		s.meet(&e, from, now)
		return
	}
	if !p.stream.push(&e, b, now) {
		s.counts.refuse(Replayed)
		return
	}
	p.heard, p.addr = now, from
	// These wait for no other datagram: else two peers that both miss some would wait for each other.
	switch {
	case e.kind == hello:
		s.takeHello(p, e.body, now)
	case e.kind == resend && len(e.body) == 18 && binary.BigEndian.Uint64(e.body) == s.session:
		s.out.sendAgain(binary.BigEndian.Uint64(e.body[8:]), int(binary.BigEndian.Uint16(e.body[16:])))
	}
	s.deliver(p, now)
}

// deliver processes the datagrams of p that are in order.
func (s *Sync) deliver(p *peer, now conntab.Ticks) {
	for {
		b, ok := p.stream.pop(now)
		if !ok {
			return
		}
		e := parseEnvelope(b)
		n := 0
		switch e.kind {
		case records:
			n = s.takeRecords(e.body, e.count, conntab.Ordered, now)
		case bulkEnd:
			if len(e.body) == 16 && binary.BigEndian.Uint64(e.body) == s.session {
				p.wanted, p.hasSent, p.sentAt = false, true, now
			}
		}
		p.count(b, n)
	}
}

// meet processes a datagram of a session that is no peer yet.
func (s *Sync) meet(e *envelope, from netip.Addr, now conntab.Ticks) {
	switch {
	case e.kind == answer && len(e.body) == 16 && binary.BigEndian.Uint64(e.body) == s.session &&
		slices.Contains(s.nonces[:], binary.BigEndian.Uint64(e.body[8:])):
		maps.DeleteFunc(s.peers, func(_ peerID, p *peer) bool { return p.addr == from }) // its former session
		if s.makeRoom(now); len(s.peers) >= maxPeers {
			s.counts.refuse(Stranger)
			return
		}
		id := peerID{session: e.session}
		s.peers[id] = &peer{id: id, addr: from, heard: now, stream: stream{next: e.seq + 1}, wanted: true}
		s.asked = true // for its table
		return
	case e.kind == hello && len(e.body) >= 8:
		// It may be a recording: recordings get few answers.
		if now-s.answered >= answerEvery {
			s.answered = now
			s.sendAnswer(e.session, binary.BigEndian.Uint64(e.body))
		}
	default:
		s.counts.refuse(Unverified)
	}
	s.asked = true
}

// takeHello processes a challenge of a peer: a nonce, and the sessions of its own peers, each with a byte that is 1 if
// it wants the whole table of that one.
func (s *Sync) takeHello(p *peer, body []byte, now conntab.Ticks) {
	if len(body) < 8 || (len(body)-8)%9 != 0 {
		return
	}
	knows := false // this director
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
	if !knows {
		s.sendAnswer(p.id.session, binary.BigEndian.Uint64(body))
	}
}

// sendAnswer answers the challenge of a session.
func (s *Sync) sendAnswer(session, nonce uint64) {
	body := binary.BigEndian.AppendUint64(make([]byte, 0, 16), session)
	s.out.flush() // sequence numbers are in the order of the records
	s.out.send(answer, binary.BigEndian.AppendUint64(body, nonce), 0)
}

// control sends what is due beside records: a hello, and requests for lost datagrams. It reports whether datagrams are
// missing.
func (s *Sync) control(now conntab.Ticks) (missing bool) {
	if s.sealer == nil {
		if s.hellos < kernelHellos && now-s.hello >= helloEvery {
			s.hellos, s.hello = s.hellos+1, now
			s.out.send(records, nil, 0)
		}
		return false
	}
	for _, p := range s.list() {
		if lost := p.stream.giveUp(now); lost > 0 {
			s.counts.lost += lost
			p.wanted = true
			s.deliver(p, now)
		}
		if from, n := p.stream.missing(now); n > 0 {
			body := binary.BigEndian.AppendUint64(make([]byte, 0, 18), p.id.session)
			body = binary.BigEndian.AppendUint64(body, from)
			s.out.flush()
			s.out.send(resend, binary.BigEndian.AppendUint16(body, uint16(n)), 0)
		}
		missing = missing || len(p.stream.pending) > 0
	}
	if now-s.hello >= helloEvery || s.asked && now-s.hello >= helloEvery/10 {
		s.sendHello(now)
	}
	return missing
}

func (s *Sync) sendHello(now conntab.Ticks) {
	s.hello, s.asked = now, false
	s.nonces[1], s.nonces[0] = s.nonces[0], random()
	body := binary.BigEndian.AppendUint64(make([]byte, 0, 128), s.nonces[0])
	for _, p := range s.list() {
		if now-p.heard < aliveFor {
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

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

// peerID identifies a peer: in the mode VSTUN by its session, in the mode IPVS by its address.
type peerID struct {
	session uint64
	addr    netip.Addr
}

// peer is another director.
type peer struct {
	id    peerID
	met   uint64 // in ascending order
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

// kernelHellos is the number of datagrams without records by which a director in the mode IPVS asks its peers for their
// tables when it starts.
const kernelHellos = 2

// MaxDirectors is the largest number of directors that share connections by unicast, the one itself included: each
// sends each datagram to each of the others.
const MaxDirectors = 16

// maxPeers is the largest number of peers. Further ones are strangers.
const maxPeers = 64

// list returns the peers by their addresses. A director that has started again is there twice until its former session
// is silent, the newer one behind the other.
func (s *Sync) list() []*peer {
	return slices.SortedFunc(maps.Values(s.peers), func(a, b *peer) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.met, b.met))
	})
}

// alive reports whether p has been heard within aliveFor.
func (p *peer) alive(now conntab.Ticks) bool { return now-p.heard < aliveFor }

// takeKernel processes a datagram of the mode IPVS.
func (s *Sync) takeKernel(b []byte, from netip.Addr, now conntab.Ticks) {
	if len(s.cfg.Peers) > 0 && !slices.Contains(s.cfg.Peers, from) {
		s.refuse(Stranger, from, now)
		return
	}
	h, rest, fault := parseHeader(b)
	switch {
	case fault != Accepted:
		s.refuse(fault, from, now)
		return
	case s.otherID(h.id):
		s.refuse(OtherID, from, now)
		return
	}
	id := peerID{addr: from}
	p := s.peers[id]
	if p == nil {
		if len(s.peers) >= maxPeers { // a forger has any number of addresses: none of them keeps others out
			delete(s.peers, s.mostSilent(now).id)
		}
		p = &peer{id: id, addr: from}
		s.peers[id] = p
	}
	n := s.takeRecords(rest, h.count, conntab.Unordered, now)
	// A kernel director sends no datagram without records. One of ours does when it starts.
	if h.count == 0 || n > 0 && p.received.Records == 0 {
		s.owes = true
		s.wakeUp()
	}
	p.heard = now
	p.count(b, n)
}

// otherID reports whether datagrams with a syncid are for others (Linux ip_vs_sync.c, ip_vs_process_message).
func (s *Sync) otherID(id uint8) bool { return s.cfg.ID != 0 && id != s.cfg.ID }

// mostSilent returns the peer that has not been heard for the longest time. There is one.
func (s *Sync) mostSilent(now conntab.Ticks) *peer {
	return slices.MaxFunc(s.list(), func(a, b *peer) int { return cmp.Compare(now-a.heard, now-b.heard) })
}

// forgetPeers removes peers that have not been heard for long, and silent ones that have started again since.
func (s *Sync) forgetPeers(now conntab.Ticks) {
	list := s.list()
	for i, p := range list {
		again := i+1 < len(list) && list[i+1].addr == p.addr && s.sealer != nil
		if now-p.heard >= forgetAfter || again && !p.alive(now) {
			s.forget(p)
		}
	}
}

// forget removes a peer. A recorded answer of it does not make it a peer again: challenges begin anew.
func (s *Sync) forget(p *peer) {
	delete(s.peers, p.id)
	s.nonces = [2]uint64{envelope.Random(), envelope.Random()}
	s.challenged -= helloEvery
}

// takeRecords puts records into the table, and returns the number of those that it has taken.
func (s *Sync) takeRecords(b []byte, count int, how conntab.Report, now conntab.Ticks) (n int) {
	snapshot := s.balancer.Snapshot()
	eachRecord(b, count, s.sealer != nil, func(r *Record) {
		c, fault := r.connection(snapshot)
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
	e, fault := opened(s.sealer, b)
	switch {
	case fault != Accepted:
		s.refuse(fault, from, now)
		return
	case e.Session == s.session:
		s.refuse(Replayed, from, now) // of this director itself
		return
	case s.otherID(e.ID):
		s.refuse(OtherID, from, now)
		return
	}
	p := s.peers[peerID{session: e.Session}]
	if p == nil {
		s.meet(&e, from, now)
		return
	}
	if !p.stream.push(&e, b, now) {
		s.refuse(Replayed, from, now)
		return
	}
	p.heard, p.addr = now, from
	// These wait for no other datagram: else two peers that both miss some would wait for each other.
	switch {
	case e.Kind == hello:
		s.takeHello(p, e.Body, now)
	case e.Kind == resend && len(e.Body) == 18 && binary.BigEndian.Uint64(e.Body) == s.session:
		s.out.sendAgain(binary.BigEndian.Uint64(e.Body[8:]), int(binary.BigEndian.Uint16(e.Body[16:])))
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
		e := envelope.Parse(b)
		n := 0
		switch e.Kind {
		case records:
			n = s.takeRecords(e.Body, e.Count, conntab.Ordered, now)
		case bulkEnd:
			if len(e.Body) == 16 && binary.BigEndian.Uint64(e.Body) == s.session {
				p.takeBulkEnd(binary.BigEndian.Uint64(e.Body[8:]), now)
			}
		}
		p.count(b, n)
	}
}

// takeBulkEnd processes the end of a bulk transfer for this director, which began with the sequence number first. A
// transfer of which datagrams are lost is wanted again.
func (p *peer) takeBulkEnd(first uint64, now conntab.Ticks) {
	if p.newest < first {
		p.wanted, p.hasSent, p.sentAt = false, true, now
	}
}

// control sends what is due beside records: a hello, and requests for lost datagrams. It reports whether datagrams are
// missing.
func (s *Sync) control(now, elapsed conntab.Ticks) (missing bool) {
	if s.sealer == nil {
		if s.hellos < kernelHellos && now-s.hello >= helloEvery {
			s.hellos, s.hello = s.hellos+1, now
			s.out.send(records, nil, 0)
		}
		return false
	}
	s.renew(now, elapsed)
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

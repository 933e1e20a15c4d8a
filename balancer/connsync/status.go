package connsync

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
)

// Traffic counts datagrams, their records, and their bytes without IP and UDP headers.
type Traffic struct{ Datagrams, Records, Bytes uint64 }

// counts are the counts of a Sync.
type counts struct {
	sent, received      Traffic // received records are those that were taken
	refused             [numFaults]uint64
	lost, resent, bulks uint64
	inexpressible       uint64
	sendErrors          uint64
	lastError           string // at failedAt
	failedAt            conntab.Ticks
}

func (c *counts) refuse(f Fault) { c.refused[f]++ }

func (c *counts) failed(err error, now conntab.Ticks) { c.lastError, c.failedAt = err.Error(), now }

// Refused is the datagrams of a sender that are refused.
type Refused struct {
	Addr  netip.Addr
	Fault Fault // of the last one
	N     uint64
	Age   time.Duration // since the last one
}

// sender is Refused, as a Sync keeps it.
type sender struct {
	fault Fault
	n     uint64
	last  conntab.Ticks
}

// refuse counts a refused datagram of from. Of more than maxPeers senders in forgetAfter only the first are kept.
func (s *Sync) refuse(f Fault, from netip.Addr, now conntab.Ticks) {
	s.counts.refuse(f)
	if _, known := s.senders[from]; !known && len(s.senders) >= maxPeers {
		maps.DeleteFunc(s.senders, func(_ netip.Addr, o sender) bool { return now-o.last >= forgetAfter })
		if len(s.senders) >= maxPeers {
			return
		}
	}
	s.senders[from] = sender{f, s.senders[from].n + 1, now}
}

// Status is the state of a Sync.
type Status struct {
	Sent, Received Traffic
	Refused        map[string]uint64 // datagrams and records, by reason; only reasons that occurred
	Senders        []Refused         // of refused datagrams, in the order of their addresses
	Lost           uint64            // datagrams of peers that did not come; mode VSTUN
	Resent         uint64            // datagrams that peers had lost
	// ChangesLost are changes of this director's connections that came faster than they could be sent. A bulk transfer
	// makes up for them.
	ChangesLost uint64
	// Inexpressible are records that the mode IPVS has no form for.
	Inexpressible uint64
	SendErrors    uint64
	LastError     string        // of the link; "": none
	ErrorAge      time.Duration // since LastError
	Bulks         uint64        // bulk transfers that were sent
	Sending       bool          // a bulk transfer is going on
	Ready         bool          // see Sync.Ready
	Peers         []PeerStatus
}

// PeerStatus is the state of a peer.
type PeerStatus struct {
	Addr  netip.Addr
	Alive bool          // it has been heard within three seconds; in the mode IPVS a silent one may be alive
	Heard time.Duration // since the last datagram
	// Received is the traffic from it.
	Received Traffic
	// Lost are its datagrams that did not come, Recovered gaps that datagrams sent again have closed.
	Lost, Recovered uint64
	// Complete reports whether it has sent its whole table; Age is the time since. Mode VSTUN.
	Complete bool
	Age      time.Duration
	// Given reports whether it has got the whole table of this director; GivenAge is the time since. Mode VSTUN.
	Given    bool
	GivenAge time.Duration
}

// Status returns the state of s.
func (s *Sync) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, now := &s.counts, s.tick(s.now())
	st := Status{Sent: c.sent, Received: c.received, Lost: c.lost, Resent: c.resent, Inexpressible: c.inexpressible,
		SendErrors: c.sendErrors, LastError: c.lastError, Bulks: c.bulks, Sending: s.bulk != nil, Ready: s.isReady,
		ChangesLost: s.feed.Lost(), Refused: map[string]uint64{}}
	if c.lastError != "" {
		st.ErrorAge = since(c.failedAt, now)
	}
	for f, n := range c.refused {
		if n > 0 {
			st.Refused[Fault(f).String()] = n
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(s.senders), netip.Addr.Compare) {
		o := s.senders[a]
		st.Senders = append(st.Senders, Refused{a, o.fault, o.n, since(o.last, now)})
	}
	list := s.list()
	for i, p := range list {
		if s.sealer != nil && i+1 < len(list) && list[i+1].addr == p.addr {
			continue // a former session
		}
		st.Peers = append(st.Peers, PeerStatus{Addr: p.addr, Alive: p.alive(now), Heard: since(p.heard, now),
			Received: p.received, Lost: p.lost, Recovered: p.recovered, Complete: p.hasSent && !p.wanted,
			Age: since(p.sentAt, now), Given: p.given, GivenAge: since(p.gave, now)})
	}
	return st
}

// since returns the time from t to now.
func since(t, now conntab.Ticks) time.Duration {
	return time.Duration(now-t) * time.Second / conntab.PerSecond
}

// faultOf returns the fault that a report's outcome is.
func faultOf(r balancer.Reported) Fault {
	switch r {
	case balancer.ReportUnknownService:
		return UnknownService
	case balancer.ReportUnknownRealserver:
		return UnknownRealserver
	case balancer.ReportFull:
		return TableFull
	case balancer.ReportRefused:
		return BadState
	}
	return Accepted
}

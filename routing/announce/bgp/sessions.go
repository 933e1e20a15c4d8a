package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"vstun/routing/announce"
)

// Event is a change of a session.
type Event struct {
	Peer   netip.Addr
	Up     bool
	Fault  announce.Fault // if it is not up
	Reason string         // of the fault
	Ended  bool           // the session was up before; else an attempt has failed for another reason than the last one
}

// sessions keeps what happens to the sessions. GoBGP has it only in its log.
type sessions struct {
	report func(Event)
	settle func(netip.Addr) // adapts the engine to the session with a peer; called by a goroutine of its own
	mu     sync.Mutex
	all    map[netip.Addr]*session
}

type session struct {
	up         bool
	since      time.Time
	fault      announce.Fault
	reason     string
	ups, downs uint64
	reset      bool // the engine has a reset that no session has taken
}

// begin begins with a peer anew.
func (s *sessions) begin(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[netip.Addr]*session{}
	}
	n := &session{since: time.Now()}
	if old := s.all[a]; old != nil {
		n.ups, n.downs = old.ups, old.downs
	}
	s.all[a] = n
}

// end forgets a peer.
func (s *sessions) end(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, a)
}

// fill puts the state of a peer into out.
func (s *sessions) fill(out *announce.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.all[out.Peer.Addr]; v != nil {
		out.Since, out.Fault, out.Reason = time.Since(v.since), v.fault, v.reason
		out.Ups, out.Downs = v.ups, v.downs
	}
}

// up notes that a session is established.
func (s *sessions) up(a netip.Addr) {
	s.mu.Lock()
	v := s.all[a]
	if v == nil || v.up {
		s.mu.Unlock()
		return
	}
	v.up, v.since, v.fault, v.reason = true, time.Now(), announce.None, ""
	v.ups++
	s.mu.Unlock()
	s.report(Event{Peer: a, Up: true})
	go s.settle(a)
}

// failed notes why there is no session, or why the present one ends.
func (s *sessions) failed(a netip.Addr, fault announce.Fault, reason string) {
	s.mu.Lock()
	v := s.all[a]
	if v == nil || v.fault == fault && v.reason == reason || v.up && v.fault != announce.None { // the first counts
		s.mu.Unlock()
		return
	}
	v.fault, v.reason = fault, reason
	up := v.up
	s.mu.Unlock()
	if !up {
		s.report(Event{Peer: a, Fault: fault, Reason: reason})
	}
}

// down notes that a session has ended. The reason is the one that failed has noted, if there is one.
func (s *sessions) down(a netip.Addr) {
	s.mu.Lock()
	v := s.all[a]
	if v == nil || !v.up {
		s.mu.Unlock()
		return
	}
	if v.fault == announce.None {
		v.fault, v.reason = announce.Closed, faultTexts[announce.Closed]
	}
	v.up, v.since = false, time.Now()
	v.downs++
	e := Event{Peer: a, Fault: v.fault, Reason: v.reason, Ended: true}
	s.mu.Unlock()
	s.report(e)
	go s.settle(a)
}

// setReset notes that the engine resets a session because of BFD, or has done so. Where there is no session any more,
// the engine keeps the reset and ends the next session with it as soon as that is up; BFD then ends with the session at
// many peers, which brings the next reset, and so on (GoBGP 4.8.0, its issue 3561).
func (s *sessions) setReset(a netip.Addr, waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.all[a]
	if v == nil {
		return
	}
	v.reset = waits
	if waits && !v.up {
		go s.settle(a)
	}
}

// state returns whether there is a session, and whether a reset waits for the next one.
func (s *sessions) state(a netip.Addr) (up, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.all[a]
	return v != nil && v.up, v != nil && !v.up && v.reset
}

// faultTexts are the faults in words.
var faultTexts = map[announce.Fault]string{
	announce.Refused:     "the connection is refused",
	announce.Unanswered:  "the connection is not answered",
	announce.Unreachable: "there is no route to the peer, or its TTL is too small",
	announce.WrongAS:     "the peer has another AS than here",
	announce.Closed:      "the peer has closed the connection",
	announce.HoldTimer:   "the peer was silent for the hold time",
	announce.BFDDown:     "BFD has found the peer silent, or has been ended by it",
}

// refusal is the reason when a peer ends the session before it is up: GoBGP does not have the peer's own reason.
const refusal = "the peer refuses the session: it has another AS for this director, or its log says why"

// handler is the log of GoBGP. It takes from it why sessions fail and end.
type handler struct {
	sessions *sessions
	peer     netip.Addr // of the lines; the zero value: they have it
}

func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

func (h *handler) WithGroup(string) slog.Handler { return h }

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	for _, a := range attrs {
		if p, ok := peerOf(a); ok {
			n.peer = p
		}
	}
	return &n
}

// peerOf returns the peer that an attribute names.
func peerOf(a slog.Attr) (p netip.Addr, ok bool) {
	if a.Key != "Key" && a.Key != "Peer" || a.Value.Kind() != slog.KindString {
		return p, false
	}
	p, err := netip.ParseAddr(a.Value.String())
	return p, err == nil
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	peer := h.peer
	text := map[string]string{}
	var code, subcode int64
	switch r.Message { // the others are many, and of no use
	case "Peer Up", "Peer Down", "failed to connect", "sent notification", "received notification", "state changed",
		"outgoing connection IO error", "hold timer expired", "Expired", "Remote peer signaled BFD down",
		"Can't dial UDP", "Send operation notification":
	default:
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		if p, ok := peerOf(a); ok {
			peer = p
		}
		switch a.Key {
		case "Code":
			code = a.Value.Int64()
		case "Subcode":
			subcode = a.Value.Int64()
		default:
			text[a.Key] = a.Value.String()
		}
		return true
	})
	switch s := h.sessions; r.Message {
	case "Peer Up":
		s.up(peer)
	case "Peer Down":
		s.down(peer)
	case "failed to connect":
		fault, reason := dialFault(text["Error"])
		s.failed(peer, fault, reason)
	case "sent notification", "received notification":
		sent := r.Message[0] == 's'
		if sent && code == bgp.BGP_ERROR_CEASE && subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_RESET {
			s.setReset(peer, false)
		}
		if sent && code == bgp.BGP_ERROR_CEASE && slices.Contains(reconfigured, subcode) {
			return nil
		}
		fault, reason := notificationFault(sent, uint8(code), uint8(subcode), text["Communicated-Reason"])
		s.failed(peer, fault, reason)
	case "state changed": // the only line about a notification that comes in place of the first KEEPALIVE
		if text["old"] == bgp.BGP_FSM_OPENCONFIRM.String() && text["reason"] == "invalid-msg" {
			s.failed(peer, announce.Rejected, refusal)
		}
	case "outgoing connection IO error":
		s.failed(peer, announce.Closed, faultTexts[announce.Closed])
	case "hold timer expired":
		s.failed(peer, announce.HoldTimer, faultTexts[announce.HoldTimer])
	case "Expired", "Remote peer signaled BFD down":
		s.failed(peer, announce.BFDDown, faultTexts[announce.BFDDown])
	case "Send operation notification": // this speaker orders none itself
		s.setReset(peer, true)
	}
	return nil
}

// reconfigured are the subcodes with which this speaker ends sessions because of its configuration. The line comes when
// the peer has its next session already.
var reconfigured = []int64{bgp.BGP_ERROR_SUB_PEER_DECONFIGURED, bgp.BGP_ERROR_SUB_OTHER_CONFIGURATION_CHANGE}

// dialFault returns the fault that the error of a connection attempt shows.
func dialFault(text string) (announce.Fault, string) {
	fault := announce.NoSocket
	switch {
	case strings.Contains(text, "connection refused"):
		fault = announce.Refused
	case strings.Contains(text, "timeout"):
		fault = announce.Unanswered
	case strings.Contains(text, "no route to host"), strings.Contains(text, "network is unreachable"):
		fault = announce.Unreachable
	case strings.Contains(text, "connection reset"):
		fault = announce.Closed
	}
	if s := faultTexts[fault]; s != "" {
		return fault, s
	}
	return fault, text
}

// notificationFault returns the fault that a notification shows, which the speaker has sent or received.
func notificationFault(sent bool, code, subcode uint8, reason string) (announce.Fault, string) {
	name := bgp.NewNotificationErrorCode(code, subcode).String()
	if reason != "" {
		name += ": " + reason
	}
	switch {
	case sent && code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == bgp.BGP_ERROR_SUB_BAD_PEER_AS:
		return announce.WrongAS, faultTexts[announce.WrongAS]
	case code == bgp.BGP_ERROR_FSM_ERROR && sent: // the peer has answered OPEN with a notification
		return announce.Rejected, refusal
	case code == bgp.BGP_ERROR_HOLD_TIMER_EXPIRED && sent:
		return announce.HoldTimer, faultTexts[announce.HoldTimer]
	case sent:
		return announce.Unacceptable, fmt.Sprintf("ended here: %s", name)
	}
	return announce.Rejected, fmt.Sprintf("ended by the peer: %s", name)
}

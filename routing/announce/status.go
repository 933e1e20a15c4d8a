package announce

import (
	"net/netip"
	"time"
)

// State is the state of a session.
type State uint8

// States of a session.
const (
	Down        State = iota // the speaker tries to connect
	Established              // the peer has the routes
)

func (s State) String() string {
	if s == Established {
		return "established"
	}
	return "down"
}

// Fault is why a session is not established.
type Fault uint8

// Faults of a session.
const (
	None         Fault = iota // there is no fault, or the first attempt has no result yet
	Refused                   // the peer's host refuses the connection: nothing listens, or a firewall rejects it
	Unanswered                // the connection is not answered: blocked, or another password
	Unreachable               // there is no route to the peer, or the TTL ends before it
	Closed                    // the peer closes the connection without a reason: it does not know this speaker
	WrongAS                   // the peer has another AS than configured here
	Rejected                  // the peer refuses or has ended the session
	HoldTimer                 // the peer was silent for the hold time
	BFDDown                   // BFD has found the peer silent, or the peer has ended it
	Unacceptable              // the speaker has ended the session for another reason
	NoSocket                  // this host refuses the socket
)

var faultNames = [...]string{"", "refused", "unanswered", "unreachable", "closed", "wrong AS", "rejected",
	"hold timer expired", "BFD down", "unacceptable", "no socket"}

func (f Fault) String() string { return faultNames[f] }

// Status is the state of a speaker.
type Status struct {
	Config   Config
	Routes   []Route   // the announced ones
	Graceful bool      // one of them has the community GRACEFUL_SHUTDOWN
	Sessions []Session // in the order of Config.Peers
}

// ManyRoutes is a number of a peer's routes that shows that the peer sends them without a filter.
const ManyRoutes = 1000

// Session is the state of a session.
type Session struct {
	Peer     Peer
	State    State
	Since    time.Duration // in this state
	Fault    Fault         // of the last attempt, or of the last session
	Reason   string        // of Fault, in words
	Local    netip.Addr    // address of the session
	RouterID netip.Addr    // of the peer
	HoldTime time.Duration // negotiated
	// Announced is the number of routes that the peer has.
	Announced int
	// Missing are the families of announced VIPs that are configured, and that the peer does not have or that have no
	// next hop.
	Missing  []string
	Routes   int    // that the peer has sent: they take memory, and none is used
	BFD      string // state of BFD: "up", "down", "init"; "": none
	Ups      uint64 // times that the session has come up
	Downs    uint64 // times that it has ended
	Sent     uint64 // messages
	Received uint64
}

// Package health finds out which realservers work: it checks them over and over, weighs the results, says which
// services have enough of them, and tells about changes.
//
// A Monitor runs the checks of its Subjects, each a realserver of a service, along the Path that the subject comes
// with: the package knows nothing of tunnels. Each check is a Probe, by a library that speaks its protocol.
package health

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Path is the way by which one realserver is checked. What comes back by it is that realserver's own answer. Its
// methods are called by several goroutines at once.
type Path interface {
	// DialContext opens a connection: network is "tcp" or "udp", address an IP address and a port. What it returns has
	// the methods SetLinger and CloseWrite of a *net.TCPConn if it can.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// Ping sends an ICMP echo request and returns once its answer is there.
	Ping(ctx context.Context, to netip.Addr) error
}

// Check is what a realserver must pass, and how its results are weighed.
type Check struct {
	Probe    Probe
	Interval time.Duration // from one start to the next, at the most; at random up to a tenth less
	Timeout  time.Duration // that one may take; at most Interval
	Rise     int           // so many successes in a row make it up
	Fall     int           // so many failures in a row make it down
	Up       bool          // what it is before its first results
}

// Probe is a type of check: TCP, HTTP, DNS, UDP, Ping, SMTP, Exec or File. Probes are compared by their fields.
type Probe interface {
	// prepare returns what makes the checks, or says what is wrong with the probe.
	prepare() (checker, error)
}

// checker makes checks.
type checker interface {
	// check makes one, and ends when ctx does. The reason says what has answered.
	check(ctx context.Context, at place) (reason string, err error)
}

// weigher is a checker that also returns an offset of the realserver's weight.
type weigher interface {
	checker
	// weigh is check that also returns the offset, which fits an int32.
	weigh(ctx context.Context) (reason string, offset int, err error)
}

// place is where a check is made.
type place struct {
	path Path
	to   netip.Addr
	port uint16
}

// dial connects, for as long as ctx lasts: when it ends, so do reading and writing. end closes the connection.
func (p place) dial(ctx context.Context, network string) (conn net.Conn, end func(), err error) {
	conn, err = p.path.DialContext(ctx, network, netip.AddrPortFrom(p.to, p.port).String())
	if err != nil {
		return nil, nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { stop(); conn.Close() }, nil
}

// Subject is one realserver of one service, and how it is checked.
type Subject struct {
	Service    string
	Realserver netip.Addr
	Check      *Check // nil: it is not checked, and always up
	// where it is checked: VIPs, through the tunnel, or its own address; it is up when all of them are
	Targets []netip.Addr
	Port    uint16 // there; of no meaning for Ping and Exec
	Path    Path   // the way to Targets; of no meaning for Exec
	// the name of Path's kind: checks that are equal, by ways of the same name to the same realserver, are made once
	Way string
}

// State is what a Monitor knows of a subject.
type State struct {
	Service    string
	Realserver netip.Addr
	Checked    bool
	Up         bool
	Known      bool      // a check has confirmed or changed Up, or there is no check; else Up is Check.Up
	Offset     int       // of the realserver's weight; 0 where its check gives none, or is down
	Since      time.Time // of Up; the zero Time: since the start
	// why the last check went as it did, in one line; "" before the first. Of a subject that is down it says why
	Reason   string
	Streak   int           // results in a row that contradict Up, up to that check, as Reason says
	Last     time.Time     // end of that check; the zero Time: there was none
	Duration time.Duration // of that check
	Checks   uint64        // made so far
	Failures uint64        // of them
}

// Change is an event of a subject: it comes up or goes down, its state is known for the first time, the offset of its
// weight changes, or its checks become inconclusive.
type Change struct {
	Service    string
	Realserver netip.Addr
	Checked    bool
	Up         bool
	First      bool   // Up is known for the first time: see State.Known
	Weighed    bool   // only Offset has changed
	Offset     int    // of the realserver's weight
	Blind      bool   // Fall checks in a row could not be made, by a fault of this machine: Up is what was known before
	Reason     string // of the check that made the difference
	Time       time.Time
}

// Package health checks realservers periodically, counts the results, and reports changes. Package health/notify sends
// notifications of changes.
//
// A Monitor runs the checks of its Subjects. A Subject is a realserver of a service, with the Path of its check. The
// package does not depend on tunnels. Each type of check is a Probe in a file of its own, which uses a library for its
// protocol.
package health

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Path connects to one realserver. An answer on it comes from that realserver. Any number of goroutines may call its
// methods.
type Path interface {
	// DialContext opens a connection: network is "tcp" or "udp", address an IP address and a port. If possible, the
	// connection has the methods SetLinger and CloseWrite of a *net.TCPConn.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// Ping sends an ICMP echo request and returns when its answer has arrived.
	Ping(ctx context.Context, to netip.Addr) error
}

// Check is a realserver's check, and how its results are counted.
type Check struct {
	Probe    Probe
	Interval time.Duration // the most from one start to the next; a random part, up to a tenth, is subtracted
	Timeout  time.Duration // of one check; at most Interval
	Rise     int           // consecutive successes until the realserver is up
	Fall     int           // consecutive failures until it is down
	Up       bool          // state before the first results
}

// Probe is a type of check: TCP, HTTP, DNS, UDP, Ping, SMTP, Exec or File. Probes are compared by their fields.
type Probe interface {
	// prepare returns the checker, or an error that names the probe's fault.
	prepare() (checker, error)
}

// checker makes checks.
type checker interface {
	// check makes one check. It returns at the latest when ctx ends. reason describes the answer.
	check(ctx context.Context, at endpoint) (reason string, err error)
}

// weigher is a checker whose result has an offset of the realserver's weight.
type weigher interface {
	checker
	// weigh is like check, but also returns the offset, which fits an int32.
	weigh(ctx context.Context) (reason string, offset int, err error)
}

// endpoint is the address of a check, and the path to it.
type endpoint struct {
	path Path
	to   netip.Addr
	port uint16
}

// dial connects. Reading and writing fail once ctx has ended. end closes the connection.
func (e endpoint) dial(ctx context.Context, network string) (conn net.Conn, end func(), err error) {
	conn, err = e.path.DialContext(ctx, network, netip.AddrPortFrom(e.to, e.port).String())
	if err != nil {
		return nil, nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { stop(); conn.Close() }, nil
}

// Subject is one realserver of one service, and its check.
type Subject struct {
	Service    string
	Realserver netip.AddrPort // its address, and its own port, where it has one, else 0
	Check      *Check         // nil: it is not checked, and always up
	// Targets are the addresses to check: VIPs, through the tunnel, or the realserver's own. The realserver is up when
	// all are.
	Targets []netip.Addr
	Port    uint16 // of Targets; unused by Ping, Exec and File
	Path    Path   // to Targets; unused by Exec and File
	// Way names the kind of Path. Equal checks of a realserver along paths of the same Way are made once.
	Way string
}

// name writes the realserver's address, and its own port, where it has one.
func (s *Subject) name() string {
	if s.Realserver.Port() == 0 {
		return s.Realserver.Addr().String()
	}
	return s.Realserver.String()
}

// State is a subject's state.
type State struct {
	Service    string
	Realserver netip.AddrPort
	Checked    bool
	Up         bool
	Known      bool      // a check has confirmed or changed Up, or there is no check; else Up is Check.Up
	Offset     int       // of the realserver's weight; 0 for a check without one, and while the realserver is down
	Since      time.Time // of Up; the zero Time: since the start
	// Reason explains the result of the last check in one line; "" before the first. For a subject that is down,
	// it explains the last check of the first of Targets that is down.
	Reason   string
	Streak   int           // consecutive results that contradict Up, up to that check
	Last     time.Time     // end of that check; the zero Time: there was none
	Duration time.Duration // of that check
	Checks   uint64        // number of checks so far
	Failures uint64        // number of failures among Checks
}

// Change is an event of a subject: it comes up or goes down, its state is known for the first time, the offset of its
// weight changes, or its checks become inconclusive.
type Change struct {
	Service    string
	Realserver netip.AddrPort
	Checked    bool
	Up         bool
	First      bool // Up is known for the first time: see State.Known
	Weighed    bool // only Offset has changed
	Offset     int  // of the realserver's weight
	// Inconclusive means that Fall consecutive checks have failed because of this machine. Up has its former value.
	Inconclusive bool
	Reason       string // of the check that has caused the change
	Time         time.Time
}

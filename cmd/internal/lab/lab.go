// Package lab builds a small internet out of network namespaces: hosts for the demo, the end-to-end tests and
// benchmarks. It needs root and a kernel with veth, and no other program.
//
//	              client 10.0.1.2
//	                 |
//	        .1 +------------+ .1
//	     +-----|   router   |-----+-------- … one link for each web server
//	     |     +------------+     |
//	director 10.0.2.2         web1 10.0.11.2     web2 10.0.12.2     …
//
// Each host has a /24 of its own on the one link to the router, where it is called eth0; the router has .1 in each
// subnet and names the links after the hosts. The router routes the virtual address, 198.51.100.80, to the director.
// IPv6 mirrors all of it: the host 10.0.11.2 is fd00:0:11::2 as well, in a /64, and the virtual address is
// 2001:db8:100::80. The caller's network namespace is neither changed nor connected.
//
// That is the network Routed. In the network LAN the director and the web servers share the virtual address's subnet:
//
//	client 10.0.1.2 ── .1 router .1 ── switch ─┬─ director 10.0.2.2    virtual address 10.0.2.80, fd00:0:2::80
//	                                           ├─ director2 10.0.2.3   with Spec.Backup
//	                                           ├─ insider  10.0.2.9
//	                                           └─ web1 10.0.2.11, web2 10.0.2.12, …
//
// In the network NAT the director is the web servers' gateway:
//
//	client 10.0.1.2 ── .1 router .1 ── 10.0.2.2 director 10.0.3.1 ── switch ─┬─ insider 10.0.3.9
//	                                       eth0          eth1                └─ web1 10.0.3.11, web2 10.0.3.12, …
//
// The switch is a namespace with a bridge, whose ports are named after the hosts. The insider is one more client. Every
// host's only link is its eth0, beside the router's to the switch (lan) and the director's to the switch (eth1).
package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Spec describes the lab to build.
type Spec struct {
	// Prefix begins the names of the namespaces: Prefix-client, Prefix-router, Prefix-director, Prefix-web1, ….
	// Labs with different prefixes can be up at the same time. 1 to 40 letters, digits, dots, dashes and underscores,
	// the first a letter or a digit.
	Prefix string
	// Webs is the number of web servers, 0 to 245; in the networks LAN and NAT 0 to 60.
	Webs int
	// Network is how the hosts are connected.
	Network Network
	// Backup adds a second director to the network LAN: director2.
	Backup bool
	// Links has options for a host's link to the router or the switch, by the name of the host ("client", "director",
	// "web1", "insider"). The link "lan" is the router's to the switch in the network LAN, the director's in NAT.
	Links map[string]Link
}

// Link is the link between a host and the router, or the switch. The zero value is the default.
type Link struct {
	// MTU is the MTU at both ends, in bytes without the Ethernet header. 0 means 1500. Below 1280 the link has no IPv6
	// (RFC 8200, section 5).
	MTU int
	// Segmented makes the router, or the switch, cut GSO packets that it sends on this link into packets of the MTU, as
	// a network card does. Without it a GSO packet passes the link as one.
	Segmented bool
	// GRO makes the host's end merge segments that arrive within this time into GSO packets, as a network card does
	// (generic receive offload): 50 µs is usual. It needs Segmented, since there are no segments otherwise. 0 switches
	// it off.
	GRO time.Duration
}

// Lab is a set of hosts that are up. Its methods and those of its hosts may be called from any goroutine.
type Lab struct {
	Client   *Host
	Router   *Host // its Addr is the one that the client sees
	Director *Host
	Backup   *Host // the second director; nil without Spec.Backup
	Webs     []*Host
	Insider  *Host      // a client in the web servers' subnet; nil in the network Routed
	VIP      netip.Addr // 198.51.100.80, routed to the director; LAN: 10.0.2.80, unrouted. No host owns it yet
	VIP6     netip.Addr // 2001:db8:100::80; LAN: fd00:0:2::80; likewise, if the director has IPv6

	bridge  *Host        // the switch; nil in the network Routed
	lock    net.Listener // claims the prefix
	hosts   []*Host
	threads sync.WaitGroup

	mu        sync.Mutex
	closed    chan struct{}         // no process starts any more
	release   chan struct{}         // no process runs any more: the hosts' threads may end
	processes map[*Process]struct{} // those that run
	closeErr  error
	closeOnce sync.Once
}

// New builds a lab and returns when all its links carry packets. It first removes the namespaces of a dead lab with the
// same prefix. It returns an error if another process has a lab with this prefix. On an error it leaves no namespace.
func New(spec Spec) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("making network namespaces needs root: run as root")
	}
	y, err := plan(spec)
	if err != nil {
		return nil, err
	}
	lock, err := claim(spec.Prefix)
	if err != nil {
		return nil, err
	}
	l := &Lab{
		Client:    y.client,
		Router:    y.router,
		Director:  y.director,
		Backup:    y.backup,
		Insider:   y.insider,
		bridge:    y.bridge,
		Webs:      y.webs,
		VIP:       y.vip[0],
		VIP6:      y.vip[1],
		lock:      lock,
		closed:    make(chan struct{}),
		release:   make(chan struct{}),
		processes: map[*Process]struct{}{},
	}
	if err := l.build(spec.Prefix, y); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(prefix string, y *layout) error {
	if err := prepareNamespaceDir(); err != nil {
		return err
	}
	if err := removeStale(prefix); err != nil {
		return err
	}
	for _, h := range y.hosts {
		h.lab = l
		if err := h.create(); err != nil {
			return err
		}
		l.hosts = append(l.hosts, h)
		if err := h.prepare(y.role(h)); err != nil {
			return err
		}
	}
	for _, w := range y.wires {
		if err := w.connect(); err != nil {
			return err
		}
	}
	for _, r := range y.routes {
		if err := l.Router.do("route", func() error { return addRoutes(r.to, r.via) }); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), carrierTimeout)
	defer cancel()
	for _, w := range y.wires {
		if err := w.awaitCarrier(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the processes of the lab's hosts, with SIGTERM and, five seconds later, SIGKILL. It then deletes the
// namespaces. It returns an error if a process had to be killed or a namespace could not be deleted. A second call does
// nothing and returns the same error. The caller must close its own sockets and counters in the lab: they keep their
// namespace alive, without links.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	close(l.closed)
	var running []*Process
	for p := range l.processes {
		running = append(running, p)
	}
	l.mu.Unlock()

	errs := make([]error, len(running))
	var stops sync.WaitGroup
	for i, p := range running {
		stops.Go(func() {
			if err := p.Stop(); errors.Is(err, ErrKilled) {
				errs[i] = err
			}
		})
	}
	stops.Wait()
	close(l.release)
	l.threads.Wait()

	errs = append(errs, l.disconnect())
	for _, h := range l.hosts {
		errs = append(errs, deleteNamespace(h.Namespace))
	}
	errs = append(errs, l.lock.Close())
	return errors.Join(errs...)
}

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
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"sync"
	"time"
)

// Spec describes the lab to build.
type Spec struct {
	// Prefix begins the names of the namespaces: Prefix-client, Prefix-router, Prefix-director, Prefix-web1, ….
	// Labs with different prefixes can be up at the same time. 1 to 40 letters, digits, dots, dashes and underscores,
	// the first a letter or a digit.
	Prefix string
	// Webs is the number of web servers, 0 to 245.
	Webs int
	// Links has options for a host's link to the router, by the name of the host ("client", "director", "web1").
	Links map[string]Link
}

// Link is the link between a host and the router. The zero value is the default.
type Link struct {
	// MTU is the MTU at both ends, in bytes without the Ethernet header. 0 means 1500. Below 1280 the link has no IPv6
	// (RFC 8200, section 5).
	MTU int
	// Segmented makes the router cut GSO packets that it sends on this link into packets of the MTU, as a network
	// card does. Without it a GSO packet passes the link as one.
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
	Webs     []*Host
	VIP      netip.Addr // 198.51.100.80, routed to the director; no host owns it yet
	VIP6     netip.Addr // 2001:db8:100::80, likewise, if the director has IPv6

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
	hosts, err := plan(spec)
	if err != nil {
		return nil, err
	}
	lock, err := claim(spec.Prefix)
	if err != nil {
		return nil, err
	}
	l := &Lab{
		Client:    hosts[1],
		Router:    hosts[0],
		Director:  hosts[2],
		Webs:      hosts[3:],
		VIP:       netip.AddrFrom4([4]byte{198, 51, 100, 80}),
		VIP6:      netip.MustParseAddr("2001:db8:100::80"),
		lock:      lock,
		closed:    make(chan struct{}),
		release:   make(chan struct{}),
		processes: map[*Process]struct{}{},
	}
	if err := l.build(spec, hosts); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// plan checks the spec and lists the hosts: router, client, director, web servers.
func plan(spec Spec) ([]*Host, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$`).MatchString(spec.Prefix) {
		return nil, fmt.Errorf("prefix %q: use 1 to 40 letters, digits, dots, dashes and underscores", spec.Prefix)
	}
	if spec.Webs < 0 || spec.Webs > 245 {
		return nil, fmt.Errorf("%d web servers: use 0 to 245", spec.Webs)
	}
	host := func(name string, subnet, last int) *Host {
		return &Host{
			Name:      name,
			Namespace: spec.Prefix + "-" + name,
			Addr:      netip.AddrFrom4([4]byte{10, 0, byte(subnet), byte(last)}),
			// the same digits, here hexadecimal
			Addr6: netip.MustParseAddr(fmt.Sprintf("fd00:0:%d::%d", subnet, last)),
			work:  make(chan func()),
		}
	}
	hosts := []*Host{host("router", 1, 1), host("client", 1, 2), host("director", 2, 2)}
	for n := 1; n <= spec.Webs; n++ {
		hosts = append(hosts, host(fmt.Sprintf("web%d", n), 10+n, 2))
	}
	known := map[string]bool{}
	for _, h := range hosts[1:] {
		known[h.Name] = true
	}
	for name, link := range spec.Links {
		if !known[name] {
			return nil, fmt.Errorf("link of %q: no such host behind the router", name)
		}
		if link.MTU != 0 && (link.MTU < 68 || link.MTU > 65535) {
			return nil, fmt.Errorf("link of %s: MTU %d: use 68 to 65535, or 0 for 1500", name, link.MTU)
		}
		if link.GRO < 0 || link.GRO > time.Second {
			return nil, fmt.Errorf("link of %s: GRO for %v: use up to 1s, or 0 for none", name, link.GRO)
		}
	}
	for i, h := range hosts {
		name := h.Name
		if i == 0 {
			name = hosts[1].Name // the router's address is on the client's link
		}
		if mtu := spec.Links[name].MTU; mtu != 0 && mtu < minMTU6 || !hasIPv6() {
			h.Addr6 = netip.Addr{}
		}
	}
	return hosts, nil
}

func (l *Lab) build(spec Spec, hosts []*Host) error {
	if err := prepareNamespaceDir(); err != nil {
		return err
	}
	if err := removeStale(spec.Prefix); err != nil {
		return err
	}
	for _, h := range hosts {
		h.lab = l
		if err := h.create(); err != nil {
			return err
		}
		l.hosts = append(l.hosts, h)
		if err := h.prepare(h == l.Router); err != nil {
			return err
		}
	}
	for _, h := range hosts[1:] {
		if err := l.connect(h, spec.Links[h.Name]); err != nil {
			return err
		}
	}
	if err := l.routeVIP(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), carrierTimeout)
	defer cancel()
	for _, h := range hosts[1:] {
		if err := l.awaitCarrier(ctx, h); err != nil {
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

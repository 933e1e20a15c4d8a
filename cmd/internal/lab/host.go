package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netns"
)

// Host is one host of a lab: a network namespace.
type Host struct {
	Name      string     // "client", "router", "director", "web1", …
	Namespace string     // the name for `ip netns exec`
	Addr      netip.Addr // on its link to the router
	Addr6     netip.Addr // the same with IPv6; not valid where the link or the kernel has no IPv6

	lab  *Lab
	work chan func() // to the host's own thread
}

// Do runs fn on an operating system thread inside the host's namespace and returns fn's error. Sockets that fn opens
// stay in the namespace wherever they are used later. Goroutines that fn starts are not in the namespace. /proc/net
// shows another namespace: use /proc/thread-self/net (/proc/sys/net is right). In a test fn must return its failures
// and not call t.Fatal, since it runs on another goroutine.
func (h *Host) Do(fn func() error) error {
	err := fmt.Errorf("%s: the function did not return: it ended its goroutine", h.Name)
	onThread(func() {
		if e := h.enter(); e != nil {
			err = e
			return
		}
		err = fn()
	})
	return err
}

// enter moves this thread into the host's namespace.
func (h *Host) enter() error {
	ns, err := netns.GetFromName(h.Namespace)
	if err != nil {
		return fmt.Errorf("%s: open namespace %s (is the lab closed?): %w", h.Name, h.Namespace, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("%s: enter namespace %s: %w", h.Name, h.Namespace, err)
	}
	return nil
}

// Dial is DialContext without a context.
func (h *Host) Dial(network, address string) (net.Conn, error) {
	return h.DialContext(context.Background(), network, address)
}

// DialContext connects from the host, as net.Dialer does. The address must be literal: names would be resolved on the
// caller's machine, not in the lab.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return in(h, address, func() (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	})
}

// Listen listens on the host for connections, as net.Listen does. The address must be literal; an empty one (":80")
// means all of the host's addresses.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	return in(h, address, func() (net.Listener, error) { return net.Listen(network, address) })
}

// ListenPacket listens on the host for datagrams, as net.ListenPacket does; addresses as in Listen. With raw networks
// ("ip4:4") the address has no port.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	return in(h, address, func() (net.PacketConn, error) { return net.ListenPacket(network, address) })
}

// in opens a socket in the host's namespace.
func in[S any](h *Host, address string, open func() (S, error)) (socket S, err error) {
	if err := literal(address); err != nil {
		return socket, fmt.Errorf("%s: address %q: %w", h.Name, address, err)
	}
	err = h.Do(func() (err error) {
		socket, err = open()
		return err
	})
	if err != nil {
		return socket, fmt.Errorf("%s: %w", h.Name, err)
	}
	return socket, nil
}

// literal refuses an address that the net package would have to resolve. It resolves names on other goroutines, which
// are not in the namespace.
func literal(address string) error {
	host := address
	if _, err := netip.ParseAddr(address); err != nil && strings.Contains(address, ":") {
		if host, _, err = net.SplitHostPort(address); err != nil {
			return err
		}
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return errors.New("want an IP address, since names can't be resolved inside the lab")
	}
	return nil
}

package routing

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Path is the way by which the kernel would send a packet.
type Path struct {
	Source netip.Addr // the address that it would have as source
	MTU    int        // bytes: the route's mtu metric, or a path MTU learned on it, else the device's MTU
	Link   string
}

// Tunnel is a kernel device that takes packets of IP protocol 4 (RFC 2003).
type Tunnel struct {
	Name string
	Up   bool
}

// LinkExists reports whether there is a device of this name in the calling thread's network namespace.
func LinkExists(name string) (bool, error) {
	h, err := newHandle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	_, err = h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("device %s: %w", name, err)
	}
	return true, nil
}

// LocalAddr reports whether packets to a are delivered on this host, and by which device: because the device has the
// address, or because a route of type local covers it.
func LocalAddr(a netip.Addr) (link string, ok bool, err error) {
	h, err := newHandle()
	if err != nil {
		return "", false, err
	}
	defer h.Close()
	a = a.Unmap()
	index := 0
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, family(a)) })
	if err != nil {
		return "", false, fmt.Errorf("list addresses: %w", err)
	}
	for _, have := range addrs {
		if prefixOf(have.IPNet).Addr() == a {
			index = have.LinkIndex
		}
	}
	if index == 0 {
		routes, err := h.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return "", false, nil // no route at all is an answer too
		}
		index = routes[0].LinkIndex
	}
	l, err := h.LinkByIndex(index)
	if err != nil {
		return "", false, fmt.Errorf("device of address %s: %w", a, err)
	}
	return l.Attrs().Name, true, nil
}

// PathTo asks the kernel how it would send a packet to dst (RTM_GETROUTE). A path MTU that the kernel learned from
// ICMP counts, as long as it remembers it (10 minutes by default).
func PathTo(dst netip.Addr) (Path, error) {
	h, err := newHandle()
	if err != nil {
		return Path{}, err
	}
	defer h.Close()
	dst = dst.Unmap()
	routes, err := h.RouteGet(dst.AsSlice())
	if err != nil {
		return Path{}, fmt.Errorf("no route to %s: %w", dst, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 {
		return Path{}, fmt.Errorf("no route to %s", dst)
	}
	r := routes[0]
	l, err := h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Path{}, fmt.Errorf("device of the route to %s: %w", dst, err)
	}
	p := Path{MTU: l.Attrs().MTU, Link: l.Attrs().Name}
	if r.MTU > 0 {
		p.MTU = min(p.MTU, r.MTU)
	}
	src, ok := netip.AddrFromSlice(r.Src)
	if !ok {
		return Path{}, fmt.Errorf("route to %s by %s has no source address; give %s an address", dst, p.Link, p.Link)
	}
	p.Source = src.Unmap()
	return p, nil
}

// KernelTunnels lists the kernel's tunnel devices that take IP protocol 4 off the wire. One that is up takes a copy of
// each packet that a raw socket gets; one that is down still makes the kernel answer those that fit no tunnel with
// ICMP port unreachable (tunnel4_rcv in net/ipv4/tunnel4.c).
func KernelTunnels() ([]Tunnel, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var found []Tunnel
	for _, l := range links {
		if takesIPIP(l) {
			found = append(found, Tunnel{Name: l.Attrs().Name, Up: isUp(l)})
		}
	}
	return found, nil
}

func takesIPIP(l netlink.Link) bool {
	proto := uint8(unix.IPPROTO_IPV6)
	switch t := l.(type) {
	case *netlink.Iptun:
		proto = t.Proto
	case *netlink.Sittun:
		proto = t.Proto
	}
	return proto == 0 || proto == unix.IPPROTO_IPIP // 0 is mode any
}

func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return h, nil
}

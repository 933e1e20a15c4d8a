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
	Source netip.Addr // the address that it would have as source; the zero Addr if the kernel finds none
	MTU    int        // bytes, 65535 at most: the route's mtu metric, or a path MTU learned on it, else the device's MTU
	Link   string
}

// Paths asks the kernel how it would send a packet to each of dsts (RTM_GETROUTE), one after the other on one socket:
// 10,000 take some 300 ms. A path MTU that the kernel learned from ICMP counts, as long as it remembers it (10 minutes
// by default). The answer lacks the addresses to which there is no way. It is an error only if the kernel can't be
// asked.
func Paths(dsts []netip.Addr) (map[netip.Addr]Path, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links := map[int]netlink.Link{}
	paths := make(map[netip.Addr]Path, len(dsts))
	for _, dst := range dsts {
		if _, known := paths[dst]; known || !dst.IsValid() {
			continue
		}
		p, ok, err := pathTo(h, dst, links)
		if err != nil {
			return nil, fmt.Errorf("route to %s: %w", dst, err)
		}
		if ok {
			paths[dst] = p
		}
	}
	return paths, nil
}

// pathTo looks up one way, and the device in links or, for the first time, in the kernel.
func pathTo(h *netlink.Handle, dst netip.Addr, links map[int]netlink.Link) (p Path, ok bool, err error) {
	routes, err := h.RouteGet(dst.Unmap().AsSlice())
	if isNoRoute(err) {
		return Path{}, false, nil
	}
	if err != nil || len(routes) == 0 || leadsNowhere(routes[0].Type) {
		return Path{}, false, err
	}
	r := routes[0]
	l := links[r.LinkIndex]
	if l == nil {
		l, err = h.LinkByIndex(r.LinkIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) { // deleted just now
			return Path{}, false, nil
		}
		if err != nil {
			return Path{}, false, err
		}
		links[r.LinkIndex] = l
	}
	p = Path{MTU: min(l.Attrs().MTU, maxMTU), Link: l.Attrs().Name}
	if r.MTU > 0 {
		p.MTU = min(p.MTU, r.MTU)
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok && !src.IsUnspecified() {
		p.Source = src.Unmap()
	}
	return p, true, nil
}

// isNoRoute says that err is the answer that there is no way: none at all, unreachable, prohibit, blackhole, no IPv6.
func isNoRoute(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ESRCH, unix.EOPNOTSUPP, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// leadsNowhere says that routes of this type end packets; IPv6 gives such a route as the answer, IPv4 an error.
func leadsNowhere(routeType int) bool {
	switch routeType {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return true
	}
	return false
}

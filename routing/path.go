package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Path is the way by which the kernel would send a packet.
type Path struct {
	Source netip.Addr // the address that it would have as source; the zero Addr if the kernel finds none
	// bytes, 65535 at most: the route's mtu metric, or a path MTU learned on it, else the device's MTU, which IPv6 may
	// have of its own
	MTU  int
	Link string
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
	devices := map[int]*device{}
	paths := make(map[netip.Addr]Path, len(dsts))
	for _, dst := range dsts {
		if _, known := paths[dst]; known || !dst.IsValid() {
			continue
		}
		p, ok, err := pathTo(h, dst, devices)
		if err != nil {
			return nil, fmt.Errorf("route to %s: %w", dst, err)
		}
		if ok {
			paths[dst] = p
		}
	}
	return paths, nil
}

// pathTo looks up one way, and the device in devices or, for the first time, in the kernel.
func pathTo(h *netlink.Handle, dst netip.Addr, devices map[int]*device) (p Path, ok bool, err error) {
	dst = dst.Unmap()
	routes, err := h.RouteGet(dst.AsSlice())
	if isNoRoute(err) {
		return Path{}, false, nil
	}
	if err != nil || len(routes) == 0 || leadsNowhere(routes[0].Type) {
		return Path{}, false, err
	}
	r := routes[0]
	d := devices[r.LinkIndex]
	if d == nil {
		l, err := h.LinkByIndex(r.LinkIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) { // deleted just now
			return Path{}, false, nil
		}
		if err != nil {
			return Path{}, false, err
		}
		d = &device{name: l.Attrs().Name, mtu: min(l.Attrs().MTU, maxMTU)}
		devices[r.LinkIndex] = d
	}
	p = Path{MTU: d.mtu, Link: d.name}
	switch {
	case r.MTU > 0:
		p.MTU = min(p.MTU, r.MTU)
	case !dst.Is4():
		if p.MTU, err = d.mtuIPv6(); err != nil {
			return Path{}, false, err
		}
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok && !src.IsUnspecified() {
		p.Source = src.Unmap()
	}
	return p, true, nil
}

// device is what Paths has learned of one.
type device struct {
	name string
	mtu  int
	mtu6 int // 0: not asked for yet
}

// mtuIPv6 is the largest IPv6 packet that the kernel sends by d where the route says nothing (Linux net/ipv6/route.c,
// ip6_mtu): an administrator lowers it, or a router by its advertisements (RFC 4861, section 4.6.4).
func (d *device) mtuIPv6() (int, error) {
	if d.mtu6 > 0 {
		return d.mtu6, nil
	}
	d.mtu6 = d.mtu
	v, err := readSysctl("net/ipv6/conf/" + d.name + "/mtu")
	if errors.Is(err, fs.ErrNotExist) { // deleted or renamed just now
		return d.mtu6, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(v)
	if err == nil && n > 0 {
		d.mtu6 = min(d.mtu, n)
	}
	return d.mtu6, err
}

// isNoRoute says that err is the answer that there is no way: none at all, unreachable, prohibit, blackhole, no IPv6.
func isNoRoute(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ESRCH,
		unix.EOPNOTSUPP, unix.EAFNOSUPPORT} {
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

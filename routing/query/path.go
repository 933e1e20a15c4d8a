package query

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

const maxMTU = 65535 // total length of an IP packet

// Path describes how the kernel sends a packet.
type Path struct {
	Link    string     // the device
	Index   int        // its interface index
	Gateway netip.Addr // the zero Addr: the destination is on the link
	Local   bool       // the packet is delivered on this host

	// Source is the address that a packet without one gets. It is the zero Addr if the kernel finds none, or if the
	// request named one.
	Source netip.Addr

	// MTU is the largest packet in bytes, 65535 at most. It is the route's mtu metric, or a path MTU learned from ICMP
	// while the kernel keeps it (10 minutes by default). Without either it is the device's MTU, or the device's IPv6
	// MTU.
	MTU int

	Table  int // the routing table of the route
	AdvMSS int // the MSS that TCP advertises by the route; 0: by the MTU
}

// Paths asks the kernel for its paths to dsts (RTM_GETROUTE), one after the other on one socket: 10,000 take some 300
// ms. The result lacks addresses without a path. An error means that the kernel can't be asked.
func Paths(dsts []netip.Addr) (map[netip.Addr]Path, error) {
	return ask(func(h *netlink.Handle) (map[netip.Addr]Path, error) {
		devices := map[int]*device{}
		paths := make(map[netip.Addr]Path, len(dsts))
		for _, dst := range dsts {
			if _, known := paths[dst]; known || !dst.IsValid() {
				continue
			}
			p, err := pathTo(h, dst, netip.Addr{}, "", 0, devices)
			if err != nil {
				return nil, err
			}
			if p != nil {
				paths[dst] = *p
			}
		}
		return paths, nil
	})
}

// Lookup asks the kernel for the path of a packet from an address of this host to dst. If from is the zero Addr, the
// kernel chooses the source. ok is false if there is no path.
func Lookup(dst, from netip.Addr) (p Path, ok bool, err error) { return lookup(dst, from, "") }

// LookupForwarded asks the kernel for the path of a packet to dst that a device receives from an address. ok is false
// if the kernel refuses the packet, or has no path.
func LookupForwarded(dst, from netip.Addr, link string) (p Path, ok bool, err error) {
	return lookup(dst, from, link)
}

func lookup(dst, from netip.Addr, link string) (p Path, ok bool, err error) {
	found, err := ask(func(h *netlink.Handle) (*Path, error) {
		return pathTo(h, dst, from, link, 0, map[int]*device{})
	})
	if found == nil {
		return Path{}, false, err
	}
	return *found, true, nil
}

// pathTo asks for one path, of a packet with this mark. It asks for the path's device unless devices has it, and adds
// it there. It returns nil if there is no path.
func pathTo(h *netlink.Handle, dst, from netip.Addr, link string, mark uint32,
	devices map[int]*device) (*Path, error) {
	dst = dst.Unmap()
	options := netlink.RouteGetOptions{Iif: link, Mark: mark}
	if from.IsValid() {
		options.SrcAddr = from.AsSlice()
	}
	routes, err := h.RouteGetWithOptions(dst.AsSlice(), &options)
	if isNoRoute(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("route to %s: %w", dst, err)
	}
	if len(routes) == 0 || kernel.LeadsNowhere(routes[0].Type) {
		return nil, nil
	}
	r := routes[0]
	d := devices[r.LinkIndex]
	if d == nil {
		l, err := h.LinkByIndex(r.LinkIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) { // deleted just now
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("device of the route to %s: %w", dst, err)
		}
		d = &device{name: l.Attrs().Name, mtu: min(l.Attrs().MTU, maxMTU)}
		devices[r.LinkIndex] = d
	}
	p := &Path{Link: d.name, Index: r.LinkIndex, Local: r.Type == unix.RTN_LOCAL, MTU: d.mtu, Table: r.Table,
		AdvMSS: r.AdvMSS}
	switch {
	case r.MTU > 0:
		p.MTU = min(p.MTU, r.MTU)
	case !dst.Is4():
		if p.MTU, err = d.mtuIPv6(); err != nil {
			return nil, fmt.Errorf("MTU of %s: %w", d.name, err)
		}
	}
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		p.Gateway = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(r.Src); ok && !a.IsUnspecified() {
		p.Source = a.Unmap()
	}
	return p, nil
}

// device is the part of a device that paths need.
type device struct {
	name string
	mtu  int
	mtu6 int // 0: not asked for yet
}

// mtuIPv6 returns the largest IPv6 packet that the kernel sends by d if the route has no MTU of its own (Linux
// net/ipv6/route.c, ip6_mtu). An administrator can lower it, or a router by its advertisements (RFC 4861, section
// 4.6.4).
func (d *device) mtuIPv6() (int, error) {
	if d.mtu6 > 0 {
		return d.mtu6, nil
	}
	d.mtu6 = d.mtu
	v, err := kernel.ReadSysctl("net/ipv6/conf/" + d.name + "/mtu")
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

// isNoRoute reports whether err means that there is no path: no route, unreachable, prohibit, blackhole, or no IPv6.
func isNoRoute(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ESRCH,
		unix.EOPNOTSUPP, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

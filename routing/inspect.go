package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ReadSysctl reads one value below /proc/sys, by a key such as net/ipv4/ip_forward. Several numbers have one space
// between them.
func ReadSysctl(key string) (string, error) { return readSysctl(key) }

// Hop is what the kernel does with a packet: where it goes next.
type Hop struct {
	Link    string
	Local   bool       // it is delivered on this host
	Gateway netip.Addr // the zero Addr: the destination is on the link
	Source  netip.Addr // that a packet without one gets; where one was asked for, the zero Addr
	Table   int        // of the route
	AdvMSS  int        // what TCP advertises by this route; 0: what its MTU says
}

// Lookup asks the kernel what it does with a packet to dst (RTM_GETROUTE), of this host's address from, or, where that
// is the zero Addr, one of the kernel's choice. ok is false where there is no way.
func Lookup(dst, from netip.Addr) (hop Hop, ok bool, err error) { return lookup(dst, from, "") }

// LookupForwarded asks the kernel for the route of a packet to dst that comes in from an address by a device. ok is
// false if the kernel refuses the packet, or has no route.
func LookupForwarded(dst, from netip.Addr, link string) (hop Hop, ok bool, err error) {
	return lookup(dst, from, link)
}

// lookup is Lookup, or, where link is not "", LookupForwarded.
func lookup(dst, from netip.Addr, link string) (hop Hop, ok bool, err error) {
	h, err := newHandle()
	if err != nil {
		return Hop{}, false, err
	}
	defer h.Close()
	options := netlink.RouteGetOptions{Iif: link}
	if from.IsValid() {
		options.SrcAddr = from.AsSlice()
	}
	routes, err := h.RouteGetWithOptions(dst.AsSlice(), &options)
	if isNoRoute(err) {
		return Hop{}, false, nil
	}
	if err != nil || len(routes) == 0 || leadsNowhere(routes[0].Type) {
		return Hop{}, false, err
	}
	r := routes[0]
	l, err := h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Hop{}, false, fmt.Errorf("device of the route to %s: %w", dst, err)
	}
	hop = Hop{Link: l.Attrs().Name, Local: r.Type == unix.RTN_LOCAL, Table: r.Table, AdvMSS: r.AdvMSS}
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		hop.Gateway = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(r.Src); ok && !a.IsUnspecified() {
		hop.Source = a.Unmap()
	}
	return hop, true, nil
}

// Device is a network device.
type Device struct {
	Name     string
	Index    int
	Up       bool
	Loopback bool
	Addrs    []netip.Prefix // with the host's bits
}

// Devices lists the network devices with their addresses.
func Devices() ([]Device, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var all []Device
	for _, l := range links {
		d := Device{Name: l.Attrs().Name, Index: l.Attrs().Index, Up: isUp(l),
			Loopback: l.Attrs().Flags&net.FlagLoopback != 0}
		for _, a := range addrs {
			if a.LinkIndex == d.Index {
				d.Addrs = append(d.Addrs, prefixOf(a.IPNet))
			}
		}
		all = append(all, d)
	}
	return all, nil
}

// AnswersFor reports whether the device answers its neighbours' questions for an address that the host does not have:
// by proxy ARP or neighbour discovery, for that address (ip neigh add proxy) or, with IPv4, for all that are routed by
// another device (proxy_arp).
func AnswersFor(link string, a netip.Addr) (bool, error) {
	if a.Is4() {
		for _, device := range []string{"all", link} {
			if v, err := readSysctl("net/ipv4/conf/" + device + "/proxy_arp"); err == nil && v != "0" {
				return true, nil
			}
		}
	}
	h, err := newHandle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	list, err := dump(func() ([]netlink.Neigh, error) { return h.NeighProxyList(l.Attrs().Index, family(a)) })
	if err != nil {
		return false, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
			return true, nil
		}
	}
	return false, nil
}

package query

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// HostAddrs lists the addresses of this host's devices, of both families.
func HostAddrs() ([]netip.Addr, error) {
	return ask(func(h *netlink.Handle) ([]netip.Addr, error) {
		addrs, err := kernel.Addrs(h, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		list := make([]netip.Addr, len(addrs))
		for i, a := range addrs {
			list[i] = kernel.PrefixOf(a.IPNet).Addr()
		}
		return list, nil
	})
}

// LocalLinks returns the devices by which packets to addrs are delivered on this host: the device has the address, or a
// route of type local covers it. The result lacks addresses that are not this host's. LocalLinks lists the addresses of
// all devices once. Each address that no device has costs one look-up of its route.
func LocalLinks(addrs ...netip.Addr) (map[netip.Addr]string, error) {
	return ask(func(h *netlink.Handle) (map[netip.Addr]string, error) {
		have, err := kernel.Addrs(h, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		indexes := make(map[netip.Addr]int, len(have))
		for _, a := range have {
			indexes[kernel.PrefixOf(a.IPNet).Addr()] = a.LinkIndex
		}
		local, names := map[netip.Addr]string{}, map[int]string{}
		for _, a := range addrs {
			key := a.Unmap()
			index, known := indexes[key]
			if !known {
				index = localRoute(h, key)
				indexes[key] = index
			}
			if index == 0 {
				continue
			}
			if names[index] == "" {
				l, err := h.LinkByIndex(index)
				if err != nil {
					return nil, fmt.Errorf("device of address %s: %w", a, err)
				}
				names[index] = l.Attrs().Name
			}
			local[a] = names[index]
		}
		return local, nil
	})
}

// localRoute returns the index of the device of the route to a, if the route's type is local, else 0. It returns 0 on
// an error, too: there is no route.
func localRoute(h *netlink.Handle, a netip.Addr) int {
	routes, err := h.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
		return 0
	}
	return routes[0].LinkIndex
}

// BroadcastLinks returns the devices of the subnets whose broadcast addresses are among addrs. Each IPv4 address costs
// one look-up of its route. IPv6 has no broadcast addresses.
func BroadcastLinks(addrs ...netip.Addr) (map[netip.Addr]string, error) {
	return ask(func(h *netlink.Handle) (map[netip.Addr]string, error) {
		all := map[netip.Addr]string{}
		for _, a := range addrs {
			if !a.Is4() {
				continue
			}
			routes, err := h.RouteGet(a.AsSlice())
			if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_BROADCAST {
				continue
			}
			l, err := h.LinkByIndex(routes[0].LinkIndex)
			if err != nil {
				return nil, fmt.Errorf("device of address %s: %w", a, err)
			}
			all[a] = l.Attrs().Name
		}
		return all, nil
	})
}

// LocalLink is LocalLinks for one address. ok is false if it is not this host's.
func LocalLink(a netip.Addr) (link string, ok bool, err error) {
	links, err := LocalLinks(a)
	link, ok = links[a]
	return link, ok, err
}

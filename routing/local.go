package routing

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// LocalAddrs lists the addresses that this host's devices have, of both families.
func LocalAddrs() ([]netip.Addr, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var list []netip.Addr
	for _, a := range addrs {
		list = append(list, prefixOf(a.IPNet).Addr())
	}
	return list, nil
}

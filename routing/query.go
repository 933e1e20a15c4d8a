package routing

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HasIPv6 reports whether the kernel has IPv6.
func HasIPv6() bool {
	_, err := readSysctl(forwarding6)
	return err == nil
}

// HasRules reports whether the kernel has rules for a family (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES).
func HasRules(ipv6 bool) bool {
	h, err := newHandle()
	if err != nil {
		return true // a later request reports the error
	}
	defer h.Close()
	fam := unix.AF_INET
	if ipv6 {
		fam = unix.AF_INET6
	}
	_, err = dump(func() ([]netlink.Rule, error) { return h.RuleList(fam) })
	return !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT)
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

// Dropped returns how many packets the kernel has dropped on their way out of the device since it was made: tx_dropped
// of rtnl_link_stats64 (linux/if_link.h). On a TUN device they are those that its program did not read fast enough. It
// is an error if there is no such device in the calling thread's network namespace.
func Dropped(link string) (uint64, error) {
	h, err := newHandle()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return 0, fmt.Errorf("counters of device %s: %w", link, err)
	}
	stats := l.Attrs().Statistics
	if stats == nil {
		return 0, fmt.Errorf("counters of device %s: the kernel gives none", link)
	}
	return stats.TxDropped, nil
}

func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(answerTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return h, nil
}

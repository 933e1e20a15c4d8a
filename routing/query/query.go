// Package query asks the kernel about the network of this host: paths, addresses, devices, tunnels and counters. It
// changes nothing. Each question is about the calling thread's network namespace.
package query

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// ask calls f with a netlink handle of its own. Each call opens one socket, however many requests f makes.
func ask[T any](f func(h *netlink.Handle) (T, error)) (answer T, err error) {
	h, err := kernel.Open()
	if err != nil {
		return answer, err
	}
	defer h.Close()
	return f(h)
}

// HasIPv6 reports whether the kernel has IPv6.
func HasIPv6() bool {
	_, err := kernel.ReadSysctl("net/ipv6/conf/all/forwarding")
	return err == nil
}

// HasRules reports whether the kernel has rules for a family (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES).
// It returns true if the kernel can't be asked: a later request reports that error.
func HasRules(ipv6 bool) bool {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	_, err := ask(func(h *netlink.Handle) ([]netlink.Rule, error) { return kernel.Rules(h, family) })
	return !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT)
}

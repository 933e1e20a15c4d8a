// Package kernel is the base of the routing packages: a netlink handle, listings, the values below /proc/sys, and
// addresses in netlink's form.
package kernel

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AnswerTimeout is the timeout of each send and receive on a netlink socket.
const AnswerTimeout = 30 * time.Second

// Open returns a netlink handle on the calling thread's network namespace. Any goroutine may use it.
func Open() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(AnswerTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return h, nil
}

// Dump repeats a listing that the kernel reports as interrupted by a change, up to 10 times.
func Dump[T any](list func() ([]T, error)) (items []T, err error) {
	for range 10 {
		items, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return items, err
}

// Links lists the devices.
func Links(h *netlink.Handle) ([]netlink.Link, error) {
	links, err := Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return links, nil
}

// Addrs lists the addresses of a family of all devices; netlink.FAMILY_ALL: of both families.
func Addrs(h *netlink.Handle, family int) ([]netlink.Addr, error) {
	addrs, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, nil
}

// Rules lists the rules of a family.
func Rules(h *netlink.Handle, family int) ([]netlink.Rule, error) {
	rules, err := Dump(func() ([]netlink.Rule, error) { return h.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return rules, nil
}

// IsUp reports whether a device is set up.
func IsUp(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 }

// IsGone reports whether err is the kernel's answer that the object to remove, or its device, does not exist.
func IsGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENXIO)
}

// LeadsNowhere reports whether routes of this type have no next hop: they drop packets, or end the look-up in their
// table (throw). A look-up that finds one returns the route with IPv6, and an error with IPv4.
func LeadsNowhere(routeType int) bool {
	switch routeType {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return true
	}
	return false
}

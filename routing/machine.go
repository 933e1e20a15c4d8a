package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// step is one change that is to be made.
type step struct {
	what string // as one would type it
	do   func() error
}

// linkSet is the devices of the machine by name.
type linkSet map[string]netlink.Link

// index returns the index of the device, or 0 if there is none.
func (s linkSet) index(name string) int {
	if l, ok := s[name]; ok {
		return l.Attrs().Index
	}
	return 0
}

func (s linkSet) byIndex(index int) netlink.Link {
	for _, l := range s {
		if l.Attrs().Index == index {
			return l
		}
	}
	return nil
}

func (s linkSet) name(index int) string {
	if l := s.byIndex(index); l != nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("device %d", index)
}

func isUp(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 }

// snapshot is what the kernel has, as far as a state or records are about it.
type snapshot struct {
	links  linkSet
	addrs  []netlink.Addr
	routes map[routeRecord][]netlink.Route // in the order of the dump: the kernel's preference
	rules  []netlink.Rule
	copied []netlink.Route // the main table, when Replies want it
}

// scope says what a snapshot is to hold.
type scope struct {
	families map[int]bool
	tables   map[int]bool         // whole tables
	routes   map[routeRecord]bool // single routes
	copyMain bool
}

func scopeOf(s State, own records) scope {
	sc := scope{families: map[int]bool{}, tables: map[int]bool{}, routes: map[routeRecord]bool{}}
	for _, a := range s.Addrs {
		sc.families[family(a.Prefix.Addr())] = true
	}
	for _, r := range s.Routes {
		sc.families[family(r.Dst.Addr())] = true
		sc.routes[r.record()] = true
	}
	if s.Replies != nil {
		sc.tables[s.Replies.Table] = true
		sc.copyMain = true
		for _, a := range s.Replies.From {
			sc.families[family(a)] = true
		}
	}
	for _, a := range own.Addrs {
		sc.families[family(a.Prefix.Addr())] = true
	}
	for _, r := range own.Routes {
		sc.families[family(r.Dst.Addr())] = true
		sc.routes[r] = true
	}
	for _, r := range own.Rules {
		sc.families[family(r.From)] = true
	}
	return sc
}

func takeSnapshot(h *netlink.Handle, sc scope) (snapshot, error) {
	snap := snapshot{links: linkSet{}, routes: map[routeRecord][]netlink.Route{}}
	links, err := dump(h.LinkList)
	if err != nil {
		return snapshot{}, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		snap.links[l.Attrs().Name] = l
	}
	for fam := range sc.families {
		addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, fam) })
		if err != nil {
			return snapshot{}, fmt.Errorf("list addresses: %w", err)
		}
		snap.addrs = append(snap.addrs, addrs...)
		rules, err := dump(func() ([]netlink.Rule, error) { return h.RuleList(fam) })
		if err != nil {
			return snapshot{}, fmt.Errorf("list rules: %w", err)
		}
		snap.rules = append(snap.rules, rules...)
		routes, err := dump(func() ([]netlink.Route, error) { return dumpRoutes(h, fam, sc) })
		if err != nil {
			return snapshot{}, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			key := recordOf(r)
			snap.routes[key] = append(snap.routes[key], r)
			if sc.copyMain && r.Table == unix.RT_TABLE_MAIN {
				snap.copied = append(snap.copied, r)
			}
		}
	}
	return snap, nil
}

// dumpRoutes lists the routes that sc asks for. It stops soon when there are far too many of them.
func dumpRoutes(h *netlink.Handle, fam int, sc scope) ([]netlink.Route, error) {
	var routes []netlink.Route
	everyTable := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	err := h.RouteListFilteredIter(fam, everyTable, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		if sc.tables[r.Table] || (sc.copyMain && r.Table == unix.RT_TABLE_MAIN) || sc.routes[recordOf(r)] {
			routes = append(routes, r)
		}
		return len(routes) <= 4*MaxReplyRoutes
	})
	if err == nil && len(routes) > 4*MaxReplyRoutes {
		err = errTooManyRoutes
	}
	return routes, err
}

// dump repeats a listing that the kernel says changed while it was made.
func dump[T any](list func() ([]T, error)) (items []T, err error) {
	for range 10 {
		items, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return items, err
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// prefixOf returns the zero Prefix for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, size := n.Mask.Size()
	if a.Is4In6() && size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}

// isGone says that what was to be removed, or its device, is not there any more.
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENXIO)
}

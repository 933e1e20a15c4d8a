package routing

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultMetric6 is what an IPv6 route gets that is added with metric 0: IP6_RT_PRIO_USER in net/ip6_fib.h.
const defaultMetric6 = 1024

func (r Route) record() routeRecord {
	rec := routeRecord{Table: r.table(), Dst: r.Dst}
	if r.Dst.Addr().Is6() {
		rec.Metric = defaultMetric6
	}
	return rec
}

func recordOf(r netlink.Route) routeRecord {
	return routeRecord{Table: r.Table, Dst: prefixOf(r.Dst), Metric: r.Priority, TOS: r.Tos}
}

func (r Route) kernel(link int) netlink.Route {
	k := netlink.Route{
		Family: family(r.Dst.Addr()), Dst: ipNet(r.Dst), LinkIndex: link, Table: r.table(), Priority: r.record().Metric,
		Type: unix.RTN_UNICAST, Protocol: Protocol, MTU: r.MTU, AdvMSS: r.AdvMSS,
	}
	if r.Dst.Addr().Is4() {
		k.Scope = unix.RT_SCOPE_LINK
	}
	return k
}

// canonical is r without what the kernel adds when it lists routes, so that two may be compared.
func canonical(r netlink.Route) netlink.Route {
	r.Protocol = Protocol
	r.Dst = ipNet(prefixOf(r.Dst))
	r.Flags &= int(netlink.FLAG_ONLINK)
	hops := r.MultiPath
	r.MultiPath = nil
	for _, h := range hops {
		n := *h
		n.Flags &= int(netlink.FLAG_ONLINK)
		r.MultiPath = append(r.MultiPath, &n)
	}
	return r
}

func sameRoute(a, b netlink.Route) bool { return reflect.DeepEqual(canonical(a), canonical(b)) }

// planRoutes plans State.Routes. A route that somebody else made is fine if it is the same, and a conflict if not.
func (m *Manager) planRoutes(want []Route, own map[routeRecord]bool, snap snapshot) (steps []step, next []routeRecord, err error) {
	var errs []error
	for _, w := range want {
		link := snap.links.index(w.Link)
		if link == 0 {
			errs = append(errs, fmt.Errorf("route %s: no device %s", w.Dst, w.Link))
			continue
		}
		key, route := w.record(), w.kernel(link)
		if theirs := foreign(snap.routes[key], own[key]); len(theirs) > 0 {
			if !sameRoute(theirs[0], route) {
				errs = append(errs, fmt.Errorf("route %s in table %s exists already by %s (proto %s), want it by %s; remove it, or use another address",
					w.Dst, tableName(key.Table), snap.describeHops(theirs[0]), theirs[0].Protocol, w.Link))
			}
			continue
		}
		next = append(next, key)
		if s, ok := m.stepFor(key, route, snap); ok {
			steps = append(steps, s)
		}
	}
	return steps, next, errors.Join(errs...)
}

// foreign returns the routes among have that are not ours.
func foreign(have []netlink.Route, own bool) []netlink.Route {
	var theirs []netlink.Route
	for _, r := range have {
		if !own || r.Protocol != Protocol {
			theirs = append(theirs, r)
		}
	}
	return theirs
}

// stepFor adds the route, or replaces the one that is there, or does nothing if it is the same.
func (m *Manager) stepFor(key routeRecord, want netlink.Route, snap snapshot) (step, bool) {
	have := snap.routes[key]
	if len(have) == 0 {
		return step{
			what: fmt.Sprintf("ip route add %s table %s", key.Dst, tableName(key.Table)),
			do:   func() error { return m.nl.RouteAdd(&want) },
		}, true
	}
	return step{
		what: fmt.Sprintf("ip route replace %s table %s", key.Dst, tableName(key.Table)),
		do:   func() error { return m.nl.RouteReplace(&want) },
	}, !sameRoute(have[0], want)
}

func (s snapshot) describeHops(r netlink.Route) string {
	switch {
	case r.Type != unix.RTN_UNICAST:
		return fmt.Sprintf("type %d", r.Type)
	case len(r.MultiPath) > 0:
		return fmt.Sprintf("%d nexthops", len(r.MultiPath))
	case r.Gw != nil:
		return fmt.Sprintf("%s via %s", s.links.name(r.LinkIndex), r.Gw)
	case r.MTU != 0 || r.AdvMSS != 0:
		return fmt.Sprintf("%s mtu %d advmss %d", s.links.name(r.LinkIndex), r.MTU, r.AdvMSS)
	}
	return s.links.name(r.LinkIndex)
}

func (m *Manager) undoRoute(r routeRecord, snap snapshot) error {
	ours := slices.ContainsFunc(snap.routes[r], func(have netlink.Route) bool { return have.Protocol == Protocol })
	if !ours {
		return nil
	}
	err := m.nl.RouteDel(&netlink.Route{
		Dst: ipNet(r.Dst), Table: r.Table, Priority: r.Metric, Tos: r.TOS, Protocol: Protocol, Scope: unix.RT_SCOPE_NOWHERE,
	})
	if err != nil && !isGone(err) {
		return fmt.Errorf("ip route del %s table %s: %w", r.Dst, tableName(r.Table), err)
	}
	return nil
}

package routing

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultMetric6 is what an IPv6 route gets that is added with metric 0: IP6_RT_PRIO_USER in net/ip6_fib.h.
const defaultMetric6 = 1024

func (r Route) record() routeRecord {
	rec := routeRecord{Table: r.table(), Dst: r.Dst, Metric: int(r.Metric)}
	if r.Dst.Addr().Is6() && r.Metric == 0 {
		rec.Metric = defaultMetric6
	}
	return rec
}

func recordOf(r netlink.Route) routeRecord {
	return routeRecord{Table: r.Table, Dst: prefixOf(r.Dst), Metric: r.Priority, TOS: r.Tos}
}

func (r Route) kernel(links linkSet) netlink.Route {
	k := netlink.Route{
		Family: family(r.Dst.Addr()), Dst: ipNet(r.Dst), Table: r.table(), Priority: r.record().Metric,
		Type: unix.RTN_UNICAST, Protocol: Protocol, MTU: r.MTU, AdvMSS: r.AdvMSS,
	}
	if r.Unreachable {
		k.Type = unix.RTN_UNREACHABLE
		return k
	}
	k.LinkIndex = links.index(r.Link)
	if r.Dst.Addr().Is4() {
		k.Scope = unix.RT_SCOPE_LINK
	}
	return k
}

// canonical is r without what the kernel adds when it lists routes, so that two may be compared.
func canonical(r netlink.Route) netlink.Route {
	r.Protocol = Protocol
	r.Dst = ipNet(prefixOf(r.Dst))
	if r.Family == unix.AF_INET6 && r.Type != unix.RTN_UNICAST {
		r.LinkIndex = 0 // in IPv6 a route that leads nowhere is by the loopback device
	}
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

// planRoutes plans those of State.Routes that are unreachable, or those that are not. A route that somebody else made is
// fine if it is the same, and a conflict if not.
func (m *Manager) planRoutes(want []Route, unreachable bool, own map[routeRecord]bool, snap snapshot) (steps []step, next []routeRecord, err error) {
	var errs []error
	for _, w := range want {
		if w.Unreachable != unreachable {
			continue
		}
		key, route := w.record(), w.kernel(snap.links)
		if theirs := foreign(snap.routes[key], own[key]); len(theirs) > 0 {
			if !sameRoute(theirs[0], route) {
				errs = append(errs, fmt.Errorf("route %s in table %s exists already %s (proto %s), want it %s; remove it, or use another address",
					w.Dst, tableName(key.Table), snap.describeWay(theirs[0]), theirs[0].Protocol, snap.describeWay(route)))
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
			what: fmt.Sprintf("ip route add %s", describeRoute(want)),
			do:   func() error { return m.nl.RouteAdd(&want) },
		}, true
	}
	return step{
		what: fmt.Sprintf("ip route replace %s", describeRoute(want)),
		do:   func() error { return m.nl.RouteReplace(&want) },
	}, !sameRoute(have[0], want)
}

// describeRoute names the route as `ip route` does.
func describeRoute(r netlink.Route) string {
	var b strings.Builder
	if r.Type != unix.RTN_UNICAST {
		b.WriteString(typeName(r.Type) + " ")
	}
	fmt.Fprintf(&b, "%s table %s", prefixOf(r.Dst), tableName(r.Table))
	if r.Priority != 0 {
		fmt.Fprintf(&b, " metric %d", r.Priority)
	}
	return b.String()
}

func typeName(t int) string {
	switch t {
	case unix.RTN_UNREACHABLE:
		return "unreachable"
	case unix.RTN_BLACKHOLE:
		return "blackhole"
	case unix.RTN_PROHIBIT:
		return "prohibit"
	case unix.RTN_THROW:
		return "throw"
	case unix.RTN_LOCAL:
		return "local"
	}
	return fmt.Sprintf("type %d", t)
}

// describeWay says how the route leads on.
func (s snapshot) describeWay(r netlink.Route) string {
	switch {
	case r.Type != unix.RTN_UNICAST:
		return typeName(r.Type)
	case len(r.MultiPath) > 0:
		return fmt.Sprintf("by %d nexthops", len(r.MultiPath))
	case r.Gw != nil:
		return fmt.Sprintf("by %s via %s", s.links.name(r.LinkIndex), r.Gw)
	case r.MTU != 0 || r.AdvMSS != 0:
		return fmt.Sprintf("by %s mtu %d advmss %d", s.links.name(r.LinkIndex), r.MTU, r.AdvMSS)
	}
	return "by " + s.links.name(r.LinkIndex)
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

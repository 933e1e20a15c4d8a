package routing

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// defaultMetric6 is the metric of an IPv6 route that is added with metric 0: IP6_RT_PRIO_USER in net/ip6_fib.h.
const defaultMetric6 = 1024

func (r Route) record() routeRecord {
	rec := routeRecord{Table: r.table(), Dst: r.Dst, Metric: int(r.Metric)}
	if r.Dst.Addr().Is6() && r.Metric == 0 {
		rec.Metric = defaultMetric6
	}
	return rec
}

// kernel returns a route with the key r, enough to delete it.
func (r routeRecord) kernel() route {
	k := route{attrs: attributes{}}
	k.Family, k.Protocol, k.Tos = uint8(kernel.Family(r.Dst.Addr())), Protocol, uint8(r.TOS)
	k.attrs.setU32(unix.RTA_TABLE, uint32(r.Table))
	if k.Dst_len = uint8(r.Dst.Bits()); k.Dst_len > 0 {
		k.attrs[unix.RTA_DST] = r.Dst.Addr().AsSlice()
	}
	if r.Src.IsValid() {
		k.Src_len, k.attrs[unix.RTA_SRC] = uint8(r.Src.Bits()), r.Src.Addr().AsSlice()
	}
	if r.Metric != 0 {
		k.attrs.setU32(unix.RTA_PRIORITY, uint32(r.Metric))
	}
	return k
}

func (r Route) kernel(links linkSet) route {
	k := r.record().kernel()
	switch {
	case r.Unreachable:
		k.Type = unix.RTN_UNREACHABLE
		return k
	case r.Blackhole:
		k.Type = unix.RTN_BLACKHOLE
		return k
	}
	k.Type = unix.RTN_UNICAST
	index := links.index(r.Link)
	k.attrs.setU32(unix.RTA_OIF, uint32(index))
	k.devices = []int{index}
	if r.Dst.Addr().Is4() {
		k.Scope = unix.RT_SCOPE_LINK
	}
	metrics := attributes{}
	for metric, v := range map[uint16]int{unix.RTAX_MTU: r.MTU, unix.RTAX_ADVMSS: r.AdvMSS} {
		if v != 0 {
			metrics.setU32(metric, uint32(v))
		}
	}
	k.setMetrics(metrics)
	return k
}

// leadsNowhere reports whether r has no device.
func (r Route) leadsNowhere() bool { return r.Unreachable || r.Blackhole }

// planRoutes plans the routes of State.Routes that lead nowhere, or the others. An equal route of another program
// stays. A different route of another program is a conflict.
func (m *Manager) planRoutes(want []Route, nowhere bool, own map[routeRecord]bool, snap snapshot) (steps []step,
	next []routeRecord, err error) {
	var errs []error
	for _, w := range want {
		if w.leadsNowhere() != nowhere {
			continue
		}
		key, r := w.record(), w.kernel(snap.links)
		if theirs := foreign(snap.routes[key], own[key]); len(theirs) > 0 {
			if !theirs[0].same(r) {
				errs = append(errs, fmt.Errorf("route %s in table %s exists already %s (proto %s), want it %s; "+
					"remove it, or %s", w.Dst, tableName(key.Table), snap.describePath(theirs[0]),
					netlink.RouteProtocol(theirs[0].Protocol), snap.describePath(r),
					cmp.Or(m.state.Tables[key.Table], "use another address")))
			}
			continue
		}
		next = append(next, key)
		steps = append(steps, m.routeSteps(key, []route{r}, own[key], snap)...)
	}
	return steps, next, errors.Join(errs...)
}

// foreign returns the routes among have that are not ours.
func foreign(have []route, own bool) []route {
	var theirs []route
	for _, r := range have {
		if !own || r.Protocol != Protocol {
			theirs = append(theirs, r)
		}
	}
	return theirs
}

// routeSteps returns the steps that make want the routes of key, in this order. Routes that exist in this order stay. A
// single route is replaced in one step, so that no packet misses it.
func (m *Manager) routeSteps(key routeRecord, want []route, recorded bool, snap snapshot) (steps []step) {
	change := func(verb string, old, to *route, do func() error) {
		s := step{what: "ip route " + verb + " " + key.String(), name: "route " + key.String(),
			old: "none", new: "none", recorded: recorded, do: do}
		if old != nil {
			s.old = snap.describePath(*old)
		}
		if to != nil {
			s.new = snap.describePath(*to)
		}
		steps = append(steps, s)
	}
	have := snap.routes[key]
	if len(have) == 1 && len(want) == 1 {
		if !have[0].same(want[0]) {
			change("replace", &have[0], &want[0], func() error { return m.fib.replace(want[0]) })
		}
		return steps
	}
	kept := 0
	for _, h := range have {
		if kept < len(want) && h.same(want[kept]) {
			kept++
			continue
		}
		change("del", &h, nil, func() error { return m.fib.remove(h) })
	}
	for i, w := range want[kept:] {
		if kept+i == 0 {
			change("add", nil, &w, func() error { return m.fib.add(w) })
		} else {
			change("append", nil, &w, func() error { return m.fib.append(w) })
		}
	}
	return steps
}

// String returns the key of r as `ip route` prints it.
func (r routeRecord) String() string {
	s := r.Dst.String()
	if r.Src.IsValid() {
		s += " from " + r.Src.String()
	}
	if r.TOS != 0 {
		s += fmt.Sprintf(" tos %#x", r.TOS)
	}
	s += " table " + tableName(r.Table)
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s
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

// metricNames are the words of `ip route` for metrics (RTAX_…).
var metricNames = map[uint16]string{
	unix.RTAX_LOCK: "lock", unix.RTAX_MTU: "mtu", unix.RTAX_WINDOW: "window", unix.RTAX_RTT: "rtt",
	unix.RTAX_RTTVAR: "rttvar", unix.RTAX_SSTHRESH: "ssthresh", unix.RTAX_CWND: "cwnd", unix.RTAX_ADVMSS: "advmss",
	unix.RTAX_REORDERING: "reordering", unix.RTAX_HOPLIMIT: "hoplimit", unix.RTAX_INITCWND: "initcwnd",
	unix.RTAX_FEATURES: "features", unix.RTAX_RTO_MIN: "rto_min", unix.RTAX_INITRWND: "initrwnd",
	unix.RTAX_QUICKACK: "quickack", unix.RTAX_FASTOPEN_NO_COOKIE: "fastopen_no_cookie",
}

// describePath describes the route's next hops, its source and its metrics with the words of `ip route`.
func (s snapshot) describePath(r route) string {
	var b strings.Builder
	switch {
	case r.Type != unix.RTN_UNICAST:
		b.WriteString(typeName(int(r.Type)))
	case r.attrs[rtaNexthopID] != nil:
		fmt.Fprintf(&b, "by nexthop object %d", r.attrs.u32(rtaNexthopID))
	case len(r.hops) > 0:
		for i, h := range r.hops {
			if i > 0 {
				b.WriteString(" and ")
			}
			b.WriteString(s.describeHop(h.device, h.attrs))
			fmt.Fprintf(&b, " weight %d", int(h.weight)+1)
		}
	default:
		b.WriteString(s.describeHop(int(r.attrs.u32(unix.RTA_OIF)), r.attrs))
	}
	if src, ok := netip.AddrFromSlice(r.attrs[unix.RTA_PREFSRC]); ok {
		fmt.Fprintf(&b, " src %s", src)
	}
	metrics := r.metrics()
	for _, metric := range slices.Sorted(maps.Keys(metricNames)) {
		if v, ok := metrics[metric]; ok && len(v) == 4 {
			fmt.Fprintf(&b, " %s %d", metricNames[metric], nl.NativeEndian().Uint32(v))
		}
	}
	return b.String()
}

// describeHop describes a next hop by its device and gateway.
func (s snapshot) describeHop(device int, attrs attributes) string {
	by := "by " + s.links.name(device)
	if gw, ok := netip.AddrFromSlice(attrs[unix.RTA_GATEWAY]); ok {
		return by + " via " + gw.String()
	}
	if via := attrs[unix.RTA_VIA]; len(via) > 2 { // struct rtvia: a family and an address
		if gw, ok := netip.AddrFromSlice(via[2:]); ok {
			return by + " via " + gw.String()
		}
	}
	return by
}

func (m *Manager) undoRoute(r routeRecord, snap snapshot) error {
	for _, have := range snap.routes[r] {
		if have.Protocol != Protocol {
			continue
		}
		k := r.kernel()
		if r.Dst.Addr().Is4() {
			k.Scope = unix.RT_SCOPE_NOWHERE // any
		}
		if err := m.fib.remove(k); err != nil && !kernel.IsGone(err) {
			return fmt.Errorf("ip route del %s: %w", r, err)
		}
	}
	return nil
}

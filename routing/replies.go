package routing

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

var errTooManyRoutes = fmt.Errorf("replies: the main routing table has more than %d routes, too many to copy; lower "+
	"the MSS elsewhere and leave it to the routes here", MaxReplyRoutes)

// planReplies plans the copy of the main table and the rules that lead to it. The routes come first, so that no reply
// uses an incomplete table.
func (m *Manager) planReplies(want *Replies, owned []Link, own records, ownRoutes map[routeRecord]bool,
	snap snapshot) (steps []step, routes []routeRecord, rules []ruleRecord, err error) {
	if want == nil {
		clear(m.refused)
		return nil, nil, nil, nil
	}
	var errs []error
	var theirs []string
	for key, have := range snap.routes {
		if key.Table == want.Table && len(foreign(have, ownRoutes[key])) > 0 {
			theirs = append(theirs, key.Dst.String())
		}
	}
	if len(theirs) > 0 {
		// The smallest destination keeps the text the same in each pass: Watch logs a repeated text once.
		errs = append(errs, m.state.inUse(want.Table, slices.Min(theirs)))
	}
	copies := want.copies(owned, snap)
	if len(copies) > MaxReplyRoutes {
		errs = append(errs, errTooManyRoutes)
	}
	groups := map[routeRecord][]route{}
	for _, c := range copies {
		key := c.record()
		if groups[key] == nil {
			routes = append(routes, key)
		}
		groups[key] = append(groups[key], c)
	}
	for _, key := range routes {
		steps = append(steps, m.copySteps(key, groups[key], ownRoutes[key], snap)...)
	}
	maps.DeleteFunc(m.refused, func(key routeRecord, _ refusal) bool { return groups[key] == nil })
	slices.SortFunc(routes, routeRecord.compare) // equal routes give an equal journal
	ruleSteps, rules, err := m.planReplyRules(want, own.Rules, snap)
	if err != nil {
		errs = append(errs, err)
	}
	return append(steps, ruleSteps...), routes, rules, errors.Join(errs...)
}

// copies returns the routes of the table. The route to each gateway precedes the routes that use the gateway.
func (r *Replies) copies(owned []Link, snap snapshot) []route {
	usable := map[int]netlink.Link{}
	for _, l := range snap.links {
		own := slices.ContainsFunc(owned, func(o Link) bool { return o.Name == l.Attrs().Name })
		if kernel.IsUp(l) && !own {
			usable[l.Attrs().Index] = l
		}
	}
	families := map[int]bool{}
	for _, a := range r.From {
		families[kernel.Family(a)] = true
	}
	var list []route
	for _, have := range snap.copied {
		if have.Protocol == Protocol || !families[int(have.Family)] || have.expires < 0 {
			continue // made by this package, for incoming packets; of another family; or expired
		}
		if c, ok := r.copyOf(have, usable); ok {
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b route) int {
		return cmp.Or(cmp.Compare(b.Scope, a.Scope), cmp.Compare(b.Dst_len, a.Dst_len))
	})
	separate(list)
	return list
}

// separate raises metrics of IPv6 routes so that no two routes with a gateway have one metric. It keeps the kernel's
// order of preference. Router advertisements make several default routes of one metric. The kernel takes the first of
// them that is reachable, by preference (RFC 4191). If a program adds the same routes, they become one multipath route,
// whose hops have no preference (Linux net/ipv6/ip6_fib.c, fib6_add_rt2node; include/net/ip6_route.h,
// rt6_qualify_for_ecmp). IPv4 keeps routes of one metric apart.
func separate(list []route) {
	type destination struct{ dst, src netip.Prefix }
	groups := map[destination][]*route{}
	for i := range list {
		if r := &list[i]; r.Family == unix.AF_INET6 {
			rec := r.record()
			d := destination{rec.Dst, rec.Src}
			groups[d] = append(groups[d], r)
		}
	}
	for _, group := range groups {
		slices.SortStableFunc(group, func(a, b *route) int {
			return cmp.Or(cmp.Compare(a.attrs.u32(unix.RTA_PRIORITY), b.attrs.u32(unix.RTA_PRIORITY)),
				cmp.Compare(b.preference(), a.preference()))
		})
		metric, taken := uint32(0), false // a route with a gateway has the metric
		for _, r := range group {
			if own := r.attrs.u32(unix.RTA_PRIORITY); own > metric {
				metric, taken = own, false
			}
			gateway := hasGateway(r.attrs) || len(r.hops) > 0
			if gateway && taken && metric < math.MaxUint32 {
				metric++
			}
			taken = taken || gateway
			r.attrs.setU32(unix.RTA_PRIORITY, metric)
		}
	}
}

// preference returns RTA_PREF as a number: -1 low, 0 medium, 1 high (RFC 4191, section 2.1).
func (r route) preference() int {
	switch r.attrs.u8(unix.RTA_PREF) {
	case 3:
		return -1
	case 1:
		return 1
	}
	return 0
}

// copyOf returns the copy of a route of the main table, or false if the route has no usable device.
func (r *Replies) copyOf(have route, usable map[int]netlink.Link) (route, bool) {
	c := have.clone()
	c.Protocol = Protocol
	c.attrs.setU32(unix.RTA_TABLE, uint32(r.Table))
	if c.encapsulatesBy(unix.LWTUNNEL_ENCAP_BPF) {
		// The kernel lists such a route with the program's name, but accepts only a descriptor. A throw route leads to
		// the main table instead.
		c.leadNowhere(unix.RTN_THROW)
	}
	if kernel.LeadsNowhere(int(c.Type)) {
		return c, true
	}
	unusable := func(device int) bool { return usable[device] == nil }
	c.devices = slices.DeleteFunc(slices.Clone(c.devices), unusable)
	if len(c.devices) == 0 {
		return c, false
	}
	c.hops = slices.DeleteFunc(c.hops, func(h hop) bool { return unusable(h.device) })
	if len(c.hops) == 1 { // the kernel keeps it as a plain route
		h := c.hops[0]
		maps.Copy(c.attrs, h.attrs)
		c.attrs.setU32(unix.RTA_OIF, uint32(h.device))
		c.Flags, c.hops = uint32(h.flags), nil
	}
	// The kernel has found each gateway on its device already. With the on-link flag it does not check the copy's
	// gateway again: the main table may have lost the route to the gateway since, and this table may lack it.
	if hasGateway(c.attrs) {
		c.Flags |= unix.RTNH_F_ONLINK
	}
	for i, h := range c.hops {
		if hasGateway(h.attrs) {
			c.hops[i].flags |= unix.RTNH_F_ONLINK
		}
	}
	if c.Type == unix.RTN_UNICAST {
		r.lowerMSS(&c, usable)
	}
	return c, true
}

func hasGateway(a attributes) bool { return a[unix.RTA_GATEWAY] != nil || a[unix.RTA_VIA] != nil }

// encapsulatesBy reports whether r, or one of its next hops, has a lightweight tunnel of this kind (ip route … encap).
func (r route) encapsulatesBy(kind uint16) bool {
	return r.attrs.u16(unix.RTA_ENCAP_TYPE) == kind ||
		slices.ContainsFunc(r.hops, func(h hop) bool { return h.attrs.u16(unix.RTA_ENCAP_TYPE) == kind })
}

// lowerMSS sets the MSS of c. With an explicit MSS the kernel ignores the MTU (dst_metric_advmss in include/net/dst.h),
// so the MSS must fit the MTU, too.
func (r *Replies) lowerMSS(c *route, usable map[int]netlink.Link) {
	mss, headers := r.AdvMSS, 20+20 // IPv4, TCP
	if c.Family == unix.AF_INET6 {
		mss, headers = r.AdvMSS6, 40+20
	}
	if mss == 0 {
		return
	}
	metrics := c.metrics()
	if own := metrics.u32(unix.RTAX_ADVMSS); own > 0 {
		mss = min(mss, int(own))
	}
	if mtu := metrics.u32(unix.RTAX_MTU); mtu > 0 {
		mss = min(mss, int(mtu)-headers)
	}
	for _, device := range c.devices {
		mss = min(mss, usable[device].Attrs().MTU-headers)
	}
	metrics.setU32(unix.RTAX_ADVMSS, uint32(max(mss, minMSS)))
	c.setMetrics(metrics)
}

// rules returns the rules that r asks for, in the order of their priorities.
func (r *Replies) rules() (all []ruleRecord) {
	for _, from := range r.From {
		all = append(all, ruleRecord{Priority: r.Priority, From: from, Table: r.Table})
	}
	if r.Bound == "" {
		return all
	}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if slices.ContainsFunc(r.From, func(a netip.Addr) bool { return a.BitLen() == any.BitLen() }) {
			all = append(all, ruleRecord{Priority: r.Priority + 1, From: any, Link: r.Bound, Table: r.Table + 1})
		}
	}
	return all
}

// planReplyRules plans the rules that lead to the tables. No other rule may have their priorities.
func (m *Manager) planReplyRules(want *Replies, own []ruleRecord, snap snapshot) (steps []step, next []ruleRecord,
	err error) {
	wanted := want.rules()
	mine, asked, priorities := setOf(own), setOf(wanted), map[int]bool{}
	for _, rec := range wanted {
		priorities[rec.Priority] = true
	}
	for _, have := range snap.rules {
		if !priorities[have.Priority] {
			continue
		}
		rec, plain := recordOfRule(have)
		if !plain || !asked[rec] && !(have.Protocol == Protocol && mine[rec]) {
			return nil, nil, fmt.Errorf("replies: rule priority %d is taken by another rule (ip rule show priority "+
				"%d); choose another",
				have.Priority, have.Priority)
		}
	}
	steps, next = m.stepsForRules(wanted, own, snap)
	return steps, next, nil
}

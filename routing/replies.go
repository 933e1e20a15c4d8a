package routing

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var errTooManyRoutes = fmt.Errorf("replies: the main routing table has more than %d routes, too many to copy; lower the MSS elsewhere and leave it to the routes here", MaxReplyRoutes)

// planReplies plans the copy of the main table and the rules that lead to it: routes first, so that no reply ever meets
// half a table.
func (m *Manager) planReplies(want *Replies, owned []Link, own records, ownRoutes map[routeRecord]bool, snap snapshot) (steps []step, routes []routeRecord, rules []ruleRecord, err error) {
	if want == nil {
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
		// The same one every time: Watch logs a text once.
		errs = append(errs, fmt.Errorf("routing table %d is in use: it has a route for %s; choose another, or empty it (ip route flush table %d)",
			want.Table, slices.Min(theirs), want.Table))
	}
	copies := want.copies(owned, snap)
	if len(copies) > MaxReplyRoutes {
		errs = append(errs, errTooManyRoutes)
	}
	for _, c := range copies {
		key := recordOf(c)
		routes = append(routes, key)
		if s, ok := m.stepFor(key, c, snap); ok {
			steps = append(steps, s)
		}
	}
	ruleSteps, rules, err := m.planReplyRules(want, own.Rules, snap)
	if err != nil {
		errs = append(errs, err)
	}
	return append(steps, ruleSteps...), routes, rules, errors.Join(errs...)
}

// copies returns what the table shall hold, in an order in which each gateway can be reached when its turn comes.
func (r *Replies) copies(owned []Link, snap snapshot) []netlink.Route {
	usable := map[int]netlink.Link{}
	for _, l := range snap.links {
		own := slices.ContainsFunc(owned, func(o Link) bool { return o.Name == l.Attrs().Name })
		if isUp(l) && !own {
			usable[l.Attrs().Index] = l
		}
	}
	families := map[int]bool{}
	for _, a := range r.From {
		families[family(a)] = true
	}
	var list []netlink.Route
	seen := map[routeRecord]bool{}
	for _, route := range snap.copied {
		if route.Protocol == Protocol {
			continue // made here, for what comes in
		}
		c, ok := r.copyOf(route, usable)
		// Of several routes with the same key, the kernel takes the first.
		if key := recordOf(c); ok && families[route.Family] && !seen[key] {
			seen[key] = true
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b netlink.Route) int {
		return cmp.Or(cmp.Compare(b.Scope, a.Scope), cmp.Compare(prefixOf(b.Dst).Bits(), prefixOf(a.Dst).Bits()))
	})
	return list
}

// copyOf returns a route of the main table as it shall be in r's, or false if it has no place there.
func (r *Replies) copyOf(route netlink.Route, usable map[int]netlink.Link) (netlink.Route, bool) {
	c := canonical(route)
	c.Table = r.Table
	if leadsNowhere(c.Type) {
		return c, true
	}
	if c.Type != unix.RTN_UNICAST {
		return c, false
	}
	c.MultiPath = slices.DeleteFunc(c.MultiPath, func(h *netlink.NexthopInfo) bool { return usable[h.LinkIndex] == nil })
	if len(c.MultiPath) == 1 { // the kernel keeps it as a plain route
		h := c.MultiPath[0]
		c.LinkIndex, c.Gw, c.Via, c.Encap, c.Flags = h.LinkIndex, h.Gw, h.Via, h.Encap, h.Flags
		c.MultiPath = nil
	}
	if len(c.MultiPath) == 0 && usable[c.LinkIndex] == nil {
		return c, false
	}
	// The kernel has found each gateway on its device already. On-link saves the copy from being refused where the
	// route to the gateway has since gone from the main table, or is not in this one.
	if c.Family == unix.AF_INET {
		if c.Gw != nil {
			c.SetFlag(netlink.FLAG_ONLINK)
		}
		for _, h := range c.MultiPath {
			if h.Gw != nil {
				h.Flags |= int(netlink.FLAG_ONLINK)
			}
		}
	}
	c.AdvMSS = r.advMSS(c, usable)
	return c, true
}

// advMSS returns the MSS for route c: an explicit one makes the kernel forget about the MTU (dst_metric_advmss in
// include/net/dst.h), so that has to be minded here.
func (r *Replies) advMSS(c netlink.Route, usable map[int]netlink.Link) int {
	mss, headers := r.AdvMSS, 20+20 // IPv4, TCP
	if c.Family == unix.AF_INET6 {
		mss, headers = r.AdvMSS6, 40+20
	}
	if mss == 0 {
		return c.AdvMSS
	}
	if c.AdvMSS > 0 {
		mss = min(mss, c.AdvMSS)
	}
	if c.MTU > 0 {
		mss = min(mss, c.MTU-headers)
	}
	for _, h := range c.MultiPath {
		mss = min(mss, usable[h.LinkIndex].Attrs().MTU-headers)
	}
	if len(c.MultiPath) == 0 {
		mss = min(mss, usable[c.LinkIndex].Attrs().MTU-headers)
	}
	return max(mss, minMSS)
}

// planReplyRules plans the rules that lead to the table. Their priority must be no other rule's.
func (m *Manager) planReplyRules(want *Replies, own []ruleRecord, snap snapshot) (steps []step, next []ruleRecord, err error) {
	mine, from := setOf(own), setOf(want.From)
	for _, have := range snap.rules {
		if have.Priority != want.Priority {
			continue
		}
		rec, plain := recordOfRule(have)
		ours := plain && have.Protocol == Protocol && mine[rec]
		asked := plain && !rec.Local && rec.Table == want.Table && from[rec.From]
		if !ours && !asked {
			return nil, nil, fmt.Errorf("replies: rule priority %d is taken by another rule (ip rule show priority %d); choose another",
				want.Priority, want.Priority)
		}
	}
	var recs []ruleRecord
	for _, from := range want.From {
		recs = append(recs, ruleRecord{Priority: want.Priority, From: from, Table: want.Table})
	}
	steps, next = m.stepsForRules(recs, own, snap)
	return steps, next, nil
}

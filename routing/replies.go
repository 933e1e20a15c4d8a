package routing

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
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
	ruleSteps, rules, err := m.planRules(want, own.Rules, snap)
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

func (m *Manager) planRules(want *Replies, own []ruleRecord, snap snapshot) (steps []step, next []ruleRecord, err error) {
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
			return nil, nil, fmt.Errorf("replies: rule priority %d is taken by another rule (ip rule show priority %d); choose another",
				have.Priority, have.Priority)
		}
	}
	for _, rec := range wanted {
		proto, there := snap.plain[rec]
		switch {
		case !there:
			next = append(next, rec)
			steps = append(steps, step{
				what: "ip rule add " + rec.String(),
				do:   func() error { return m.nl.RuleAdd(rec.kernel()) },
			})
		case proto == Protocol && mine[rec]:
			next = append(next, rec)
		}
	}
	return steps, next, nil
}

// String names the rule as `ip rule` does.
func (r ruleRecord) String() string {
	from, oif := r.From.String(), ""
	if r.From.IsUnspecified() {
		from = "all"
	}
	if r.Link != "" {
		oif = " oif " + r.Link
	}
	return fmt.Sprintf("from %s%s lookup %d priority %d", from, oif, r.Table, r.Priority)
}

func (r ruleRecord) kernel() *netlink.Rule {
	k := netlink.NewRule()
	k.Family, k.Priority, k.Table, k.Protocol = family(r.From), r.Priority, r.Table, Protocol
	if k.OifName = r.Link; !r.From.IsUnspecified() {
		k.Src = ipNet(hostPrefix(r.From))
	}
	return k
}

// recordOfRule returns the rule as a record, and whether it is nothing but that: one source, one table, a device or none.
func recordOfRule(have netlink.Rule) (ruleRecord, bool) {
	rec := ruleRecord{Priority: have.Priority, Link: have.OifName, Table: have.Table}
	switch src := prefixOf(have.Src); {
	case src.IsSingleIP():
		rec.From = src.Addr()
	case have.Src != nil:
		return rec, false
	case have.Family == unix.AF_INET6:
		rec.From = netip.IPv6Unspecified()
	default:
		rec.From = netip.IPv4Unspecified()
	}
	plain := *rec.kernel()
	plain.Protocol = have.Protocol
	return rec, reflect.DeepEqual(plain, have)
}

func (m *Manager) undoRule(r ruleRecord, snap snapshot) error {
	if snap.plain[r] != Protocol {
		return nil
	}
	if err := m.nl.RuleDel(r.kernel()); err != nil && !isGone(err) {
		return fmt.Errorf("ip rule del %s: %w", r, err)
	}
	return nil
}

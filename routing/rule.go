package routing

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// loopback is the input device of this host's own packets in the kernel's rules.
const loopback = "lo"

func (r Rule) record() ruleRecord {
	rec := ruleRecord{Priority: r.Priority, From: netip.IPv4Unspecified(), Local: true, Table: r.Table}
	if r.IPv6 {
		rec.From = netip.IPv6Unspecified()
	}
	return rec
}

// String returns the rule as `ip rule` prints it.
func (r ruleRecord) String() string {
	from := "from " + r.From.String()
	if r.From.IsUnspecified() {
		from = "from all"
		if r.From.Is6() {
			from = "-6 from all"
		}
	}
	if r.Local {
		from += " iif " + loopback
	}
	if r.Link != "" {
		from += " oif " + r.Link
	}
	return fmt.Sprintf("%s lookup %d priority %d", from, r.Table, r.Priority)
}

// planRules plans State.Rules. planRoutes plans their routes.
func (m *Manager) planRules(want []Rule, own []ruleRecord, ownRoutes map[routeRecord]bool,
	snap snapshot) (steps []step, next []ruleRecord, err error) {
	var errs []error
	var recs []ruleRecord
	for _, w := range want {
		rec := w.record()
		recs = append(recs, rec)
		var theirs []string
		for key, have := range snap.routes {
			if key.in() != rec.in() {
				continue
			}
			for _, r := range foreign(have, ownRoutes[key]) {
				if r.Protocol != Protocol { // another program of ours shares the table
					theirs = append(theirs, key.Dst.String())
				}
			}
		}
		if len(theirs) > 0 {
			// The smallest destination keeps the text the same in each pass: Watch logs a repeated text once.
			errs = append(errs, fmt.Errorf("routing table %d is in use: it has a route for %s; "+
				"choose another, or empty it (ip route flush table %d)", w.Table, slices.Min(theirs), w.Table))
		}
	}
	steps, next = m.stepsForRules(recs, own, snap)
	return steps, next, errors.Join(errs...)
}

// stepsForRules adds the missing rules. next lists the added rules, and the existing ones that are ours.
func (m *Manager) stepsForRules(want, own []ruleRecord, snap snapshot) (steps []step, next []ruleRecord) {
	mine := setOf(own)
	for _, rec := range want {
		proto, there := snap.plain[rec]
		switch {
		case !there:
			next = append(next, rec)
			steps = append(steps, step{
				what: "ip rule add " + rec.String(),
				name: "rule " + rec.String(), old: "none", new: "present", recorded: mine[rec],
				do: func() error { return m.nl.RuleAdd(rec.kernel()) },
			})
		case proto == Protocol && mine[rec]:
			next = append(next, rec)
		}
	}
	return steps, next
}

func (r ruleRecord) in() table { return table{kernel.Family(r.From), r.Table} }

func (r ruleRecord) kernel() *netlink.Rule {
	k := netlink.NewRule()
	k.Family, k.Priority, k.Table, k.Protocol, k.OifName = kernel.Family(r.From), r.Priority, r.Table, Protocol, r.Link
	if !r.From.IsUnspecified() {
		k.Src = kernel.IPNet(kernel.HostPrefix(r.From))
	}
	if r.Local {
		k.IifName = loopback
	}
	return k
}

// recordOfRule returns the rule as a record, and whether the record describes it completely: one source or any, an
// output device or none, iif lo or none, and one table.
func recordOfRule(have netlink.Rule) (ruleRecord, bool) {
	rec := ruleRecord{Priority: have.Priority, Local: have.IifName == loopback, Link: have.OifName, Table: have.Table}
	switch src := kernel.PrefixOf(have.Src); {
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
	if err := m.nl.RuleDel(r.kernel()); err != nil && !kernel.IsGone(err) {
		return fmt.Errorf("ip rule del %s: %w", r, err)
	}
	return nil
}

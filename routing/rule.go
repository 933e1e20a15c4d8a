package routing

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

func (r Rule) record() ruleRecord {
	rec := ruleRecord{Priority: r.Priority, From: netip.IPv4Unspecified(), Protocol: r.Protocol, SrcPorts: r.SrcPorts,
		Table: r.Table, Goto: r.Goto}
	if r.IPv6 {
		rec.From = netip.IPv6Unspecified()
	}
	rec.setFrom(r.From)
	rec.setIn(r.In)
	return rec
}

// setFrom sets the source to p. The zero Prefix stands for any source.
func (r *ruleRecord) setFrom(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	r.From = p.Addr()
	if !p.IsSingleIP() {
		r.Bits = p.Bits()
	}
}

func (r *ruleRecord) setIn(device string) {
	if r.Local = device == Loopback; !r.Local {
		r.In = device
	}
}

// source returns the prefix of the source, or the zero Prefix for any source.
func (r ruleRecord) source() netip.Prefix {
	switch {
	case r.From.IsUnspecified():
		return netip.Prefix{}
	case r.Bits == 0:
		return kernel.HostPrefix(r.From)
	}
	return netip.PrefixFrom(r.From, r.Bits)
}

// in returns the input device, "" for any.
func (r ruleRecord) in() string {
	if r.Local {
		return Loopback
	}
	return r.In
}

// valid reports whether this package can have written r into a journal.
func (r ruleRecord) valid() bool {
	return validAddr(r.From) && inRange(r.Bits, 0, r.From.BitLen()) && inRange(r.Priority, 1, lastP) &&
		(r.Link == "" || validLink(r.Link)) && (r.In == "" || validLink(r.In)) && validPorts(r.SrcPorts) &&
		inRange(r.Table, 0, maxID) && inRange(r.Goto, 0, lastP)
}

// String returns the rule as `ip rule` prints it.
func (r ruleRecord) String() string {
	var b strings.Builder
	if r.From.Is6() {
		b.WriteString("-6 ")
	}
	b.WriteString("from ")
	switch {
	case r.From.IsUnspecified():
		b.WriteString("all")
	case r.Bits == 0:
		b.WriteString(r.From.String())
	default:
		b.WriteString(r.source().String())
	}
	if in := r.in(); in != "" {
		b.WriteString(" iif " + in)
	}
	if r.Link != "" {
		b.WriteString(" oif " + r.Link)
	}
	if r.Protocol != 0 {
		fmt.Fprintf(&b, " ipproto %d", r.Protocol)
	}
	switch p := r.SrcPorts; {
	case p == PortRange{}:
	case p.First == p.Last:
		fmt.Fprintf(&b, " sport %d", p.First)
	default:
		fmt.Fprintf(&b, " sport %d-%d", p.First, p.Last)
	}
	switch {
	case r.Goto != 0:
		fmt.Fprintf(&b, " goto %d", r.Goto)
	case r.Table != 0:
		fmt.Fprintf(&b, " lookup %d", r.Table)
	default:
		b.WriteString(" nop")
	}
	fmt.Fprintf(&b, " priority %d", r.Priority)
	return b.String()
}

// planRules plans State.Rules. planRoutes plans their routes.
func (m *Manager) planRules(want []Rule, own []ruleRecord, ownRoutes map[routeRecord]bool,
	snap snapshot) (steps []step, next []ruleRecord, err error) {
	var recs []ruleRecord
	theirs := map[table][]string{} // other programs' routes in our tables
	for _, w := range want {
		rec := w.record()
		recs = append(recs, rec)
		if rec.Table != 0 {
			theirs[rec.looksUp()] = nil
		}
	}
	for key, have := range snap.routes {
		if _, ours := theirs[key.in()]; !ours {
			continue
		}
		for _, r := range foreign(have, ownRoutes[key]) {
			if r.Protocol != Protocol { // another program of ours shares the table
				theirs[key.in()] = append(theirs[key.in()], key.Dst.String())
			}
		}
	}
	var errs []error
	for _, t := range slices.SortedFunc(maps.Keys(theirs), table.compare) {
		if dsts := theirs[t]; len(dsts) > 0 {
			// The smallest destination keeps the text the same in each pass: Watch logs a repeated text once.
			errs = append(errs, m.state.inUse(t.id, slices.Min(dsts)))
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
				do: func() error { return m.addRule(rec) },
			})
		case proto == Protocol && mine[rec]:
			next = append(next, rec)
		}
	}
	return steps, next
}

func (r ruleRecord) looksUp() table { return table{kernel.Family(r.From), r.Table} }

// nop is the action of a rule that has no effect: FR_ACT_NOP of linux/fib_rules.h.
const nop = 3

func (r ruleRecord) kernel() *netlink.Rule {
	k := netlink.NewRule()
	k.Family, k.Priority, k.Table, k.Protocol, k.OifName = kernel.Family(r.From), r.Priority, r.Table, Protocol, r.Link
	if p := r.source(); p.IsValid() {
		k.Src = kernel.IPNet(p)
	}
	k.IifName, k.IPProto = r.in(), int(r.Protocol)
	if p := r.SrcPorts; p != (PortRange{}) {
		k.Sport = netlink.NewRulePortRange(p.First, p.Last)
	}
	if r.Goto != 0 {
		k.Goto = r.Goto
	}
	return k
}

// addRule adds r to the kernel's rules.
func (m *Manager) addRule(r ruleRecord) error {
	k := r.kernel()
	if r.Table == 0 && r.Goto == 0 {
		k.Type = nop
	}
	return m.nl.RuleAdd(k)
}

// recordOfRule returns the rule as a record, and whether the record describes it completely.
func recordOfRule(have netlink.Rule) (ruleRecord, bool) {
	rec := ruleRecord{Priority: have.Priority, From: netip.IPv4Unspecified(), Link: have.OifName,
		Protocol: uint8(have.IPProto), Table: have.Table, Goto: max(have.Goto, 0)}
	if have.Family == unix.AF_INET6 {
		rec.From = netip.IPv6Unspecified()
	}
	rec.setFrom(kernel.PrefixOf(have.Src))
	rec.setIn(have.IifName)
	if have.Sport != nil {
		rec.SrcPorts = PortRange{have.Sport.Start, have.Sport.End}
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

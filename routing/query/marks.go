package query

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// Marks is what policy rules of this host that look at a packet's mark do with packets to some destinations.
type Marks struct {
	Rule4, Rule6 string // one such rule of each family; "": there is none
	// Other is the destinations with a path to which some mark leads packets of this host another way.
	Other map[netip.Addr]bool
}

// Rule returns the rule of a's family.
func (m *Marks) Rule(a netip.Addr) string {
	if a.Is4() {
		return m.Rule4
	}
	return m.Rule6
}

// FindMarks looks for rules by mark of the families of paths, which are the paths of packets without a mark. The zero
// Path is none. A mark that leads packets into this host itself, as those of a transparent proxy, leads to no other
// way. A rule that looks at more than the query has is taken to lead to another way.
func FindMarks(paths map[netip.Addr]Path) (Marks, error) {
	return ask(func(h *netlink.Handle) (m Marks, err error) {
		m.Other = map[netip.Addr]bool{}
		of := map[int][]netip.Addr{}
		for a := range paths {
			if paths[a].Link == "" {
				continue
			}
			of[kernel.Family(a)] = append(of[kernel.Family(a)], a)
		}
		for family, addrs := range of {
			rules, err := kernel.Rules(h, family)
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) { // see HasRules
				continue
			}
			if err != nil {
				return Marks{}, err
			}
			rule, marks := rulesByMark(rules)
			if rule == "" {
				continue
			}
			if family == unix.AF_INET {
				m.Rule4 = rule
			} else {
				m.Rule6 = rule
			}
			if err := m.compare(h, addrs, paths, marks); err != nil {
				return Marks{}, err
			}
			have, err := kernel.Addrs(h, family)
			if err != nil {
				return Marks{}, err
			}
			for _, a := range addrs {
				if slices.ContainsFunc(rules, func(r netlink.Rule) bool { return isUnasked(&r, a, have) }) {
					m.Other[a] = true
				}
			}
		}
		return m, nil
	})
}

// compare adds those of addrs to Other to which the kernel has another path than paths for a packet with one of marks.
func (m *Marks) compare(h *netlink.Handle, addrs []netip.Addr, paths map[netip.Addr]Path, marks []uint32) error {
	devices := map[int]*device{}
	for _, mark := range marks {
		for _, a := range addrs {
			p, err := pathTo(h, a, netip.Addr{}, "", mark, devices)
			if err != nil {
				return err
			}
			is := paths[a]
			if p == nil || !p.Local && (p.Index != is.Index || p.Gateway != is.Gateway) {
				m.Other[a] = true
			}
		}
	}
	return nil
}

// isUnasked reports whether r is a rule by mark that looks at a source, protocol, port, user or TOS, too, and that can
// be for packets of this host, which has the addresses own, to a. The query has none of these: nftables leads a packet
// that it has marked by its source, and the query is without.
func isUnasked(r *netlink.Rule, a netip.Addr, own []netlink.Addr) bool {
	switch looks := r.IPProto != 0 || r.Sport != nil || r.Dport != nil || r.UIDRange != nil || r.Tos != 0; {
	case maskOf(r) == 0 || r.Src == nil && !looks:
		return false
	case r.Invert:
		return true
	case r.IifName != "" && r.IifName != "lo", r.OifName != "", r.Dst != nil && !r.Dst.Contains(a.AsSlice()):
		return false
	}
	return r.Src == nil || slices.ContainsFunc(own, func(o netlink.Addr) bool { return r.Src.Contains(o.IP) })
}

// maskOf returns the bits of the mark that a rule looks at.
func maskOf(r *netlink.Rule) uint32 {
	switch {
	case r.Mask != nil:
		return *r.Mask
	case r.Mark != 0:
		return ^uint32(0)
	}
	return 0
}

// rulesByMark returns the first rule that looks at the mark, and marks between which the rules make a difference. A
// packet without a mark has the mark 0, which is not among them.
func rulesByMark(rules []netlink.Rule) (first string, marks []uint32) {
	add := func(mark uint32) {
		if mark != 0 && !slices.Contains(marks, mark) {
			marks = append(marks, mark)
		}
	}
	var before []markRule
	for i := range rules {
		r := &rules[i]
		m := markRule{r.Mark, maskOf(r), r.Invert}
		if m.mask == 0 { // every packet
			continue
		}
		if first == "" {
			first = fmt.Sprintf("ip rule %d: fwmark %#x/%#x", r.Priority, r.Mark, m.mask)
		}
		m.mark &= m.mask
		for _, mark := range []uint32{m.mark, m.mark ^ 1<<bits.TrailingZeros32(m.mask)} { // the rule's, and not its
			add(mark)
			add(avoid(mark, m.mask, before))
		}
		before = append(before, m)
	}
	return first, marks
}

// markRule is what a rule looks for in a packet's mark.
type markRule struct {
	mark, mask uint32
	invert     bool // the rule is for all other marks
}

// matches reports whether the rule is for packets with a mark.
func (m markRule) matches(mark uint32) bool { return (mark&m.mask == m.mark) != m.invert }

// avoid returns a mark with the fixed bits of the given one that no rule is for, as far as that is possible one rule
// after the other: the given mark may not get to a later rule.
func avoid(mark, fixed uint32, rules []markRule) uint32 {
	for _, r := range rules {
		free := r.mask &^ fixed
		switch {
		case !r.matches(mark):
		case r.invert:
			mark = mark&^free | r.mark&free
			fixed |= free
		case free != 0:
			bit := uint32(1) << bits.TrailingZeros32(free)
			mark ^= bit
			fixed |= bit
		}
	}
	return mark
}

package query

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestFindMarks: a rule by mark is found, and the destinations whose packets it leads another way.
func TestFindMarks(t *testing.T) {
	newHost(t)
	east, far, own := netip.MustParseAddr("10.1.0.77"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("10.1.0.1")
	six := netip.MustParseAddr("2001:db8::1")
	setSysctl(t, "net/ipv6/conf/east/disable_ipv6", "0")
	addAddr(t, "east", "2001:db8::2/64")
	paths, err := Paths([]netip.Addr{east, far, own, six})
	must(t, err)
	if len(paths) != 4 {
		t.Fatalf("paths: %v", paths)
	}
	check := func(when, rule string, other ...netip.Addr) {
		t.Helper()
		got, err := FindMarks(paths)
		of := got.Rule4 + got.Rule6
		want := map[netip.Addr]bool{}
		for _, a := range other {
			want[a] = true
		}
		if err != nil || of != rule || !maps.Equal(got.Other, want) {
			t.Errorf("%s: %+v, %v; want %q and %v", when, got, err, rule, want)
		}
	}
	add := func(change func(r *netlink.Rule)) (remove func()) {
		t.Helper()
		r := netlink.NewRule()
		r.Priority, r.Table, r.Family = 1000, 200, unix.AF_INET
		change(r)
		must(t, netlink.RuleAdd(r))
		return func() { t.Helper(); must(t, netlink.RuleDel(r)) }
	}
	all := ^uint32(0)
	check("no rule", "")
	remove := add(func(r *netlink.Rule) { r.IifName = "west" })
	check("no rule by mark", "")
	remove()

	remove = add(func(r *netlink.Rule) { r.Mark, r.Mask = 1, &all })
	check("an empty table", "ip rule 1000: fwmark 0x1/0xffffffff")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("8.8.8.0/24"), LinkIndex: linkOf(t, "west").Attrs().Index,
		Table: 200, Scope: unix.RT_SCOPE_LINK}))
	check("another way", "ip rule 1000: fwmark 0x1/0xffffffff", far)
	remove()

	mask := uint32(0xff00)
	remove = add(func(r *netlink.Rule) { r.Mark, r.Mask = 0, &mask })
	paths, err = Paths([]netip.Addr{east, far, own, six})
	must(t, err)
	check("packets without a mark", "ip rule 1000: fwmark 0x0/0xff00", far)
	remove()
	paths, err = Paths([]netip.Addr{east, far, own, six})
	must(t, err)

	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("10.1.0.77/32"), LinkIndex: linkOf(t, "lo").Attrs().Index,
		Table: 201, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL}))
	remove = add(func(r *netlink.Rule) { r.Mark, r.Mask, r.Table = 1, &all, 201 })
	check("a transparent proxy", "ip rule 1000: fwmark 0x1/0xffffffff")
	remove()

	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("2001:db8::1/128"), Table: 200, Type: unix.RTN_UNREACHABLE}))
	remove = add(func(r *netlink.Rule) { r.Mark, r.Mask, r.Family = 2, &all, unix.AF_INET6 })
	check("a path that a mark ends", "ip rule 1000: fwmark 0x2/0xffffffff", six)
	remove()
}

// TestFindMarksUnreachable: a mark leads packets to a destination without a path no other way.
func TestFindMarksUnreachable(t *testing.T) {
	newHost(t)
	nowhere := netip.MustParseAddr("203.0.113.9")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), Type: unix.RTN_UNREACHABLE}))
	r := netlink.NewRule()
	all := ^uint32(0)
	r.Priority, r.Table, r.Family, r.Mark, r.Mask = 1000, 200, unix.AF_INET, 1, &all
	must(t, netlink.RuleAdd(r))
	paths, err := Paths([]netip.Addr{nowhere, netip.MustParseAddr("10.1.0.77")})
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	paths[nowhere] = Path{} // as the director's plan has it
	if got, err := FindMarks(paths); err != nil || len(got.Other) > 0 || got.Rule4 == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestFindMarksOfMore: the query knows neither the source of a packet nor its protocol, ports and TOS. A rule that
// looks at one of them beside the mark may lead the packets of this host another way.
func TestFindMarksOfMore(t *testing.T) {
	newHost(t)
	east := netip.MustParseAddr("10.1.0.77")
	paths, err := Paths([]netip.Addr{east})
	must(t, err)
	for name, row := range map[string]struct {
		change func(r *netlink.Rule)
		want   bool
	}{
		"own source":        {func(r *netlink.Rule) { r.Src = cidr("10.1.0.1/32") }, true},
		"subnet of own":     {func(r *netlink.Rule) { r.Src = cidr("10.1.0.0/24") }, true},
		"another source":    {func(r *netlink.Rule) { r.Src = cidr("10.77.0.0/16") }, false},
		"not this source":   {func(r *netlink.Rule) { r.Src, r.Invert = cidr("10.77.0.0/16"), true }, true},
		"protocol":          {func(r *netlink.Rule) { r.IPProto = unix.IPPROTO_IPIP }, true},
		"port":              {func(r *netlink.Rule) { r.Dport = netlink.NewRulePortRange(6080, 6080) }, true},
		"TOS":               {func(r *netlink.Rule) { r.Tos = 0x10 }, true},
		"protocol, for it":  {func(r *netlink.Rule) { r.IPProto, r.Dst = 4, cidr("10.1.0.0/24") }, true},
		"for another":       {func(r *netlink.Rule) { r.IPProto, r.Dst = 4, cidr("10.2.0.0/24") }, false},
		"forwarded packets": {func(r *netlink.Rule) { r.IPProto, r.IifName = 4, "west" }, false},
		"without a mark":    {func(r *netlink.Rule) { r.IPProto, r.Mark, r.Mask = 4, 0, nil }, false},
	} {
		r := netlink.NewRule()
		all := ^uint32(0)
		r.Priority, r.Table, r.Family, r.Mark, r.Mask = 1000, 200, unix.AF_INET, 1, &all
		row.change(r)
		must(t, netlink.RuleAdd(r))
		if got, err := FindMarks(paths); err != nil || got.Other[east] != row.want {
			t.Errorf("%s: %+v, %v; want %v", name, got, err, row.want)
		}
		must(t, netlink.RuleDel(r))
	}
}

// TestRulesByMark: for each rule that packets can get to, there is a mark whose first rule it is.
func TestRulesByMark(t *testing.T) {
	rule := func(mark, mask uint32, invert bool) netlink.Rule {
		r := netlink.NewRule()
		r.Mark, r.Mask, r.Invert = mark, &mask, invert
		return *r
	}
	for name, c := range map[string][]netlink.Rule{
		"one":               {rule(1, 1, false)},
		"a bit, and none":   {rule(0, 0x10, false), rule(1, 1, false)},
		"two bits, and one": {rule(0, 0x10, false), rule(0x20, 0x20, false), rule(1, 1, false)},
		"other than":        {rule(0xca6c, ^uint32(0), true), rule(0xc, 0xc, false)},
		"other than a bit":  {rule(0x10, 0x10, true), rule(1, 1, false), rule(0, 1, false)},
		"other than two":    {rule(0x30, 0x30, true), rule(0x40, 0x40, false), rule(1, 1, false)},
	} {
		_, marks := rulesByMark(c)
		for i := range c {
			if !slices.ContainsFunc(append(marks, 0), func(mark uint32) bool {
				return i == slices.IndexFunc(c, func(r netlink.Rule) bool {
					return (mark&*r.Mask == r.Mark) != r.Invert
				})
			}) {
				t.Errorf("%s: no mark of %#x gets to rule %d", name, marks, i)
			}
		}
	}
}

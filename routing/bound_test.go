package routing

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// boundState is fullState, with answers by vs0 for sockets that are bound to it.
func boundState() State {
	s := fullState()
	s.Replies.Bound = "vs0"
	s.Routes = append(s.Routes, Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "vs0", Table: 5081, AdvMSS: 1360})
	return s
}

// TestRepliesOfBoundSockets: packets from one of the addresses take the route by the device if their socket is bound to
// it. Other packets take the copy of the main table. Close undoes all changes, also from a journal. Watch restores a
// deleted rule.
func TestRepliesOfBoundSockets(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(boundState()))
	client := netip.MustParseAddr("203.1.113.9").AsSlice()
	for _, c := range []struct {
		from, oif, want string
		table           int
	}{
		{"198.51.100.80", "vs0", "vs0", 5081},
		{"198.51.100.80", "", "east", 5080},
		{"198.51.100.80", "west", "west", 5080},
	} {
		r, err := netlink.RouteGetWithOptions(client,
			&netlink.RouteGetOptions{SrcAddr: netip.MustParseAddr(c.from).AsSlice(), Oif: c.oif})
		must(t, err)
		if len(r) != 1 || r[0].LinkIndex != linkOf(t, c.want).Attrs().Index || r[0].Table != c.table {
			t.Errorf("from %s, device %q: %v, want table %d by %s", c.from, c.oif, r, c.table, c.want)
		}
	}
	rules := func() (n int) {
		all, err := netlink.RuleList(unix.AF_INET)
		must(t, err)
		for _, r := range all {
			if r.Priority == 1081 && r.OifName == "vs0" && r.Table == 5081 && r.Protocol == Protocol {
				n++
			}
		}
		return n
	}
	if n := rules(); n != 1 {
		t.Errorf("%d rules of the device, want one", n)
	}
	must(t, netlink.RuleDel(boundState().Replies.rules()[2].kernel()))
	if n, err := m.passAgain(); n != 1 || err != nil || rules() != 1 {
		t.Errorf("another pass made %d changes, %v; %d rules", n, err, rules())
	}
	j, err := readJournal(m.path)
	must(t, err)
	if len(j.Did.Rules) != 4 {
		t.Errorf("rules in the journal: %v", j.Did.Rules)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestRepliesOfBoundSocketsAreChecked: the next table and the next priority must be free, too.
func TestRepliesOfBoundSocketsAreChecked(t *testing.T) {
	t.Parallel()
	for _, edit := range []func(s *State){
		func(s *State) { s.Replies.Table = 252 },
		func(s *State) { s.Replies.Priority = lastP },
		func(s *State) { s.Replies.Bound = "a/b" },
	} {
		s := boundState()
		if err := s.validate(); err != nil {
			t.Fatal(err)
		}
		if edit(&s); s.validate() == nil {
			t.Errorf("accepted: %+v", *s.Replies)
		}
	}
	newHost(t)
	other := ruleRecord{Priority: 1081, From: netip.MustParseAddr("192.0.2.1"), Table: 7}.kernel()
	other.Protocol = unix.RTPROT_STATIC
	must(t, netlink.RuleAdd(other))
	if err := open(t).Set(boundState()); err == nil {
		t.Error("took a priority that another rule has")
	}
}

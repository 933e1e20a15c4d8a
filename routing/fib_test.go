package routing

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// fillMain adds n routes by east to the main table.
func fillMain(t *testing.T, n int) {
	t.Helper()
	h, err := kernel.Open()
	must(t, err)
	defer h.Close()
	east := linkOf(t, "east").Attrs().Index
	for i := range n {
		must(t, h.RouteAdd(&netlink.Route{
			Dst: cidr(fmt.Sprintf("%d.%d.%d.0/24", 20+i>>16, i>>8&255, i&255)), Gw: net.IPv4(10, 1, 0, 254),
			LinkIndex: east,
		}))
	}
}

func TestAFullTableOfOthersCostsLittle(t *testing.T) {
	t.Parallel()
	newHost(t)
	fillMain(t, 100_000)
	s := State{Links: []Link{{Name: "vs0", Up: true}}}
	vip := netip.MustParseAddr("198.51.100.1")
	for range 50 {
		s.Routes = append(s.Routes, Route{Dst: kernel.HostPrefix(vip), Link: "vs0"}, Route{Dst: kernel.HostPrefix(vip),
			Unreachable: true, Metric: 4294967294})
		vip = vip.Next()
	}
	m := open(t)
	set := time.Hour
	for range 5 {
		must(t, m.Set(State{}))
		set = min(set, quickest(1, func() { must(t, m.Set(s)) }))
	}
	pass := quickest(20, func() {
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Fatalf("%d changes, %v", n, err)
		}
	})
	t.Logf("100,000 routes: Set %v, a pass of Watch %v", set, pass)
	if limit := 150 * time.Millisecond * raceFactor; set > limit || pass > limit {
		t.Errorf("100,000 routes: Set takes %v, a pass of Watch %v; want less than %v", set, pass, limit)
	}
}

func TestManyReplyRoutesAreQuick(t *testing.T) {
	t.Parallel()
	newHost(t)
	fillMain(t, MaxReplyRoutes-100)
	before := machineState(t)
	m := open(t)
	set := quickest(1, func() { must(t, m.Set(repliesOnly())) })
	pass := quickest(3, func() {
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Fatalf("%d changes, %v", n, err)
		}
	})
	undo := quickest(1, func() { must(t, m.Close()) })
	t.Logf("%d reply routes: Set %v, a pass of Watch %v, Close %v", MaxReplyRoutes-100, set, pass, undo)
	if limit := 2 * time.Second * raceFactor; set > limit || undo > limit {
		t.Errorf("Set takes %v, Close %v, want less than %v: a program that is told to stop waits for both", set, undo,
			limit)
	}
	sameState(t, before, machineState(t))
}

func TestOccupied(t *testing.T) {
	t.Parallel()
	newHost(t)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.7/32"), Type: unix.RTN_BLACKHOLE, Table: 777,
		Priority: 9}))
	main, other := table{unix.AF_INET, unix.RT_TABLE_MAIN}, table{unix.AF_INET, 777}
	for _, c := range []struct {
		in   table
		dst  string
		want bool
	}{
		{main, "0.0.0.0/0", true},
		{main, "172.16.0.0/16", true},
		{main, "172.16.0.0/24", false},
		{main, "192.0.2.7/32", false},
		{other, "192.0.2.7/32", true},
		{other, "0.0.0.0/0", false},
		{table{unix.AF_INET, 778}, "192.0.2.7/32", false}, // no such table
	} {
		dsts := map[netip.Prefix]bool{netip.MustParsePrefix(c.dst): true, netip.MustParsePrefix("9.9.9.9/32"): true}
		if got, err := occupied(c.in, dsts); got != c.want || err != nil {
			t.Errorf("%s in %v: %t, %v", c.dst, c.in, got, err)
		}
	}
}

package routing

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const lastMetric = 4294967294

// guarded sends a VIP out of vs0, and nowhere if vs0 is gone.
func guarded() State {
	vip := netip.MustParsePrefix("198.51.100.80/32")
	return State{
		Sysctls: []Sysctl{{Key: "net/ipv4/ip_forward", Value: "1"}},
		Links:   []Link{{Name: "vs0", Up: true}},
		Routes:  []Route{{Dst: vip, Link: "vs0"}, {Dst: vip, Unreachable: true, Metric: lastMetric}},
	}
}

// way returns the path by which the kernel would send to the VIP.
func way(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 80))
	switch {
	case errors.Is(err, unix.EHOSTUNREACH):
		return "unreachable"
	case errors.Is(err, unix.EINVAL):
		return "blackhole"
	}
	must(t, err)
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	return l.Attrs().Name
}

func TestUnreachableCatchesWhatTheDeviceLeaves(t *testing.T) {
	t.Parallel()
	newHost(t)
	m := open(t)
	must(t, m.Set(guarded()))
	if w := way(t); w != "vs0" {
		t.Errorf("way to the VIP: %s", w)
	}
	must(t, netlink.LinkDel(linkOf(t, "vs0")))
	if w := way(t); w != "unreachable" {
		t.Errorf("way to the VIP without the device: %s", w)
	}
	must(t, m.Close())
	if w := way(t); w != "east" {
		t.Errorf("way to the VIP after Close: %s", w)
	}
}

func TestUnreachableOutlivesAKill(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	path := t.TempDir() + "/journal.json"
	kill(startChild(t, path))
	if !slices.ContainsFunc(machineRoutes(t), func(r netlink.Route) bool {
		return r.Type == unix.RTN_UNREACHABLE && r.Priority == lastMetric && r.Protocol == Protocol
	}) {
		t.Error("no unreachable route left")
	}
	m, err := Open(path, nil)
	must(t, err)
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func machineRoutes(t *testing.T) []netlink.Route {
	t.Helper()
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	must(t, err)
	return routes
}

// A forwarding host never sends the VIP's packets back by its default route.
func TestUnreachableComesFirstAndGoesLast(t *testing.T) {
	t.Parallel()
	newHost(t)
	sub, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	must(t, err)
	defer sub.Close()
	must(t, sub.SetReceiveTimeout(&unix.Timeval{Sec: 10}))
	m := open(t)
	must(t, m.Set(guarded()))
	must(t, m.Close())

	// The first event is the guard's addition, the last its removal.
	var events []string
	for len(events) == 0 || events[len(events)-1] != "del unreachable" {
		msgs, _, err := sub.Receive()
		must(t, err)
		for _, msg := range msgs {
			switch msg.Header.Type {
			case unix.RTM_NEWNETCONF:
				events = append(events, "forwarding")
			case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
				name := map[uint16]string{unix.RTM_NEWROUTE: "add ", unix.RTM_DELROUTE: "del "}[msg.Header.Type]
				events = append(events, name+typeName(int(nl.DeserializeRtMsg(msg.Data).Type)))
			}
		}
	}
	events = slices.Compact(events)
	want := []string{"add unreachable", "forwarding", "add type 1", "del type 1", "forwarding", "del unreachable"}
	if !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
}

func TestRouteThatBecomesUnreachableAndBack(t *testing.T) {
	t.Parallel()
	newHost(t)
	linkUp(t, "vs0")
	before := machineState(t)
	m := open(t)
	dst := netip.MustParsePrefix("198.51.100.80/32")
	for _, c := range []struct {
		route Route
		want  string
	}{
		{Route{Dst: dst, Link: "vs0"}, "vs0"},
		{Route{Dst: dst, Unreachable: true}, "unreachable"},
		{Route{Dst: dst, Link: "vs0"}, "vs0"},
		{Route{Dst: dst, Link: "vs0", Metric: 7}, "vs0"},
		{Route{Dst: dst, Unreachable: true, Metric: 7}, "unreachable"},
		{Route{Dst: dst, Blackhole: true, Metric: 7}, "blackhole"},
		{Route{Dst: dst, Link: "vs0", Metric: 7}, "vs0"},
	} {
		must(t, m.Set(State{Routes: []Route{c.route}}))
		if w := way(t); w != c.want {
			t.Errorf("%+v: way to the VIP: %s", c.route, w)
		}
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Errorf("%+v: another pass made %d changes, %v", c.route, n, err)
		}
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestUnreachableOfAnotherProgramStays(t *testing.T) {
	t.Parallel()
	newHost(t)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("198.51.100.80/32"), Type: unix.RTN_UNREACHABLE,
		Priority: lastMetric}))
	before := machineState(t)
	m := open(t)
	must(t, m.Set(guarded()))
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

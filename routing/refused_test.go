package routing

import (
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestRefusedCopy: the kernel refuses a copy of a route whose gateway has become an address of this host. The other
// routes are copied all the same. Replies that take this route use the main table. The log names it once. It is copied
// as soon as the kernel accepts it.
func TestRefusedCopy(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.0/24"), Gw: net.IPv4(10, 1, 0, 7)}))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.3.0/24"), Gw: net.IPv4(10, 1, 0, 8)}))
	addAddr(t, "east", "10.1.0.7/24")
	log := &testkit.Log{}
	m, err := Open(filepath.Join(t.TempDir(), "journal"), slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)
	defer m.Close()
	must(t, m.Set(repliesOnly()))
	for _, dst := range []string{"0.0.0.0/0", "192.0.3.0/24", "172.18.0.0/16"} {
		if routeIn(t, 5080, dst) == nil {
			t.Errorf("%s is not copied", dst)
		}
	}
	if !hasRule(t, ruleRecord{Priority: 1080, From: fullState().Replies.From[0], Table: 5080}) {
		t.Error("no rule leads to the table")
	}
	if r := routeIn(t, 5080, "192.0.2.0/24"); r == nil || r.Type != unix.RTN_THROW {
		t.Errorf("in the place of the refused copy: %v", r)
	}
	for range 2 {
		if n, err := m.passAgain(); n != 0 || err != nil {
			t.Errorf("another pass: %d changes, %v", n, err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 ||
		!strings.Contains(log.String(), "192.0.2.0/24 table 5080") {
		t.Errorf("the log has %d warnings:\n%s", n, log)
	}
	stop := watch(t, m)
	a, err := netlink.ParseAddr("10.1.0.7/24")
	must(t, err)
	must(t, netlink.AddrDel(linkOf(t, "east"), a))
	testkit.Eventually(t, "the route is copied", func() bool {
		r := routeIn(t, 5080, "192.0.2.0/24")
		return r != nil && r.Type == unix.RTN_UNICAST && r.AdvMSS == 1440
	})
	stop()
	must(t, m.Close())
	for _, dst := range []string{"192.0.2.0/24", "192.0.3.0/24"} {
		must(t, netlink.RouteDel(&netlink.Route{Dst: cidr(dst)}))
	}
	sameState(t, before, machineState(t))
}

// TestRefusedCopiesOfOneKey: the kernel refuses the second of two routes of one key. It is not tried in each pass.
func TestRefusedCopiesOfOneKey(t *testing.T) {
	t.Parallel()
	newHost(t)
	dst := cidr("192.0.2.0/24")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.IPv4(10, 1, 0, 8)}))
	must(t, netlink.RouteAppend(&netlink.Route{Dst: dst, Gw: net.IPv4(10, 1, 0, 7)}))
	addAddr(t, "east", "10.1.0.7/24")
	m := open(t)
	must(t, m.Set(repliesOnly()))
	for range 2 { // the first pass removes the rest of the refused copy
		if _, err := m.passAgain(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass: %d changes, %v", n, err)
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: 5080, Dst: dst},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err != nil || len(routes) != 1 || routes[0].Type != unix.RTN_THROW {
		t.Errorf("in the place of the refused copy: %v, %v", routes, err)
	}
	a, err := netlink.ParseAddr("10.1.0.7/24")
	must(t, err)
	must(t, netlink.AddrDel(linkOf(t, "east"), a))
	m.refused[routeRecord{Table: 5080, Dst: netip.MustParsePrefix("192.0.2.0/24")}] = refusal{} // as after retryRefused
	must(t, m.Set(repliesOnly()))
	routes, err = netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: 5080, Dst: dst},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err != nil || len(routes) != 2 || routes[0].AdvMSS != 1440 || len(m.refused) > 0 {
		t.Errorf("once the kernel takes them: %v, %v, refused %v", routes, err, m.refused)
	}
}

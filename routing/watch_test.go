package routing

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/testdata/testkit"
)

func TestWatchMends(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(fullState()))
	stop := watch(t, m)
	must(t, netlink.RouteDel(&netlink.Route{Dst: cidr("203.0.113.0/24"), Scope: unix.RT_SCOPE_LINK}))
	testkit.Eventually(t, "deleted route is back", func() bool {
		return routeIn(t, unix.RT_TABLE_MAIN,
			"203.0.113.0/24") != nil
	})

	rule := ruleRecord{Priority: 1080, From: fullState().Replies.From[1], Table: 5080}
	must(t, netlink.RuleDel(rule.kernel()))
	testkit.Eventually(t, "deleted rule is back", func() bool {
		rules, err := netlink.RuleList(unix.AF_INET)
		must(t, err)
		for _, r := range rules {
			if rec, plain := recordOfRule(r); plain && rec == rule {
				return true
			}
		}
		return false
	})

	must(t, netlink.AddrDel(linkOf(t, "vs0"), fullState().Addrs[0].kernel()))
	testkit.Eventually(t, "deleted address is back", func() bool {
		addrs, err := netlink.AddrList(linkOf(t, "vs0"), unix.AF_INET)
		must(t, err)
		return len(addrs) == 1
	})

	must(t, netlink.LinkSetDown(linkOf(t, "vs0")))
	testkit.Eventually(t, "device is up again, with its route", func() bool {
		return kernel.IsUp(linkOf(t, "vs0")) && routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24") != nil
	})

	setSysctl(t, "net/ipv4/conf/vs0/rp_filter", "1")
	testkit.Eventually(t, "rp_filter is back", func() bool { return sysctl(t, "net/ipv4/conf/vs0/rp_filter") == "2" })
	stop()

	must(t, m.Close())
	// The value that another program wrote in between is restored.
	if got := sysctl(t, "net/ipv4/conf/vs0/rp_filter"); got != "1" {
		t.Errorf("rp_filter = %s, want 1", got)
	}
	setSysctl(t, "net/ipv4/conf/vs0/rp_filter", "0")
	sameState(t, before, machineState(t))
}

func TestWatchFollowsTheMainTable(t *testing.T) {
	t.Parallel()
	newHost(t)
	m := open(t)
	must(t, m.Set(repliesOnly()))
	watch(t, m)

	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.0/24"), Gw: net.IPv4(10, 1, 0, 7)}))
	testkit.Eventually(t, "new route is copied with the MSS", func() bool {
		r := routeIn(t, 5080, "192.0.2.0/24")
		return r != nil && r.AdvMSS == 1440 && r.Gw.Equal(net.IPv4(10, 1, 0, 7))
	})
	must(t, netlink.RouteReplace(&netlink.Route{Dst: cidr("192.0.2.0/24"), Gw: net.IPv4(10, 1, 0, 8)}))
	testkit.Eventually(t, "new gateway is copied", func() bool {
		r := routeIn(t, 5080, "192.0.2.0/24")
		return r != nil && r.Gw.Equal(net.IPv4(10, 1, 0, 8))
	})
	must(t, netlink.LinkSetMTU(linkOf(t, "east"), 1400))
	testkit.Eventually(t, "MSS follows the device's MTU", func() bool {
		r := routeIn(t, 5080, "192.0.2.0/24")
		return r != nil && r.AdvMSS == 1360
	})
	must(t, netlink.RouteDel(&netlink.Route{Dst: cidr("192.0.2.0/24")}))
	testkit.Eventually(t, "deleted route is deleted", func() bool { return routeIn(t, 5080, "192.0.2.0/24") == nil })

	must(t, netlink.LinkSetDown(linkOf(t, "west")))
	testkit.Eventually(t, "routes by a device that is down go", func() bool {
		return routeIn(t, 5080, "10.2.0.0/24") == nil
	})
	linkUp(t, "west")
	testkit.Eventually(t, "and come with it", func() bool { return routeIn(t, 5080, "10.2.0.0/24") != nil })
}

func TestWatchGoesOnAfterTrouble(t *testing.T) {
	t.Parallel()
	newHost(t)
	log := &testkit.Log{}
	m := openLogged(t, slog.New(slog.NewTextHandler(log, nil))) // is closed after the end of watch
	must(t, m.Set(fullState()))
	watch(t, m)
	must(t, netlink.LinkDel(linkOf(t, "vs0")))
	testkit.Eventually(t, "trouble is logged", func() bool { return strings.Contains(log.String(), "no device vs0") })
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs0"), Mode: netlink.TUNTAP_MODE_TUN}))
	testkit.Eventually(t, "a new vs0 is set up", func() bool {
		addrs, err := netlink.AddrList(linkOf(t, "vs0"), unix.AF_INET)
		must(t, err)
		return len(addrs) == 1 && routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24") != nil
	})
	testkit.Eventually(t, "the end of the trouble is logged", func() bool {
		return strings.Contains(log.String(),
			"in the desired state again")
	})
	if n := strings.Count(log.String(), "no device vs0"); n != 1 || strings.Contains(log.String(), `\n`) {
		t.Errorf("the missing device is named %d times in the log, want once and in one line:\n%s", n, log)
	}
}

package query

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// by returns p with the index of its device.
func by(t *testing.T, p Path) Path {
	t.Helper()
	if p.Link != "" {
		p.Index = linkOf(t, p.Link).Attrs().Index
	}
	return p
}

func TestPaths(t *testing.T) {
	newHost(t)
	must(t, netlink.LinkSetMTU(linkOf(t, "west"), 1400))
	addr := netip.MustParseAddr
	const main = unix.RT_TABLE_MAIN
	east, west := addr("10.1.0.1"), addr("10.2.0.1")
	byDefault := Path{Link: "east", Gateway: addr("10.1.0.254"), Source: east, MTU: 1500, Table: main}
	want := map[netip.Addr]Path{
		addr("10.1.0.77"):      {Link: "east", Source: east, MTU: 1500, Table: main},
		addr("10.2.0.77"):      {Link: "west", Source: west, MTU: 1400, Table: main},
		addr("172.16.0.1"):     {Link: "east", Source: west, MTU: 1300, Table: main},
		addr("8.8.8.8"):        byDefault,
		addr("::ffff:8.8.8.8"): byDefault,
		// The MTU of lo is 65536. The kernel keeps the table local in main until there is a rule.
		addr("10.2.0.1"): {Link: "lo", Local: true, Source: west, MTU: 65535, Table: main},
	}
	for dst, p := range want {
		want[dst] = by(t, p)
	}
	nowhere := []netip.Addr{addr("172.19.0.1"), addr("172.20.0.1"), addr("2001:db8::1"), {}}
	dsts := append(nowhere, addr("8.8.8.8"))
	for dst := range want {
		dsts = append(dsts, dst)
	}
	got, err := Paths(dsts)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for dst, p := range want {
		if got, err := onlyPath(dst); got != p || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", dst, got, err, p)
		}
	}
	for _, dst := range nowhere {
		if got, err := onlyPath(dst); err == nil {
			t.Errorf("%s: %+v, want an error", dst, got)
		}
	}
}

// TestPathsKnowIPv6sOwnMTU: net.ipv6.conf.X.mtu or a router advertisement lowers the MTU for IPv6 below the device's. A
// route's metric precedes it, as in the kernel.
func TestPathsKnowIPv6sOwnMTU(t *testing.T) {
	enterNewHost(t)
	setSysctl(t, "net/ipv6/conf/all/disable_ipv6", "0")
	setSysctl(t, "net/ipv6/conf/default/disable_ipv6", "0")
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("east"), PeerName: "west"}))
	linkUp(t, "east")
	linkUp(t, "west")
	must(t, netlink.AddrAdd(linkOf(t, "east"), &netlink.Addr{IPNet: cidr("fd00:1::1/64"), Flags: unix.IFA_F_NODAD}))
	addAddr(t, "east", "10.1.0.1/24")
	setSysctl(t, "net/ipv6/conf/east/mtu", "1400")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("fd00:2::/64"), LinkIndex: linkOf(t, "east").Attrs().Index,
		MTU: 1450}))
	for a, want := range map[string]int{"fd00:1::2": 1400, "fd00:2::2": 1450, "10.1.0.2": 1500} {
		dst := netip.MustParseAddr(a)
		if p, err := onlyPath(dst); p.MTU != want || err != nil {
			t.Errorf("%s: %+v, %v; want an MTU of %d", a, p, err, want)
		}
		if !dst.Is4() {
			if mtu := socketMTU(t, dst); mtu != want {
				t.Errorf("%s: the kernel itself says %d", a, mtu)
			}
		}
	}
}

// socketMTU returns the MTU that the kernel gives a socket for dst.
func socketMTU(t *testing.T, dst netip.Addr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Connect(fd, &unix.SockaddrInet6{Port: 9, Addr: dst.As16()}))
	mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
	must(t, err)
	return mtu
}

func TestPathWithoutASource(t *testing.T) {
	enterNewHost(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("east"), PeerName: "west"}))
	linkUp(t, "east")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("192.0.2.0/24"), LinkIndex: linkOf(t, "east").Attrs().Index,
		Scope: unix.RT_SCOPE_LINK}))
	want := by(t, Path{MTU: 1500, Link: "east", Table: unix.RT_TABLE_MAIN})
	if p, err := onlyPath(netip.MustParseAddr("192.0.2.1")); p != want || err != nil {
		t.Errorf("no address on the whole host: %+v, %v", p, err)
	}
}

func TestPathsToManyAreQuick(t *testing.T) {
	newHost(t)
	var dsts []netip.Addr
	for a := netip.MustParseAddr("10.1.128.0"); len(dsts) < 10_000; a = a.Next() {
		dsts = append(dsts, a)
	}
	took := quickest(3, func() {
		if paths, err := Paths(dsts); len(paths) != len(dsts) || err != nil {
			t.Fatalf("%d paths, %v", len(paths), err)
		}
	})
	t.Logf("%d paths in %v", len(dsts), took)
	if took > 2*time.Second {
		t.Errorf("%d paths take %v", len(dsts), took)
	}
}

// onlyPath is Paths for one address. It is an error if there is no path to it.
func onlyPath(dst netip.Addr) (Path, error) {
	paths, err := Paths([]netip.Addr{dst})
	if err != nil {
		return Path{}, err
	}
	p, ok := paths[dst]
	if !ok {
		return Path{}, fmt.Errorf("no route to %s; add one (ip route)", dst)
	}
	return p, nil
}

func TestLookup(t *testing.T) {
	newHost(t)
	addr := netip.MustParseAddr
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.Src = unix.AF_INET, 100, 77, cidr("10.2.0.1/32")
	must(t, netlink.RuleAdd(rule))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.2.0.253"), Table: 77,
		AdvMSS: 1234}))
	for _, c := range []struct {
		dst, from netip.Addr
		want      Path
		ok        bool
	}{
		{addr("8.8.8.8"), netip.Addr{}, Path{Link: "east", Gateway: addr("10.1.0.254"), Source: addr("10.1.0.1"),
			MTU: 1500, Table: unix.RT_TABLE_MAIN}, true},
		{addr("8.8.8.8"), addr("10.2.0.1"), Path{Link: "west", Gateway: addr("10.2.0.253"), MTU: 1500, Table: 77,
			AdvMSS: 1234}, true},
		{addr("10.1.0.77"), netip.Addr{}, Path{Link: "east", Source: addr("10.1.0.1"), MTU: 1500,
			Table: unix.RT_TABLE_MAIN}, true},
		{addr("10.1.0.1"), netip.Addr{}, Path{Link: "lo", Local: true, Source: addr("10.1.0.1"), MTU: 65535,
			Table: unix.RT_TABLE_LOCAL}, true},
		{addr("172.19.0.1"), netip.Addr{}, Path{}, false}, // a blackhole
		{addr("2001:db8::1"), netip.Addr{}, Path{}, false},
		{addr("8.8.8.8"), addr("192.0.2.1"), Path{}, false}, // no address of this host
	} {
		got, ok, err := Lookup(c.dst, c.from)
		if got != by(t, c.want) || ok != c.ok || err != nil {
			t.Errorf("%s from %s: %+v, %v, %v; want %+v, %v", c.dst, c.from, got, ok, err, c.want, c.ok)
		}
	}
}

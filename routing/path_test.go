package routing

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestPaths(t *testing.T) {
	newHost(t)
	must(t, netlink.LinkSetMTU(linkOf(t, "west"), 1400))
	addr := netip.MustParseAddr
	want := map[netip.Addr]Path{
		addr("10.1.0.77"):      {addr("10.1.0.1"), 1500, "east"},
		addr("10.2.0.77"):      {addr("10.2.0.1"), 1400, "west"},
		addr("172.16.0.1"):     {addr("10.2.0.1"), 1300, "east"},
		addr("8.8.8.8"):        {addr("10.1.0.1"), 1500, "east"},
		addr("::ffff:8.8.8.8"): {addr("10.1.0.1"), 1500, "east"},
		addr("10.2.0.1"):       {addr("10.2.0.1"), 65535, "lo"}, // whose MTU is 65536
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
		if got, err := wayTo(dst); got != p || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", dst, got, err, p)
		}
	}
	for _, dst := range nowhere {
		if got, err := wayTo(dst); err == nil {
			t.Errorf("%s: %+v, want an error", dst, got)
		}
	}
}

// TestPathsKnowIPv6sOwnMTU: what the kernel sends over IPv6 is less than the device's MTU after net.ipv6.conf.X.mtu or
// a router's advertisement. A route's metric comes first, as it does in the kernel.
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
		if p, err := wayTo(dst); p.MTU != want || err != nil {
			t.Errorf("%s: %+v, %v; want an MTU of %d", a, p, err, want)
		}
		if !dst.Is4() {
			if mtu := socketMTU(t, dst); mtu != want {
				t.Errorf("%s: the kernel itself says %d", a, mtu)
			}
		}
	}
}

// socketMTU is what the kernel tells a socket of the way to dst.
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
	if p, err := wayTo(netip.MustParseAddr("192.0.2.1")); p != (Path{MTU: 1500, Link: "east"}) || err != nil {
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

// wayTo is Paths for one address. It is an error if there is no way to it.
func wayTo(dst netip.Addr) (Path, error) {
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

// Package kerneltest gives a test a network namespace of its own.
package kerneltest

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/testdata/testkit"
)

// NewHost moves the test into a new namespace, and out of it when the test ends:
//
//	 10.1.0.1/24      10.2.0.1/24
//	┌──────────┐     ┌──────────┐     ┌─────┐
//	│   east   │═════│   west   │     │ vs0 │  TUN, down
//	└──────────┘veth └──────────┘     └─────┘
//
// main: default via 10.1.0.254, and one route of every kind that is copied.
func NewHost(t *testing.T) {
	t.Helper()
	EnterNewHost(t)
	LinkUp(t, "lo")
	Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: Named("east"), PeerName: "west"}))
	for name, addr := range map[string]string{"east": "10.1.0.1/24", "west": "10.2.0.1/24"} {
		LinkUp(t, name)
		AddAddr(t, name, addr)
	}
	Must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: Named("vs0"), Mode: netlink.TUNTAP_MODE_TUN}))
	// Both ends have carrier by the time the second is up, but the kernel reports it later.
	testkit.Eventually(t, "carrier", func() bool {
		return slices.IndexFunc([]string{"east", "west"}, func(n string) bool {
			return LinkOf(t, n).Attrs().OperState != netlink.OperUp
		}) < 0
	})
	east, west := LinkOf(t, "east").Attrs().Index, LinkOf(t, "west").Attrs().Index
	for _, r := range []netlink.Route{
		{Dst: CIDR("0.0.0.0/0"), Gw: net.ParseIP("10.1.0.254")},
		{Dst: CIDR("0.0.0.0/0"), Gw: net.ParseIP("10.2.0.254"), Priority: 50, AdvMSS: 1000},
		{Dst: CIDR("172.16.0.0/16"), LinkIndex: east, Scope: unix.RT_SCOPE_LINK, Src: net.ParseIP("10.2.0.1"),
			MTU: 1300, Priority: 7},
		{Dst: CIDR("172.17.0.0/16"), LinkIndex: west, Gw: net.ParseIP("192.0.2.99"), Flags: int(netlink.FLAG_ONLINK)},
		{Dst: CIDR("172.18.0.0/16"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: east, Gw: net.ParseIP("10.1.0.253"), Hops: 2}, {LinkIndex: west, Gw: net.ParseIP("10.2.0.253")},
		}},
		{Dst: CIDR("172.19.0.0/16"), Type: unix.RTN_BLACKHOLE},
		{Dst: CIDR("172.20.0.0/16"), Type: unix.RTN_UNREACHABLE},
		{Dst: CIDR("172.21.0.0/16"), Type: unix.RTN_PROHIBIT, Tos: 0x10},
	} {
		Must(t, netlink.RouteAdd(&r))
	}
}

// EnterNewHost moves the test into a new namespace without addresses, routes and IPv6.
func EnterNewHost(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	testkit.NewNamespace(t)
	for _, key := range []string{"net/ipv6/conf/default/disable_ipv6", "net/ipv6/conf/all/disable_ipv6"} {
		if err := kernel.WriteSysctl(key, "1"); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// Must ends the test if err is not nil.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Named returns the attributes of a new device.
func Named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// CIDR parses a prefix.
func CIDR(s string) *net.IPNet { return kernel.IPNet(netip.MustParsePrefix(s)) }

// LinkOf returns the device of a name.
func LinkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	Must(t, err)
	return l
}

// LinkUp sets a device up.
func LinkUp(t *testing.T, name string) {
	t.Helper()
	Must(t, netlink.LinkSetUp(LinkOf(t, name)))
}

// AddAddr adds an address to a device.
func AddAddr(t *testing.T, link, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	Must(t, err)
	Must(t, netlink.AddrAdd(LinkOf(t, link), a))
}

// Sysctl returns a value.
func Sysctl(t *testing.T, key string) string {
	t.Helper()
	v, err := kernel.ReadSysctl(key)
	Must(t, err)
	return v
}

// SetSysctl writes a value.
func SetSysctl(t *testing.T, key, value string) {
	t.Helper()
	Must(t, kernel.WriteSysctl(key, value))
}

// Quickest returns the least processor time of f in several tries, as testkit.CPUTime measures it.
func Quickest(tries int, f func()) time.Duration {
	least := time.Hour
	for range tries {
		least = min(least, testkit.CPUTime(f))
	}
	return least
}

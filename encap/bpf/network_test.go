package bpf

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
	"vstun/tundev"
)

// network is a client, a director and a realserver, each in a namespace, with veth links between neighbours:
//
//	client c0 ── d0 director d1 ── r0 realserver
type network struct {
	client, director, realserver netns.NsHandle
	d0, d1, r0, tun              int // interface indexes
	mac1, macR                   [6]byte
}

// enter moves the test's goroutine into a namespace. testkit.NewNamespace has locked it to its thread.
func enter(t testing.TB, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sysctl sets a value below /proc/sys/net of the namespace.
func sysctl(t testing.TB, name, value string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0))
}

// up gives a device its addresses ("10.0.2.2/24") and switches it on. It returns its index and MAC address.
func up(t testing.TB, name string, addresses ...string) (int, [6]byte) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, netlink.AddrAdd(l, addr))
	}
	must(t, netlink.LinkSetUp(l))
	var mac [6]byte
	copy(mac[:], l.Attrs().HardwareAddr)
	return l.Attrs().Index, mac
}

// route adds a route ("198.51.100.0/24") by a gateway. The MSS that this host advertises there is mss, if it is not 0.
func route(t testing.TB, to, gateway string, mss int) {
	t.Helper()
	dst, err := netlink.ParseIPNet(to)
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway), AdvMSS: mss}))
}

// connect makes a veth link from the namespace in force to another.
func connect(t testing.TB, name, peer string, to netns.NsHandle) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, PeerName: peer,
		PeerNamespace: netlink.NsFd(int(to))}))
}

// prepare sets a new namespace's defaults.
func prepare(t testing.TB) {
	t.Helper()
	for _, of := range []string{"all", "default"} {
		sysctl(t, "ipv4/conf/"+of+"/rp_filter", "0")
		sysctl(t, "ipv6/conf/"+of+"/accept_dad", "0")
	}
	up(t, "lo")
}

// newNetwork makes a network. The VIPs are addresses of the realserver. The director forwards their packets to it by
// plain routes, but for those that its program takes. The goroutine is in the director's namespace afterwards.
func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{client: testkit.NewNamespace(t)}
	prepare(t)
	n.realserver = testkit.NewNamespace(t)
	prepare(t)
	n.director = testkit.NewNamespace(t)
	prepare(t)
	connect(t, "d0", "c0", n.client)
	connect(t, "d1", "r0", n.realserver)
	n.d0, _ = up(t, "d0", "192.0.2.1/24", "2001:db8::1/64")
	n.d1, n.mac1 = up(t, "d1", "10.0.11.1/24", "fd00:11::1/64", directors[0].String()+"/32",
		directors[1].String()+"/128")
	sysctl(t, "ipv4/ip_forward", "1")
	sysctl(t, "ipv6/conf/all/forwarding", "1")
	route(t, "198.51.100.80/32", realservers[0].String(), 0)
	route(t, "2001:db8:1::80/128", realservers[1].String(), 0)

	enter(t, n.client)
	up(t, "c0", clients[0].String()+"/24", clients[1].String()+"/64")
	route(t, "198.51.100.80/32", "192.0.2.1", 0)
	route(t, "2001:db8:1::80/128", "2001:db8::1", 0)

	enter(t, n.realserver)
	n.r0, n.macR = up(t, "r0", realservers[0].String()+"/24", realservers[1].String()+"/64")
	up(t, "lo", virtuals[0].String()+"/32", virtuals[1].String()+"/128")
	route(t, "192.0.2.0/24", "10.0.11.1", 1360)
	route(t, "2001:db8::/64", "fd00:11::1", 1360)
	device, err := tundev.Open("tun0", tundev.Options{Queues: 1})
	must(t, err)
	t.Cleanup(func() { device.Close() })
	n.tun, _ = up(t, "tun0")
	enter(t, n.director)
	return n
}

// newRouter makes a namespace that forwards what comes in by its loopback device: to the clients by the device client,
// which has this MTU, and to the realservers by the device real. The goroutine is there afterwards.
func newRouter(t testing.TB, mtu int) netns.NsHandle {
	t.Helper()
	ns := testkit.NewNamespace(t)
	prepare(t)
	sysctl(t, "ipv4/conf/lo/forwarding", "1")
	sysctl(t, "ipv6/conf/all/forwarding", "1")
	link := func(name string, mtu int, addresses ...string) {
		t.Helper()
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu},
			PeerName: name + "-peer"}))
		up(t, name+"-peer")
		up(t, name, addresses...)
	}
	link("client", mtu, "192.0.2.1/24", "2001:db8::1/64")
	link("real", 1500, "10.0.11.1/24", "fd00:11::1/64")
	return ns
}

// path is a path from the director to the realserver.
func (n *network) path(t testing.TB, c *netip.Addr, p Path) Path {
	p.Device, p.MTU, p.MAC, p.OwnMAC = n.d1, 1500, n.macR, n.mac1
	if c != nil {
		p.NextHop = *c
	}
	return p
}

// lock locks a subtest's goroutine to a thread, which leave returns to its namespace.
func lock(t testing.TB) (leave func()) {
	t.Helper()
	runtime.LockOSThread()
	back, err := netns.Get()
	must(t, err)
	return func() {
		enter(t, back)
		back.Close()
		runtime.UnlockOSThread()
	}
}

package query

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"vstun/routing/kernel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

func TestDevices(t *testing.T) {
	newHost(t)
	all, err := Devices()
	must(t, err)
	at := func(name string) Device {
		return all[slices.IndexFunc(all, func(d Device) bool { return d.Name == name })]
	}
	if d := at("east"); !d.Up || d.Loopback || !slices.Contains(d.Addrs, netip.MustParsePrefix("10.1.0.1/24")) ||
		d.Index != linkOf(t, "east").Attrs().Index {
		t.Errorf("%+v", d)
	}
	if d := at("vs0"); d.Up || len(d.Addrs) > 0 {
		t.Errorf("%+v", d)
	}
	if d := at("lo"); !d.Loopback {
		t.Errorf("%+v", d)
	}
}

// A device has proxy ARP for all addresses that are routed by another device, or for one address.
func TestAnswersFor(t *testing.T) {
	newHost(t)
	a, other := netip.MustParseAddr("10.1.0.80"), netip.MustParseAddr("10.1.0.81")
	answers := func(link string, a netip.Addr, want bool) {
		t.Helper()
		if got, err := AnswersFor(link, a); got != want || err != nil {
			t.Errorf("%s for %s: %v, %v", link, a, got, err)
		}
	}
	answers("east", a, false)
	must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: linkOf(t, "east").Attrs().Index, Family: unix.AF_INET,
		Flags: netlink.NTF_PROXY, IP: a.AsSlice()}))
	answers("east", a, true)
	answers("east", other, false)
	answers("west", a, false)
	must(t, kernel.WriteSysctl("net/ipv4/conf/west/proxy_arp", "1"))
	answers("west", a, true)
	answers("nosuch", a, false)
}

func TestLinkExists(t *testing.T) {
	newHost(t)
	for name, want := range map[string]bool{"east": true, "vs0": true, "nosuch": false} {
		if got, err := LinkExists(name); got != want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

// No program reads tun1, which holds few packets: the others are dropped.
// TestCheckTUN: a device that a process uses is not to be removed.
func TestCheckTUN(t *testing.T) {
	newHost(t)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("used")
	must(t, err)
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	for name, want := range map[string]string{
		"nosuch": "",
		"east":   "there is a device of this name: set another tun, or remove it (ip link del east)",
		"used":   fmt.Sprintf("process %d (", os.Getpid()),
	} {
		err := CheckTUN(name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestDropped(t *testing.T) {
	newHost(t)
	tun := &netlink.Tuntap{LinkAttrs: named("tun1"), Mode: netlink.TUNTAP_MODE_TUN, Queues: 1, NonPersist: true}
	tun.TxQLen = 10
	must(t, netlink.LinkAdd(tun))
	t.Cleanup(func() {
		for _, f := range tun.Fds {
			f.Close()
		}
	})
	linkUp(t, "tun1")
	addAddr(t, "tun1", "10.3.0.1/24")
	if n, err := Dropped("tun1"); n != 0 || err != nil {
		t.Errorf("nothing sent: %d dropped, %v", n, err)
	}
	c, err := net.Dial("udp", "10.3.0.2:9")
	must(t, err)
	defer c.Close()
	testkit.Eventually(t, "packets are dropped and counted", func() bool {
		for range 100 {
			_, _ = c.Write([]byte("x")) // ENOBUFS is the kernel's answer to a drop
		}
		n, err := Dropped("tun1")
		must(t, err)
		return n >= 50
	})
	n, err := Dropped("tun1")
	must(t, err)
	if asked, err := askDropped("tun1"); asked != n || err != nil {
		t.Errorf("%d packets, by netlink %d, %v", n, asked, err)
	}
	if _, err := Dropped("nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("counters of no device: %v", err)
	}
}

func TestFindBridge(t *testing.T) {
	newHost(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br7", MTU: 9000, HardwareAddr: mac}}))
	if b, err := FindBridge("br7"); err != nil || b != (Bridge{MAC: [6]byte(mac), MTU: 9000}) {
		t.Errorf("%+v, %v", b, err)
	}
	for name, want := range map[string]string{"east": "is no bridge (veth)", "br8": "there is no such device"} {
		if _, err := FindBridge(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVRF: the ports of a VRF are no uplinks, and neither is its device.
func TestVRF(t *testing.T) {
	newHost(t)
	red := &netlink.Vrf{LinkAttrs: named("red"), Table: 100}
	if err := netlink.LinkAdd(red); err != nil {
		t.Skipf("SKIPPED: the kernel makes no VRF: %v", err)
	}
	linkUp(t, "red")
	must(t, netlink.LinkSetMaster(linkOf(t, "east"), red))
	all, err := Devices()
	must(t, err)
	for _, d := range all {
		switch d.Name {
		case "red":
			if d.Kind != VRF || d.Uplink() {
				t.Errorf("%+v", d)
			}
		case "east":
			if d.Master != red.Index || d.Uplink() {
				t.Errorf("%+v", d)
			}
		}
	}
}

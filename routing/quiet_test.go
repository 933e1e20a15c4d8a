package routing

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// TestQuietWithoutDriver: no device is made on a host whose kernel has no tunnels of its own.
func TestQuietWithoutDriver(t *testing.T) {
	t.Parallel()
	newHost(t)
	if tunnels, err := query.KernelTunnels(); err != nil || len(tunnels) > 0 {
		t.Skipf("SKIPPED: this kernel has %v, %v", tunnels, err)
	}
	before := machineState(t)
	m := open(t)
	must(t, m.Set(State{QuietIPIP: true}))
	sameState(t, before, machineState(t))
}

// loadIPIP makes a tunnel of the kernel's IPIP driver, or skips the test.
func loadIPIP(t *testing.T) {
	t.Helper()
	tunnel := &netlink.Iptun{LinkAttrs: named("kernel0"), Local: net.ParseIP("10.1.0.1"),
		Remote: net.ParseIP("10.1.0.77"), PMtuDisc: 1}
	if err := netlink.LinkAdd(tunnel); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("SKIPPED: needs a kernel with IPIP tunnels: modprobe ipip")
	} else if err != nil {
		t.Fatal(err)
	}
}

// TestInteropQuietAfterAKill: the next start removes the device of a program that was killed.
func TestInteropQuietAfterAKill(t *testing.T) {
	t.Parallel()
	newHost(t)
	loadIPIP(t)
	before := machineState(t)
	path := t.TempDir() + "/journal.json"
	kill(startChild(t, path))
	linkOf(t, QuietLink)
	m, err := Open(path, nil)
	must(t, err)
	sameState(t, before, machineState(t))
	must(t, m.Close())
}

// TestInteropQuietIsWatched: the device is made when the driver is loaded, and again when it is deleted.
func TestInteropQuietIsWatched(t *testing.T) {
	t.Parallel()
	newHost(t)
	m := open(t)
	must(t, m.Set(State{QuietIPIP: true}))
	watch(t, m)
	loadIPIP(t)
	there := func() bool { _, err := netlink.LinkByName(QuietLink); return err == nil }
	testkit.Eventually(t, "the driver is kept quiet", there)
	must(t, netlink.LinkDel(linkOf(t, QuietLink)))
	testkit.Eventually(t, "the device is back", there)
	must(t, m.Set(State{}))
	if there() {
		t.Error("the device is left although the state has no use for it")
	}
}

// TestInteropQuiet: the kernel's driver answers a packet that fits no tunnel, except while QuietIPIP is set.
func TestInteropQuiet(t *testing.T) {
	t.Parallel()
	newHost(t)
	loadIPIP(t)
	raw, err := net.ListenPacket("ip4:4", "127.0.0.1") // as the agent does
	must(t, err)
	defer raw.Close()
	icmp, err := net.ListenPacket("ip4:1", "127.0.0.1")
	must(t, err)
	defer icmp.Close()
	// answered reports whether the kernel answers a tunnel packet before it answers the ping behind it.
	answered := func() (unreachable bool) {
		t.Helper()
		to := &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}
		_, err := raw.WriteTo(make([]byte, 40), to)
		must(t, err)
		_, err = icmp.WriteTo([]byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, to)
		must(t, err)
		for b := make([]byte, 128); ; {
			_, _, err := icmp.ReadFrom(b)
			must(t, err)
			switch b[0] {
			case 3:
				unreachable = true
			case 0:
				return unreachable
			}
		}
	}
	if !answered() {
		t.Error("the driver does not answer by itself")
	}
	m := open(t)
	for range 2 {
		must(t, m.Set(State{QuietIPIP: true}))
		if answered() {
			t.Error("the driver answers, though kept quiet")
		}
	}
	quiet := linkOf(t, QuietLink)
	if addrs, err := netlink.AddrList(quiet, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("%s has addresses %v, %v", QuietLink, addrs, err)
	}
	if quiet.Attrs().Statistics.RxPackets != 0 {
		t.Errorf("packets came out of %s", QuietLink)
	}
	tunnels, err := query.KernelTunnels()
	if err != nil || len(tunnels) == 0 {
		t.Errorf("KernelTunnels: %v, %v", tunnels, err)
	}
	for _, tun := range tunnels {
		if tun.Name == QuietLink {
			t.Errorf("%s counts as one of the kernel's tunnels", QuietLink)
		}
	}
	must(t, netlink.LinkSetDown(quiet))
	if n, err := m.passAgain(); n != 1 || err != nil || answered() {
		t.Errorf("set down and up again: %d changes, %v", n, err)
	}
	must(t, m.Close())
	if !answered() {
		t.Error("the driver does not answer afterwards")
	}
}

package routing

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/query"
)

// TestQuietWithoutDriver makes nothing where the kernel has no tunnels of its own.
func TestQuietWithoutDriver(t *testing.T) {
	newHost(t)
	if tunnels, err := query.KernelTunnels(); err != nil || len(tunnels) > 0 {
		t.Skipf("SKIPPED: this kernel has %v, %v", tunnels, err)
	}
	if made, err := Quiet(); made || err != nil {
		t.Errorf("made %t, %v", made, err)
	}
	must(t, Unquiet())
	if _, err := netlink.LinkByName(quietLink); err == nil {
		t.Error("there is a device")
	}
}

// TestInteropQuiet has the kernel's driver answer a packet that fits no tunnel, and not when it is kept quiet.
func TestInteropQuiet(t *testing.T) {
	newHost(t)
	tunnel := &netlink.Iptun{LinkAttrs: named("kernel0"), Local: net.ParseIP("10.1.0.1"),
		Remote: net.ParseIP("10.1.0.77"), PMtuDisc: 1}
	if err := netlink.LinkAdd(tunnel); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("SKIPPED: needs a kernel with IPIP tunnels: modprobe ipip")
	} else if err != nil {
		t.Fatal(err)
	}
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
	for range 2 {
		if made, err := Quiet(); !made || err != nil {
			t.Fatalf("made %t, %v", made, err)
		}
		if answered() {
			t.Error("the driver answers, though kept quiet")
		}
	}
	quiet := linkOf(t, quietLink)
	if addrs, err := netlink.AddrList(quiet, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("%s has addresses %v, %v", quietLink, addrs, err)
	}
	if quiet.Attrs().Statistics.RxPackets != 0 {
		t.Errorf("packets came out of %s", quietLink)
	}
	if tunnels, err := query.KernelTunnels(); err != nil || len(tunnels) == 0 {
		t.Errorf("KernelTunnels: %v, %v", tunnels, err)
	} else {
		for _, tun := range tunnels {
			if tun.Name == quietLink {
				t.Errorf("%s counts as one of the kernel's tunnels", quietLink)
			}
		}
	}
	must(t, netlink.LinkSetDown(quiet)) // somebody meddles
	if made, err := Quiet(); !made || err != nil || answered() {
		t.Errorf("set down and up again: %t, %v", made, err)
	}
	must(t, Unquiet())
	must(t, Unquiet())
	if !answered() {
		t.Error("the driver does not answer afterwards")
	}
}

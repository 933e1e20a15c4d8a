package tundev

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// TestCWRStaysWhole: a GSO packet with CWR, which only its first segment may have, gets through the kernel whole. Its
// struct virtio_net_hdr has the ECN bit in both directions.
func TestCWRStaysWhole(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("SKIPPED: needs /dev/net/tun")
	}
	testkit.InNamespace(t, func() {
		d, err := Open("vt0", Options{Queues: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		up(t, "vt0")
		link, err := netlink.LinkByName("vt0")
		if err != nil {
			t.Fatal(err)
		}
		anywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if err := errors.Join(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: anywhere,
			Scope: netlink.SCOPE_LINK}), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)); err != nil {
			t.Fatal(err)
		}
		q := d.Queues()[0]
		sent := gsoPacket(t, false, packet.ProtoTCP, 5000, 1428)
		if n, _, err := q.WriteBatch([]*packet.Buf{sent}); n != 1 {
			t.Fatalf("%d packets taken, %v", n, err)
		}
		in := make([]byte, packet.VirtioLen+packet.MaxLen)
		testkit.Within(t, "the packet comes back", 10*time.Second, func() bool {
			fd, err := q.fd.Acquire()
			if err != nil {
				t.Fatal(err)
			}
			defer q.fd.Release()
			n, err := unix.Read(int(fd), in)
			if err != nil || packet.IPv4(in[packet.VirtioLen:]).Dst() != vip {
				return false
			}
			h := in[:packet.VirtioLen]
			if n != len(h)+sent.Len() || h[1] != packet.VirtioTCPv4|packet.VirtioECN {
				t.Errorf("%d bytes of %d come back behind %x", n-len(h), sent.Len(), h)
			}
			return true
		})
	})
}

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestICMPv6: a client over IPv6 learns of a port without service, of a realserver whose agent is gone, by a tunnel
// over either family, and of the size that fits. Its fragments are reassembled.
func TestICMPv6(t *testing.T) {
	t.Parallel()
	s := newWays(t)
	client := netip.MustParseAddr("fd5a:1::2")
	addAddress6(t, s.Router, s.Client.Name, client.Prev())
	addAddress6(t, s.Client, "eth0", client)
	addRoute6(t, s.Client, netip.PrefixFrom(netip.IPv6Unspecified(), 0), client.Prev())
	addRoute6(t, s.Webs[0], netip.PrefixFrom(netip.IPv6Unspecified(), 0), ways6.web.Prev())
	s.startDirectorWith(`
[[service]]
name = "six"
vip = "2001:db8:5a::80"
protocol = "udp"
port = 53
encap = "gue"
encap_checksum = true
realserver = [ { address = "fd5a:11::2" } ]

[[service]]
name = "four"
vip = "2001:db8:5a::80"
protocol = "udp"
port = 54
encap = "fou"
realserver = [ { address = "10.0.11.2" } ]
`)
	dial := func(port uint16) *net.UDPConn {
		var conn net.Conn
		if err := s.Client.Do(func() (err error) {
			conn, err = net.Dial("udp6", netip.AddrPortFrom(ways6.vip, port).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*net.UDPConn)
	}
	for _, port := range []uint16{99, 53, 54} {
		for _, size := range []int{10, 3000} {
			conn := dial(port)
			if _, err := conn.Write(payload(size)); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(soon))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("port %d, %d bytes: %v, want %v", port, size, err, unix.ECONNREFUSED)
			}
		}
	}
	conn := dial(53)
	onSocket(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1) })
	if _, err := conn.Write(payload(1452)); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the client has learned an MTU of 1448", soon, func() bool { // 1500 - 40 - 8 - 4
		mtu := 0
		onSocket(t, conn, func(fd int) (err error) {
			mtu, err = unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU)
			return err
		})
		return mtu == 1448
	})
	st := s.director.balance()
	if st.Drops["no_service"] != 2 || st.Drops["too_big"] != 1 || sum(st.Drops) != 3 || st.Waiting != 0 {
		t.Errorf("the director dropped %v, %d fragments wait", st.Drops, st.Waiting)
	}
}

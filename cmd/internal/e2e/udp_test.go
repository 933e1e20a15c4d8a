package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// exchange sends a datagram and compares the answer with it.
func exchange(conn net.Conn, b []byte) error {
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		return err
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	got := make([]byte, 65536)
	n, err := conn.Read(got)
	if err == nil && !bytes.Equal(got[:n], b) {
		err = fmt.Errorf("%d bytes came back, of %d that were sent, and not the same", n, len(b))
	}
	return err
}

// payload returns n bytes of the stream.
func payload(n int) []byte {
	b := make([]byte, n)
	_, _ = io.ReadFull(stream(), b) // never fails
	return b
}

// discover sets DF on a socket's packets or, for IPv6, keeps the host from fragmenting them: unix.IP_PMTUDISC_DO or
// unix.IP_PMTUDISC_DONT.
func discover(t *testing.T, conn net.Conn, mode int) {
	t.Helper()
	level, name := unix.SOL_IP, unix.IP_MTU_DISCOVER
	if conn.RemoteAddr().(*net.UDPAddr).AddrPort().Addr().Is6() {
		level, name = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER // of the same modes
	}
	onSocket(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, level, name, mode) })
}

// TestUDP sends datagrams of all sizes of one packet and compares the answers.
func TestUDP(t *testing.T) { testkit.Families(t, testUDP) }

func testUDP(t *testing.T, ipv6 bool) {
	s := newRunningSiteOf(t, ipv6, 2, service{"udp", "53", "rr", []int{1, 1}})
	for _, web := range s.Webs {
		s.echoUDP(web, 53)
	}
	passed := s.count(s.Director, "eth0", lab.Filter{Source: s.VIP})
	// 1452 + 8 + 20 + 20 is 1500: larger datagrams go to the realserver as two fragments, and arrive as one packet.
	sizes, fragments := []int{0, 1, 512, 1452, 1453, 1472}, uint64(2)
	if ipv6 { // 1412 + 8 + 40 + 40 is 1500, and routers don't fragment
		sizes, fragments = []int{0, 1, 512, 1300, 1411, 1412}, 0
	}
	for _, size := range sizes {
		conn := s.dial("udp", 53)
		discover(t, conn, unix.IP_PMTUDISC_DONT)
		if err := exchange(conn, payload(size)); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
	n := uint64(len(sizes))
	testkit.Within(t, "the director has counted the datagrams", soon,
		func() bool { return s.director.balance().In.Packets >= n })
	st := s.director.balance()
	if st.In.Packets != n || st.Out.Packets != n+fragments || len(st.Drops) != 0 {
		t.Errorf("%d packets in, %d out, dropped %v; want %d, %d (%d in two fragments) and nothing", st.In.Packets,
			st.Out.Packets, st.Drops, n, n+fragments, fragments)
	}
	for i, a := range s.agents {
		testkit.Within(t, "the agent has counted its datagrams", soon, func() bool {
			return a.intake().Out.Packets >= n/2
		})
		if in := a.intake(); in.In.Packets != n/2 || in.Out.Packets != n/2 {
			t.Errorf("web%d received %d packets and let %d in, want %d", i+1, in.In.Packets, in.Out.Packets, n/2)
		}
	}
	if n := passed(); n != 0 {
		t.Errorf("%d packets from the VIP passed the director", n)
	}
}

// TestUDPPathMTU sends a datagram that fits the client's link but not the tunnel and may not be fragmented.
func TestUDPPathMTU(t *testing.T) { testkit.Families(t, testUDPPathMTU) }

func testUDPPathMTU(t *testing.T, ipv6 bool) {
	s := newRunningSiteOf(t, ipv6, 1, service{"udp", "53", "rr", []int{1}})
	s.echoUDP(s.Webs[0], 53)
	conn := s.dial("udp", 53)
	discover(t, conn, unix.IP_PMTUDISC_DO)
	large, fits := payload(1472), payload(1452)
	level, name, fit := unix.SOL_IP, unix.IP_MTU, 1480
	if ipv6 {
		large, fits = payload(1452), payload(1412)
		level, name, fit = unix.SOL_IPV6, unix.IPV6_MTU, 1460
	}
	if _, err := conn.Write(large); err != nil {
		t.Fatalf("the client knows too early that %d bytes are too many: %v", len(large), err)
	}
	option := func(level, name int) (v int) {
		onSocket(t, conn, func(fd int) (err error) {
			v, err = unix.GetsockoptInt(fd, level, name)
			return err
		})
		return v
	}
	testkit.Within(t, "the client has the ICMP error", soon, func() bool {
		return option(unix.SOL_SOCKET,
			unix.SO_ERROR) == int(unix.EMSGSIZE)
	})
	if mtu := option(level, name); mtu != fit {
		t.Errorf("the client has learned an MTU of %d, want %d", mtu, fit)
	}
	if _, err := conn.Write(large); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("%d bytes once more: %v, want %v", len(large), err, unix.EMSGSIZE)
	}
	if err := exchange(conn, fits); err != nil {
		t.Errorf("%d bytes: %v", len(fits), err)
	}
	testkit.Within(t, "the director has counted the datagrams", soon,
		func() bool { return s.director.balance().In.Packets >= 2 })
	st := s.director.balance()
	// Out: the ICMP error, and the datagram that fits.
	if st.In.Packets != 2 || st.Out.Packets != 2 || st.Drops["too_big"] != 1 || sum(st.Drops) != 1 {
		t.Errorf("%d packets in, %d out, dropped %v; want 2, 2 and too_big 1", st.In.Packets, st.Out.Packets, st.Drops)
	}
}

// TestFragmentsIPv6 sends datagrams that the client's kernel fragments, as only a sender may in IPv6: at the MTU of its
// link at first, then at the tunnel's. They reach the server whole, and so do its answers.
func TestFragmentsIPv6(t *testing.T) {
	t.Parallel()
	s := newRunningSiteOf(t, true, 2, service{"udp", "53", "rr", []int{1, 1}})
	for _, web := range s.Webs {
		s.echoUDP(web, 53)
	}
	for _, size := range []int{1453, 3000, 20_000, 65_000} {
		for range 3 {
			if err := exchange(s.dial("udp", 53), payload(size)); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
		}
	}
	if st := s.director.balance(); len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
	for _, agent := range s.agents {
		if in := agent.intake(); len(in.Drops) != 0 {
			t.Errorf("%s refused %v", agent, in.Drops)
		}
	}
}

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestTunnelErrorReachesClient: the kernel of a realserver without agent answers the tunnel's packets with an ICMP
// error. The client gets one at once.
func TestTunnelErrorReachesClient(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startDirectorWith(`
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
encap = "gue"
realserver = [ { address = "10.0.11.2" } ]
`)
	conn := s.dial("udp4", 53)
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(payload(100)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the client gets %v, want %v", err, unix.ECONNREFUSED)
	}
}

// TestTunnelSizeReachesClient: a router between director and realserver has a smaller MTU than both know. When it
// refuses the first packet, the client learns the size, and the next packet fits.
func TestTunnelSizeReachesClient(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, map[string]lab.Link{"web1": {MTU: 1400}})
	s.startAgents("")
	s.startDirector("", service{"udp", "53", "rr", []int{1}})
	s.echoUDP(s.Webs[0], 53)
	conn := s.dial("udp4", 53)
	discover(t, conn, unix.IP_PMTUDISC_DO)
	if _, err := conn.Write(payload(1400)); err != nil {
		t.Fatal(err)
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
	if mtu := option(unix.SOL_IP, unix.IP_MTU); mtu != 1380 {
		t.Errorf("the client has learned an MTU of %d, want 1380", mtu)
	}
	if err := exchange(conn, payload(1352)); err != nil {
		t.Errorf("1352 bytes: %v", err)
	}
	if st := s.director.balance(); st.Drops["too_big"] != 0 {
		t.Errorf("the director dropped %v: the test doesn't reach the router", st.Drops)
	}
}

// TestPathErrorReachesServer: the client's link has a smaller MTU than the server's. A router's error about the
// server's answer, which goes to the VIP, reaches the server through the tunnel. The next answer fits, in fragments or
// TCP segments.
func TestPathErrorReachesServer(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, map[string]lab.Link{"client": {MTU: 1300}})
	s.startAgents("")
	s.startDirector("", service{"udp", "53", "rr", []int{1}})
	var web net.PacketConn
	if err := s.Webs[0].Do(func() (err error) {
		web, err = net.ListenPacket("udp4", fmt.Sprintf("%s:53", s.VIP))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	raw, err := web.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}), err); err != nil {
		t.Fatal(err)
	}
	conn := s.dial("udp4", 53)
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = web.SetReadDeadline(time.Now().Add(soon))
	_, client, err := web.ReadFrom(make([]byte, 10))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := web.WriteTo(payload(1400), client); err != nil {
		t.Fatalf("the server knows too early that 1400 bytes are too many: %v", err)
	}
	testkit.Within(t, "the server has learned that 1400 bytes are too many", soon, func() bool {
		_, err := web.WriteTo(payload(1400), client)
		return errors.Is(err, unix.EMSGSIZE)
	})
	st := s.director.balance()
	if len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
	if in := s.agents[0].intake(); len(in.Drops) != 0 {
		t.Errorf("the agent dropped %v", in.Drops)
	}
}

// TestUnserved: packets to a port of the VIP without service, or without a realserver, are rejected at once. After a
// reload with no_service = "drop" they are dropped.
func TestUnserved(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	const dns = `
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
realserver = [ { address = "10.0.11.2", weight = 0 } ]
`
	s.startDirectorWith(dns)
	refused := func(network string, port int) error {
		d := net.Dialer{Timeout: soon}
		var err error
		if failed := s.Client.Do(func() error {
			var conn net.Conn
			if conn, err = d.Dial(network, netip.AddrPortFrom(s.VIP, uint16(port)).String()); err != nil {
				return nil
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(soon))
			if _, err = conn.Write([]byte("anybody?")); err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			return nil
		}); failed != nil {
			t.Fatal(failed)
		}
		return err
	}
	for _, c := range []struct {
		network string
		port    int
	}{{"tcp4", 80}, {"udp4", 99}, {"udp4", 53}} {
		if err := refused(c.network, c.port); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s port %d: %v, want %v", c.network, c.port, err, unix.ECONNREFUSED)
		}
	}
	before := s.director.balance()
	if changes := s.reloadWith(`director.no_service = "drop"` + dns); !slices.Equal(changes,
		[]string{"no_service reject -> drop"}) {
		t.Errorf("changes are %q", changes)
	}
	conn := s.dial("udp4", 99)
	if _, err := conn.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the director has counted the datagram", soon, func() bool {
		return s.director.balance().Drops["no_service"] == before.Drops["no_service"]+1
	})
	if now := s.director.balance(); now.Out != before.Out {
		t.Errorf("it was answered: %+v", now.Out)
	}
}

// TestFragments: datagrams that a client's kernel has fragmented reach the server whole, and so do its answers.
func TestFragments(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 2, service{"udp", "53", "rr", []int{1, 1}})
	for _, web := range s.Webs {
		s.echoUDP(web, 53)
	}
	for _, size := range []int{1473, 3000, 20_000, 65_000} {
		conn := s.dial("udp4", 53)
		discover(t, conn, unix.IP_PMTUDISC_DONT)
		for range 3 {
			if err := exchange(conn, payload(size)); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
		}
	}
	if st := s.director.balance(); len(st.Drops) != 0 || st.Waiting != 0 {
		t.Errorf("the director dropped %v, %d fragments wait", st.Drops, st.Waiting)
	}
	for _, a := range s.agents {
		if in := a.intake(); len(in.Drops) != 0 {
			t.Errorf("%s dropped %v", a, in.Drops)
		}
	}
}

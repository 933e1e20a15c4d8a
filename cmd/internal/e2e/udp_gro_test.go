package e2e

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// TestUDPGRO: a server with UDP_GRO, such as one of HTTP/3, gets each datagram as it was sent, although the
// realserver's network card merges them (GRO). On raw sockets the agent could not see where a merged datagram ends.
func TestUDPGRO(t *testing.T) {
	for _, encap := range []string{"ipip", "gre", "gue"} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 1, map[string]lab.Link{"web1": {Segmented: true, GRO: 2 * time.Millisecond}})
			s.startAgents(`encap = ["` + encap + `"]`)
			s.startDirectorWith("[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"udp\"\nport " +
				"= 443\nencap = \"" + encap +
				"\"\nrealserver = [ { address = \"10.0.11.2\" } ]\n")
			server := s.listenUDP(s.Webs[0], s.at(443)).(*net.UDPConn)
			gather(t, server)
			conn := s.dial("udp4", 443)
			const n, size = 100, 500
			for range n {
				if _, err := conn.Write(payload(size)); err != nil {
					t.Fatal(err)
				}
			}
			if err := server.SetReadDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			for i := range n {
				got, _, err := server.ReadFrom(buf)
				if err != nil {
					t.Fatalf("after %d datagrams: %v; the agent: %+v", i, err, s.agents[0].intake())
				}
				if got != size {
					t.Fatalf("datagram %d has %d bytes, want %d", i, got, size)
				}
			}
		})
	}
}

// gather sets UDP_GRO.
func gather(t *testing.T, c *net.UDPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO,
			1)
	}); err != nil || set != nil {
		t.Fatal(err, set)
	}
}

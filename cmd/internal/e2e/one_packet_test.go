package e2e

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
)

// TestOnePacket sends the datagrams of one flow to a service with one_packet: round robin chooses a realserver for
// each, and none leaves a connection behind. Without one_packet, all go to one realserver.
func TestOnePacket(t *testing.T) {
	t.Parallel()
	const config = `
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
scheduler = "rr"
one_packet = true
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2" }, { address = "10.0.13.2" } ]
`
	s := newSite(t, 3, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.nameUDP(web, 53)
	}
	s.startDirectorWith(config)
	conn := s.dial("udp4", 53)
	last := ""
	for turn := range 30 {
		server := askUDP(t, conn)
		if want := []string{"web3", "web2", "web1"}[turn%3]; server != want { // the one added last is first
			t.Errorf("datagram %d is answered by %s, want %s", turn+1, server, want)
		}
		last = server
	}
	if st := s.director.balance(); st.Connections.Count != 0 || len(s.connections()) != 0 ||
		st.Services[0].Realservers[1].Connections != 10 {
		t.Errorf("%d connections in the table, and %+v; want none, and 10 for each realserver", st.Connections.Count,
			st.Services[0].Realservers)
	}

	s.reloadWith(strings.ReplaceAll(config, "true", "false"))
	home := askUDP(t, conn)
	for range 10 {
		if server := askUDP(t, conn); server != home || server == last {
			t.Errorf("without one_packet a datagram is answered by %s, the first was by %s, and the last with it by %s",
				server, home, last)
		}
	}
}

// nameUDP answers each datagram to a port of the VIP on h with the host's name, until the test ends.
func (s *site) nameUDP(h *lab.Host, port uint16) {
	s.t.Helper()
	c := s.listenUDP(h, s.at(port))
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			_, _ = c.WriteTo([]byte(h.Name), from) // the client notices
		}
	})
	s.t.Cleanup(func() {
		c.Close()
		running.Wait()
	})
}

// askUDP sends a datagram and returns the answer.
func askUDP(t *testing.T, c net.Conn) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("who?")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

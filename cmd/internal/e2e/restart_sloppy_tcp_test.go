package e2e

import (
	"net"
	"strings"
	"testing"
)

// TestRestartWithSloppyTCP restarts a director: with a scheduler that hashes the client's address, and with sloppy_tcp,
// connections whose SYN it has not seen go on at their realservers.
func TestRestartWithSloppyTCP(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startWith(strings.Replace(drainTOML("sloppy_tcp = true", web1+", "+web2), `scheduler = "rr"`,
		`scheduler = "sh"`+"\nscheduler_flags = [\"sh-port\"]\ncheck = { type = \"tcp\", initial = \"up\" }", 1))
	to := map[string]net.Conn{}
	for range 64 {
		c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		if to[server] == nil {
			to[server] = c
		}
		if len(to) == 2 {
			break
		}
	}
	if len(to) != 2 {
		t.Fatalf("all connections are at one realserver: %v", to)
	}
	s.director.stop()
	s.director.start()
	for server, c := range to {
		mustStay(t, c, server)
	}
	if st := s.director.balance(); len(st.Drops) != 0 {
		t.Errorf("dropped %v", st.Drops)
	}
}

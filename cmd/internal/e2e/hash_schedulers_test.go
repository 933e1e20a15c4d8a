package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// hashTOML returns a service with a hashing scheduler and the first n web servers.
func hashTOML(scheduler, flags string, n int) string {
	realservers := ""
	for i := range n {
		realservers += fmt.Sprintf("{ address = \"10.0.%d.2\" }, ", 11+i)
	}
	return fmt.Sprintf(`
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = %q
scheduler_flags = [%s]
realserver = [ %s ]
`, scheduler, flags, realservers)
}

// TestHashes: 200 clients reach the realservers of their hashes. A restarted director chooses the same ones, and mh
// mostly the same ones without one realserver.
func TestHashes(t *testing.T) {
	t.Parallel()
	const clients, webs = 200, 4
	s := newSite(t, webs, nil)
	s.addClients(netip.MustParsePrefix("10.200.0.0/16"))
	s.startWith(hashTOML("rr", "", webs))
	from := make([]netip.AddrPort, clients)
	for i := range from {
		from[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, byte(i / 8), byte(1 + i*7%250)}),
			uint16(20_000+i*31))
	}
	for _, c := range []struct {
		scheduler, flags string
		stay             int // of 100 flows of other realservers, when one leaves; IPVS promises nothing for sh
	}{
		{"mh", "", 90},
		{"mh", `"mh-port"`, 90},
		{"sh", "", 0},
		{"sh", `"sh-port"`, 0},
	} {
		name := c.scheduler + " " + c.flags
		s.reloadWith(hashTOML(c.scheduler, c.flags, webs))
		before := s.answers(from)
		used := map[string]int{}
		for _, server := range before {
			used[server]++
		}
		for _, web := range s.Webs {
			if n := used[web.Name]; n < clients/webs/3 {
				t.Errorf("%s: %s has %d of %d clients: %v", name, web.Name, n, clients, used)
			}
		}

		s.director.stop()
		s.director.start()
		for i, server := range s.answers(from) {
			if server != before[i] {
				t.Errorf("%s: the client %v goes to %s, and went to %s by the director before", name, from[i], server,
					before[i])
			}
		}

		s.reloadWith(hashTOML(c.scheduler, c.flags, webs-1))
		stayed := 0
		for i, server := range s.answers(from) {
			if server == before[i] {
				stayed++
			}
			if server == "web4" {
				t.Errorf("%s: the client %v goes to a realserver that has left", name, from[i])
			}
		}
		others := clients - used["web4"]
		t.Logf("%s: %v, then %d of %d clients of the others stay", name, used, stayed, others)
		if stayed*100 < others*c.stay {
			t.Errorf("%s: %d of %d clients of the others stay, want %d%%", name, stayed, others, c.stay)
		}
	}
}

// answers returns the server of a new connection from each address and port. A RST ends each connection, so that its
// port is free at once, for the director, too: a SYN in state CLOSE begins a new connection.
func (s *site) answers(from []netip.AddrPort) (servers []string) {
	s.t.Helper()
	for _, f := range from {
		c, err := s.dialFrom(f, s.at(80))
		if err != nil {
			s.t.Fatal(err)
		}
		servers = append(servers, mustAnswer(s.t, c))
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			s.t.Fatal(err)
		}
		c.Close()
	}
	return servers
}

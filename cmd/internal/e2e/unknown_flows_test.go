package e2e

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestUnknownFlows kills a director that keeps no table. With unknown_flows = "hash" the next one goes on with its
// connections and downloads: each stays at its realserver. It refuses connections of a service that has no hash.
func TestUnknownFlows(t *testing.T) {
	byMethod(t, func(t *testing.T, m method, ipv6 bool) {
		s := newMethodSite(t, m, ipv6, 2, nil)
		s.startAgents("")
		s.director = s.prepare(s.Director, "director")
		hash := "scheduler = \"sh\"\nscheduler_flags = [\"sh-port\"]"
		s.director.configure(strings.ReplaceAll(s.directorTOML(s.director.socket,
			"unknown_flows = \"hash\"\n[connections]\nmax = 10_000\nkeep = \"\"",
			service{"tcp", "80", "sh", []int{1, 1}}, service{"tcp", "81", "sh", []int{1, 1}},
			service{"tcp", "82", "rr", []int{1, 1}}), `scheduler = "sh"`, hash))
		s.director.start()
		for _, web := range s.Webs {
			s.namedEcho(web, 80)
			s.pacedDownloads(web, 81, 4096, 20*time.Millisecond)
			s.namedEcho(web, 82)
		}
		idle, servers := map[net.Conn]string{}, map[string]bool{}
		for range 16 {
			c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
			idle[c], servers[server] = server, true
		}
		if len(servers) != 2 {
			t.Fatalf("all connections are at %v", servers)
		}
		refused, _ := s.whoAnswers(anyPort(s.Client.Addr), s.at(82))
		downloads := s.download(81, 10)
		downloads.mustGoOn(t, "before the kill", 1<<16)

		s.director.kill()
		s.director.start()
		downloads.mustGoOn(t, "after the kill", 1<<16)
		for c, server := range idle {
			mustStay(t, c, server)
		}
		if got, err := askName(refused, "still there?"); err == nil {
			t.Errorf("a connection of rr is answered by %q", got)
		}
		testkit.Eventually(t, "a refused packet is counted", func() bool { // at its batch's end, after the answer
			return s.director.balance().Drops["no_connection"] > 0
		})
		if st := s.director.balance(); len(st.Drops) != 1 || st.Connections.Adopted != nil {
			t.Errorf("dropped %v, adopted %+v", st.Drops, st.Connections.Adopted)
		}
		e := s.explain(netip.AddrPortFrom(s.Client.Addr, 1).String(), s.at(80))
		if !strings.Contains(e.Why, `(unknown_flows = "hash")`) {
			t.Errorf("explain: %s", e.Why)
		}
	})
}

package e2e

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// TestUnknownFlows kills a director that keeps no table. With unknown_flows = "hash" the next one goes on with its
// connections and downloads: each stays at its realserver. It refuses connections of a service that has no hash.
// Replies of nat are held back while no director runs, since they would end the connections.
func TestUnknownFlows(t *testing.T) {
	byMethod(t, func(t *testing.T, m method, ipv6 bool) {
		needTool(t, "nft", "nftables")
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
			s.pacedDownloads(web, 81)
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
		downloads.mustGoOn(t, "before the kill")

		if m == nat {
			s.holdReplies(true)
		}
		s.director.kill()
		s.director.start()
		if m == nat {
			s.holdReplies(false)
		}
		downloads.mustGoOn(t, "after the kill")
		for c, server := range idle {
			mustStay(t, c, server)
		}
		if got, err := askName(refused, "still there?"); err == nil {
			t.Errorf("a connection of rr is answered by %q", got)
		}
		st := s.director.balance()
		if st.Drops["no_connection"] == 0 || len(st.Drops) != 1 || st.Connections.Adopted != nil {
			t.Errorf("dropped %v, adopted %+v", st.Drops, st.Connections.Adopted)
		}
		e := s.explain(netip.AddrPortFrom(s.Client.Addr, 1).String(), s.at(80))
		if !strings.Contains(e.Why, `(unknown_flows = "hash")`) {
			t.Errorf("explain: %s", e.Why)
		}
	})
}

// holdReplies lets the director's host drop what the realservers send, or no longer.
func (s *site) holdReplies(hold bool) {
	s.t.Helper()
	rules := "delete table inet hold\n"
	if hold {
		rules = "table inet hold {\nchain c {\ntype filter hook prerouting priority raw; policy accept;\n"
		for _, web := range s.Webs {
			family := "ip"
			if web.Addr.Is6() {
				family = "ip6"
			}
			rules += family + " saddr " + web.Addr.String() + " tcp flags & syn == 0 drop\n"
		}
		rules += "}\n}\n"
	}
	s.command(s.Director, rules, "nft", "-f", "-")
}

package e2e

import (
	"fmt"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
)

// TestTunnels sends uploads, byte-exact, through each kind of tunnel, with and without offloads at either end: over links of 1,500 and 1,400 bytes.
func TestTunnels(t *testing.T) {
	for _, kind := range []string{"gre", "gue", "fou"} {
		for _, offload := range []string{"auto", "off"} {
			for _, mtu := range []int{0, 1400} {
				t.Run(fmt.Sprintf("%s-%s-%d", kind, offload, mtu), func(t *testing.T) {
					t.Parallel()
					s := newSite(t, 1, map[string]lab.Link{"web1": {MTU: mtu}})
					s.startAgents(fmt.Sprintf("offload = %q\nencap = [%q]", offload, kind))
					s.startWrittenDirector(fmt.Sprintf(`director.offload = %q
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
encap = %q
realserver = [ { address = "10.0.11.2" } ]
`, offload, kind))
					s.mustTakeUpload(short(20_000_000, 3_000_000))
					st := s.director.balance()
					if r := st.Services[0].Realservers[0]; r.Encap != kind || len(st.Drops) > 1 || len(st.Drops) == 1 && st.Drops["too_big"] == 0 {
						t.Errorf("the realserver has a tunnel %s, and the director dropped %v", r.Encap, st.Drops)
					}
					if in := s.agents[0].intake(); len(in.Drops) != 0 || in.Overruns != 0 {
						t.Errorf("the agent refused %v, %d overruns", in.Drops, in.Overruns)
					}
				})
			}
		}
	}
}

// mustTakeUpload sends n bytes through the VIP to the first web server.
func (s *site) mustTakeUpload(n int) {
	s.t.Helper()
	s.acceptUploads(s.Webs[0], 80)
	conn := s.dial("tcp", 80)
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	answer, err := put(conn, n)
	if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
		s.t.Fatalf("the server says %q, %v; want %q", answer, err, want)
	}
}

// TestMixedTunnels reaches the realservers of one service by different tunnels; an agent takes several.
func TestMixedTunnels(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents(`encap = ["ipip", "gre", "gue"]
encap_port = 7000`)
	for _, web := range s.Webs {
		s.parrot(web, 80)
	}
	s.startWrittenDirector(`
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "rr"
encap = "gue"
encap_port = 7000
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2", encap = "gre" } ]
`)
	seen := map[string]int{}
	for range 10 {
		_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		seen[server]++
	}
	if seen["web1"] != 5 || seen["web2"] != 5 {
		t.Errorf("answers are from %v", seen)
	}
}

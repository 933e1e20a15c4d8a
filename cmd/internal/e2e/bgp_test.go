package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// bgpService returns a service at a VIP whose realserver is checked often.
func (s *site) bgpService(name string, vip netip.Addr, more string) string {
	return fmt.Sprintf("[[service]]\nname = %q\nvip = %q\nprotocol = \"tcp\"\nport = 80\n%s\ncheck = { "+
		"type = \"tcp\", interval = \"300ms\", timeout = \"300ms\", rise = 1, fall = 3 }\n"+
		"realserver = [{ address = %q }]\n", name, vip, more, s.Webs[0].Addr)
}

// TestBGP: two routers, BIRD and FRR, have the VIP's route while its service has its quorum, and the sessions go on
// through everything.
func TestBGP(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	frr := s.Webs[1]
	s.Webs = s.Webs[:1]
	second := netip.MustParseAddr("198.51.100.81")
	s.vips = append(s.vips, second, s.VIP6)
	s.sources = append(s.sources, s.Director.Addr6)
	s.bird(s.Director)
	s.frrOn(frr, s.connect(frr, s.Director)...)
	s.startAgents("")
	s.namedEchoAt(s.Webs[0], ":80")
	const bfd = "bfd = { interval = \"1s\" }" // a busy machine ends no session
	bgp := s.bgpTOML(s.Director, bfd) + peerTOML(atSecond(0, 1), bfd)
	s.startDirectorWith(bgp + s.bgpService("web", s.VIP, ""))
	both := func(director ...*lab.Host) {
		t.Helper()
		s.awaitHops(s.VIP, director...)
		testkit.Eventually(t, "FRR has the same", func() bool { return len(s.hopsAt(frr, s.VIP)) == len(director) })
	}
	both(s.Director)
	s.mustBeServedBy(80, "web1")
	s.awaitBFD(s.director)
	sessions := s.director.balance().BGP.Peers

	// A reload of services brings and takes VIPs, and disturbs no session.
	s.reloadWith(bgp + s.bgpService("web", s.VIP, "") + s.bgpService("new", second, ""))
	s.awaitHops(second, s.Director)
	changes := s.reloadWith(bgp + "[[bgp.vip]]\naddress = \"" + s.VIP.String() + "\"\ncommunities = [\"1:2\"]\n" +
		s.bgpService("web", s.VIP, ""))
	s.awaitHops(second)
	if all := strings.Join(changes, "\n"); !strings.Contains(all, "bgp vip "+s.VIP.String()+": added: ") {
		t.Errorf("changes: %s", all)
	}
	testkit.Eventually(t, "a community", func() bool {
		return strings.Contains(s.birdc("show route for "+s.VIP.String()+"/32 all"), "(1,2)")
	})

	// The quorum is lost, and reached again.
	s.die(0)
	testkit.Eventually(t, "the service is down", func() bool {
		return s.director.balance().Services[0].Health == "down"
	})
	down := time.Now()
	both()
	t.Logf("withdrawn at both routers %v after the quorum was lost", time.Since(down).Round(time.Millisecond))
	s.revive(0)
	both(s.Director)

	// Standby: first the community, then the withdrawal.
	if r := s.ask("standby"); r.code != 0 || !strings.Contains(r.stdout, "GRACEFUL SHUTDOWN") {
		t.Errorf("standby: %+v", r)
	}
	both()
	if r := s.ask("peers"); !strings.Contains(r.stdout, "STANDBY") || strings.Count(r.stdout, "established") != 2 {
		t.Errorf("peers: %+v", r)
	}
	if r := s.ask("active"); r.code != 0 {
		t.Errorf("active: %+v", r)
	}
	both(s.Director)
	s.mustBeServedBy(80, "web1")
	for i, p := range s.director.balance().BGP.Peers {
		if p.Ups != sessions[i].Ups || p.Downs != sessions[i].Downs {
			t.Errorf("the session has not gone on: %+v", p)
		}
	}
	s.director.stop()
	both()
}

// manualBlock returns the code block of a page of the director's, of any language, behind a line that has this text.
func manualBlock(t *testing.T, page, after string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testkit.Root(t), "cmd/director", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), after)
	_, block, isCode := strings.Cut(rest, "\n```")
	_, block, _ = strings.Cut(block, "\n")
	if !found || !isCode {
		t.Fatalf("%s has no block behind %q", page, after)
	}
	block, _, _ = strings.Cut(block, "\n```\n")
	return block + "\n"
}

// TestBGPOfAnotherProgram: BIRD and FRR on the director's host announce the VIP while the director runs, with the
// manual's configurations.
func TestBGPOfAnotherProgram(t *testing.T) {
	t.Parallel()
	for name, speak := range map[string]func(s *site){
		"BIRD": func(s *site) {
			s.runBird(s.Director, "log stderr all;\nrouter id 10.0.2.2;\n"+
				manualBlock(t, "bgp.md", "`/etc/bird/bird.conf` on"))
		},
		"FRR": func(s *site) { s.runFRR(s.Director, manualBlock(t, "bgp.md", "`/etc/frr/frr.conf` on")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 1, nil)
			s.bird(s.Director)
			s.startAgents("")
			s.namedEchoAt(s.Webs[0], ":80")
			s.startDirector("", service{"tcp", "80", "rr", []int{1}})
			speak(s)
			s.awaitHops(s.VIP, s.Director)
			s.mustBeServedBy(80, "web1")
			s.director.kill()
			s.awaitHops(s.VIP)
			s.director.start()
			s.awaitHops(s.VIP, s.Director)
			s.director.stop()
			s.awaitHops(s.VIP)
		})
	}
}

// TestBGPRouterOfManual: BIRD and FRR as routers, and the director, have the manual's configurations.
func TestBGPRouterOfManual(t *testing.T) {
	t.Parallel()
	for name, route := range map[string]func(s *site){
		"BIRD": func(s *site) {
			s.removeRoutes()
			s.runBird(s.Router, "log stderr all;\nrouter id 10.0.2.1;\n"+
				manualBlock(t, "bgp.md", "### BIRD on the router"))
		},
		"FRR": func(s *site) {
			s.removeRoutes()
			s.runFRR(s.Router, manualBlock(t, "bgp.md", "Switch `bgpd` and `bfdd` on in"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 2, nil)
			route(s)
			s.startAgents("")
			for _, web := range s.Webs {
				s.namedEchoAt(web, ":80")
			}
			s.startDirectorWith(manualBlock(t, "bgp.md", "### A director"))
			s.awaitHops(s.VIP, s.Director)
			s.awaitBFD(s.director)
			s.mustBeServedBy(80, "")
		})
	}
}

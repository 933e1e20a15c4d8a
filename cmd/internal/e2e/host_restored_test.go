package e2e

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestHostRestored ends both programs in every way, with and without traffic, and compares the hosts' states before and
// after.
func TestHostRestored(t *testing.T) {
	t.Parallel()
	testkit.Families(t, testRestore)
}

func testRestore(t *testing.T, ipv6 bool) {
	s := newSite(t, 1, nil)
	s.speak(ipv6)
	services := []service{{"tcp", "80", "wrr", []int{1}}, {"udp", "53", "rr", []int{1}}}
	before := s.observeAll()
	s.startAgents("")
	s.startDirector("", services...)
	agent, web := s.agents[0], s.Webs[0]
	s.namedEchoAt(web, ":80")
	s.mustBeServedBy(80, web.Name)
	up := s.observeAll()
	for _, host := range []string{s.Director.Name, web.Name} {
		if cmp.Equal(before[host], up[host]) {
			t.Fatalf("%s is the same with and without our program: the comparison is blind", host)
		}
	}
	both := []*program{s.director, agent}
	after := func(when string) {
		t.Helper()
		mustBe(t, when, before, s.observeAll())
		for _, p := range both {
			mustBeEmpty(t, when, filepath.Dir(p.socket))
		}
	}
	end := func(when string) {
		t.Helper()
		for _, p := range both {
			p.stop()
		}
		after(when)
	}
	start := func() {
		t.Helper()
		agent.start()
		s.director.start()
		s.mustBeServedBy(80, web.Name)
	}
	end("after SIGTERM")

	start()
	mustBe(t, "started again", map[string]hostState{s.Client.Name: up[s.Client.Name], s.Router.Name: up[s.Router.Name]},
		s.observeAll())
	stopTraffic := s.traffic(80)
	end("after SIGTERM under traffic")
	stopTraffic()

	// SIGKILL leaves the sysctls behind. The next start undoes them, and works.
	for range 2 {
		start()
		stopTraffic := s.traffic(80)
		for _, p := range both {
			p.kill()
		}
		stopTraffic()
		killed := s.observeAll()
		for _, host := range []string{s.Director.Name, web.Name} {
			if cmp.Equal(before[host], killed[host]) {
				t.Errorf("%s is as before although its program was killed: the test does not test", host)
			}
		}
	}
	start()
	end("after SIGKILL, start and SIGTERM")

	// A start also undoes everything of a program that was killed while it started or ended.
	for range short(8, 3) {
		for _, p := range both {
			p.start()
			p.ending = true
			if err := p.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.kill()
		}
	}
	start()
	end("after SIGTERM and SIGKILL, start and SIGTERM")
}

// traffic sends requests until the returned function is called. From some time on they may fail.
func (s *site) traffic(port uint16) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for ctx.Err() == nil {
				c, err := s.Client.DialContext(ctx, "tcp", s.at(port))
				if err != nil {
					continue
				}
				interrupt := context.AfterFunc(ctx, func() { c.Close() })
				for err == nil {
					_, err = askName(c, "hello")
				}
				interrupt()
				c.Close()
			}
		})
	}
	stop = func() {
		cancel()
		running.Wait()
	}
	s.t.Cleanup(stop)
	begin := s.director.balance().In.Packets
	testkit.Within(s.t, "the traffic flows", soon, func() bool { return s.director.balance().In.Packets > begin+100 })
	return stop
}

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestHostRestored ends the programs of each method in every way, with and without traffic, and compares the hosts'
// states before and after. Without VSTUN_FULL each method has one family.
func TestHostRestored(t *testing.T) {
	t.Parallel()
	byMethodOnce(t, testRestore)
}

func testRestore(t *testing.T, m method, ipv6 bool) {
	s := newMethodSite(t, m, ipv6, 1, nil)
	services := []service{{"tcp", "80", "wrr", []int{1}}, {"udp", "53", "rr", []int{1}}}
	before := s.observeAll()
	s.startAgents("")
	s.startDirector(smallTable, services...)
	web := s.Webs[0]
	s.namedEchoAt(web, fmt.Sprintf(":%d", s.realPort(80)))
	s.mustBeServedBy(80, web.Name)
	up := s.observeAll()
	both := append([]*program{s.director}, s.agents...) // with nat, the director alone
	for _, p := range both {
		if cmp.Equal(before[p.host.Name], up[p.host.Name]) {
			t.Fatalf("%s is the same with and without our program: the comparison is blind", p.host.Name)
		}
	}
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
		for _, p := range slices.Backward(both) {
			p.start()
		}
		s.mustBeServedBy(80, web.Name)
	}
	end("after SIGTERM")

	start()
	mustBe(t, "started again", map[string]hostState{s.Client.Name: up[s.Client.Name], s.Router.Name: up[s.Router.Name]},
		s.observeAll())
	stopTraffic := s.traffic(80)
	end("after SIGTERM under traffic")
	stopTraffic()

	// SIGKILL leaves the sysctls behind. The next start undoes or adopts them, and works.
	for range 2 {
		start()
		stopTraffic := s.traffic(80)
		for _, p := range both {
			p.kill()
		}
		stopTraffic()
		killed := s.observeAll()
		for _, p := range both {
			if cmp.Equal(before[p.host.Name], killed[p.host.Name]) {
				t.Errorf("%s is as before although its program was killed: the test does not test", p.host.Name)
			}
		}
	}
	start()
	end("after SIGKILL, start and SIGTERM")

	// The same goes for everything of a program that was killed while it started or ended.
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
			pace := time.NewTicker(time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				c, err := s.Client.DialContext(ctx, "tcp", s.at(port))
				if err != nil {
					<-pace.C
					continue
				}
				interrupt := context.AfterFunc(ctx, func() { c.Close() })
				for err == nil {
					_, err = askName(c, "hello")
					<-pace.C
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

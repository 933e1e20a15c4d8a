package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestReloadStorm reloads up to ten times a second, in turns by the command and by SIGHUP, under 500 active
// connections. The configurations differ in settings of connections, weights, a service, and a realserver with
// connections. Each connection gets answers of its own realserver only. A busy machine needs longer for the same number
// of reloads and requests. With VSTUN_FULL=1 (`make long`) there are 200 reloads, and 100 with other methods and IPv6.
func TestReloadStorm(t *testing.T) { byMethodOnce(t, testReloadStorm) }

func testReloadStorm(t *testing.T, m method, ipv6 bool) {
	const talkers = 500
	length := long(20*time.Second, 4*time.Second, 4*time.Second)
	if m != tun || ipv6 {
		length /= 2
	}
	s := newMethodSite(t, m, ipv6, 4, nil)
	s.startWith(s.stormTOML(0))
	s.namedEcho(s.Webs[3], 81)
	conns := make([]net.Conn, talkers)
	homes := map[string]int{}
	for i := range conns {
		conns[i] = s.dial("tcp", 80)
		home, err := askName(conns[i], "hello")
		if err != nil {
			t.Fatal(err)
		}
		homes[home]++
	}
	if homes["web1"] == 0 || homes["web2"] == 0 || homes["web3"] == 0 || homes["web4"] > 0 {
		t.Fatalf("the connections are at %v, want some at each of the first three", homes)
	}
	scheduled := s.scheduled()

	var words, errs atomic.Int64
	stop := make(chan struct{})
	var talk sync.WaitGroup
	for i, conn := range conns {
		talk.Go(func() {
			every := time.NewTicker(50 * time.Millisecond)
			defer every.Stop()
			var home string
			for n := 0; ; n++ {
				server, err := askName(conn, fmt.Sprintf("word %d of %d", n, i))
				if home == "" {
					home = server
				}
				if err != nil || server != home {
					errs.Add(1)
					t.Errorf("word %d of the connection from %v to %s was answered by %q, %v", n, conn.LocalAddr(),
						home, server, err)
					return
				}
				words.Add(1)
				select {
				case <-stop:
					return
				case <-every.C:
				}
			}
		})
	}
	every := time.NewTicker(every100)
	defer every.Stop()
	reloads := 0
	wantReloads, wantWords := int(length/every100)/2, int64(length/every100)*talkers
	begin := time.Now()
	storms := func() bool {
		took := time.Since(begin)
		return took < length || took < 10*length && (reloads < wantReloads || words.Load() < wantWords)
	}
	for ; storms() && errs.Load() == 0; <-every.C {
		reloads++
		if reloads%2 == 0 {
			if changes := s.reloadWith(s.stormTOML(reloads)); len(changes) < 3 {
				t.Errorf("reload %d changed only %q", reloads, changes)
			}
		} else {
			s.director.configure(s.fileWith(s.stormTOML(reloads)))
			s.director.signal(unix.SIGHUP)
		}
		testkit.Within(t, "the configuration is in force", soon, func() bool {
			return s.director.balance().Services[0].Realservers[0].Weight == stormWeight(reloads)
		})
	}
	close(stop)
	talk.Wait()
	t.Logf("%d reloads, %d words, %d errors", reloads, words.Load(), errs.Load())
	if reloads < wantReloads {
		t.Errorf("only %d reloads, want at least %d", reloads, wantReloads)
	}
	if words.Load() < wantWords {
		t.Errorf("only %d words were sent, want at least %d", words.Load(), wantWords)
	}
	s.reloadWith(s.stormTOML(0))
	st := s.director.balance()
	if n := s.scheduled(); n != scheduled || len(st.Drops) != 0 || st.Connections.Count != talkers {
		t.Errorf("%d connections were scheduled, %d before the storm; %d are there, dropped %v; want no new one, %d "+
			"and nothing",
			n, scheduled, st.Connections.Count, st.Drops, talkers)
	}
}

// every100 is the time from one reload to the next.
const every100 = 100 * time.Millisecond

// stormWeight returns the weight of the first realserver in the n-th configuration, which identifies it.
func stormWeight(n int) int { return 1 + n%97 }

// stormTOML returns the n-th configuration. An even one has a third realserver, every third one another service.
func (s *site) stormTOML(n int) string {
	weight := func(w int) string { return fmt.Sprintf("weight = %d", w) }
	realservers := []string{s.realserver(0, "80", weight(stormWeight(n))), s.realserver(1, "80", weight(1+n%3))}
	if n%4 < 2 {
		realservers = append(realservers, s.realserver(2, "80"))
	}
	text := fmt.Sprintf(`
connections.timeouts.tcp = "%dm"
connections.half_open_max = %d
connections.sloppy_tcp = %t
connections.secure_tcp = %q
director.no_service = %q
[[service]]
name = "web"
vip = %q
protocol = "tcp"
port = 80
scheduler = "wrr"
%srealserver = [ %s ]
`, 1+n%7, 3000+n%5*1000, n%2 == 0, []string{"auto", "always", "off"}[n%3], []string{"reject", "drop"}[n%2], s.VIP,
		s.method.keys(), strings.Join(realservers, ", "))
	if n%3 == 0 {
		text += fmt.Sprintf(`
[[service]]
name = "other"
vip = %q
protocol = "tcp"
port = 81
%srealserver = [ %s ]
`, s.VIP, s.method.keys(), s.realserver(3, "81"))
	}
	return text
}

// scheduled returns the connections scheduled to the first service's realservers so far.
func (s *site) scheduled() (n uint64) {
	s.t.Helper()
	for _, r := range s.director.balance().Services[0].Realservers {
		n += r.Connections
	}
	return n
}

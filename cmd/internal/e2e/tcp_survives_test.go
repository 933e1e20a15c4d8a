package e2e

import (
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestConnectionStays keeps one connection active for 10 s, on a busy machine for longer, while others begin and end,
// and reloads change the weights, add a realserver and remove the connection's own. It stays at its realserver. With
// VSTUN_FULL=1 (`make long`) it is active for 30 s.
func TestConnectionStays(t *testing.T) {
	t.Parallel()
	const shortLived = 300
	length := long(30*time.Second, 10*time.Second, 6*time.Second)
	s := newSite(t, 3, nil)
	s.startAgents("")
	const more = "[connections]\ntimeouts = { tcp_fin = \"1s\" }"
	s.startDirector(more, service{"tcp", "80", "wrr", []int{1, 1, -1}})
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	before := s.director.balance()

	long := s.dial("tcp", 80)
	home, err := askName(long, "hello")
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(length)
	said, want := 1, int(length/(100*time.Millisecond))*3/4
	var talk sync.WaitGroup
	defer talk.Wait()
	talk.Go(func() {
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		for ; time.Now().Before(end) || said < want && time.Now().Before(end.Add(5*length)); <-every.C {
			server, err := askName(long, "still there?")
			if err != nil || server != home {
				t.Errorf("after %d words the connection to %s was answered by %q, %v", said, home, server, err)
				return
			}
			said++
		}
	})
	homeIndex := 0
	if home == s.Webs[1].Name {
		homeIndex = 1
	}
	// the client has 28,000 ports, and each is blocked for a minute after its use
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	without := []int{5, 5, 1}
	without[homeIndex] = -1
	for i, c := range []struct {
		weights []int // of the webs, after this share of the time
		used    int   // realservers that new connections may reach
	}{
		{[]int{1, 1, -1}, 2},
		{[]int{2, 7, 1}, 3}, // other weights, and one more
		{without, 2},        // the connection's own is gone
		{[]int{1, 1, 1}, 3}, // and comes back
	} {
		if i > 0 {
			s.reload(more, service{"tcp", "80", "wrr", c.weights})
		}
		if i == 2 {
			if l := s.director.balance().Leaving; l.Realservers != 1 || l.Connections < 1 {
				t.Errorf("leaving are %d realservers with %d connections, want 1 with at least 1", l.Realservers,
					l.Connections)
			}
		}
		answers := map[string]int{}
		stageEnd := end.Add(-length * time.Duration(3-i) / 4)
		for n := 0; n < shortLived/4 || time.Now().Before(stageEnd) && time.Now().Before(end); n++ {
			<-pace.C
			conn, err := s.Client.Dial("tcp", s.at(80))
			if err != nil {
				t.Fatal(err)
			}
			server, err := askName(conn, "hi")
			conn.Close()
			if err != nil {
				t.Fatal(err)
			}
			answers[server]++
		}
		if len(answers) != c.used || i == 2 && answers[home] > 0 {
			t.Errorf("with weights %v (-1: not there) new connections were answered by %v", c.weights, answers)
		}
	}
	talk.Wait()
	if said < want {
		t.Errorf("only %d words were sent on the long connection, want at least %d", said, want)
	}
	testkit.Within(t, "only the long connection is active", soon, func() bool {
		active := 0
		for _, r := range s.director.balance().Services[0].Realservers {
			active += r.Active
		}
		return active == 1
	})
	st := s.director.balance()
	if n := st.Services[0].Realservers[homeIndex].Active; n != 1 {
		t.Errorf("%d active connections to %s, want the long one", n, home)
	}
	var scheduled uint64
	for _, r := range st.Services[0].Realservers {
		scheduled += r.Connections
	}
	if scheduled < shortLived || len(before.Drops) != 0 || len(st.Drops) != 0 {
		t.Errorf("%d connections, dropped %v; want at least %d and nothing", scheduled, st.Drops, shortLived)
	}

	// Once more without its realserver: when the connection ends, nothing remains of the realserver.
	s.reload(more, service{"tcp", "80", "wrr", without})
	if l := s.director.balance().Leaving; l.Connections < 1 {
		t.Errorf("%d connections are leaving, want at least the long one", l.Connections)
	}
	if err := long.Close(); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the realserver that left has no connection", soon,
		func() bool { return s.director.balance().Leaving.Connections == 0 })
}

// reload replaces the director's services by SIGHUP, and waits until they are in force.
func (s *site) reload(more string, services ...service) {
	s.t.Helper()
	s.director.configure(s.directorTOML(s.director.socket, more, services...))
	s.director.signal(unix.SIGHUP)
	testkit.Within(s.t, "the new configuration is in force", soon, func() bool {
		st := s.director.balance()
		if len(st.Services) != len(services) {
			return false
		}
		for i, svc := range services {
			have := st.Services[i].Realservers
			for j, w := range svc.weights {
				if w < 0 {
					continue
				}
				if len(have) == 0 || have[0].Address != s.Webs[j].Addr.String() || have[0].Weight != w {
					return false
				}
				have = have[1:]
			}
			if len(have) > 0 {
				return false
			}
		}
		return true
	})
}

// TestBadReload: a reload of a configuration with faults changes nothing, and the log has the faults.
func TestBadReload(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	s.namedEcho(s.Webs[0], 80)
	for _, c := range []struct{ config, says string }{
		{"nonsense", ".toml:1:"},
		{s.directorTOML(s.director.socket, "colour = 1", service{"tcp", "81", "wrr", []int{1}}), "colour"},
		{s.directorTOML(s.director.socket, "queues = 7", service{"tcp", "81", "wrr", []int{1}}), "restart"},
	} {
		said := s.director.Output()
		s.director.configure(c.config)
		s.director.signal(unix.SIGHUP)
		testkit.Within(t, "the log has "+c.says, soon, func() bool {
			return strings.Contains(strings.TrimPrefix(s.director.Output(), said), c.says)
		})
		if st := s.director.balance(); len(st.Services) != 1 || st.Services[0].Ports[0] != "80" || st.Queues == 7 {
			t.Errorf("the services changed: %+v", st.Services)
		}
		s.mustBeServedBy(80, "web1")
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// must runs a command of the director, which must succeed, and returns its output.
func (s *site) must(command ...string) string {
	s.t.Helper()
	got := s.ask(command...)
	if got.code != 0 {
		s.t.Fatalf("director %v: exit status %d: %s", command, got.code, got.stderr)
	}
	return got.stdout
}

// TestSetWeight sets weights of a realserver: reloads keep them until the configured weight changes.
func TestSetWeight(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startWith(drainTOML("", web1+", "+web2))
	web := func() api.Realserver { return s.director.balance().Services[0].Realservers[0] }

	if got, want := s.must("set", "web", "10.0.11.2", "--weight", "0"), "service \"web\": realserver 10.0.11.2: "+
		"weight 1 -> 0, configured 1\n"; got != want {
		t.Errorf("set prints %q, want %q", got, want)
	}
	if r := web(); r.Weight != 0 || r.Configured == nil || *r.Configured != 1 {
		t.Errorf("status has %+v, want weight 0, configured 1", r)
	}
	if got := s.must("status"); !strings.Contains(got, "draining (configured: 1)") {
		t.Errorf("status does not show the operator's weight:\n%s", got)
	}
	for range 4 {
		s.mustBeServedBy(80, "web2")
	}
	s.reloadWith(drainTOML("", web1+`, { address = "10.0.12.2", weight = 2 }`))
	if r := web(); r.Weight != 0 {
		t.Errorf("after a reload status has %+v, want weight 0", r)
	}
	if changes := s.reloadWith(drainTOML("", `{ address = "10.0.11.2", weight = 3 }, `+web2)); !slices.Contains(changes,
		`service "web": realserver 10.0.11.2: the weight 0 that an operator has set does not hold any longer`) {
		t.Errorf("the reload prints %q", changes)
	}
	if r := web(); r.Weight != 3 || r.Configured != nil {
		t.Errorf("after a reload with another weight status has %+v, want 3", r)
	}
	var answer api.Reload
	if err := json.Unmarshal([]byte(s.must("set", "--all", "10.0.11.2", "--weight", "9", "--json")),
		&answer); err != nil || len(answer.Changes) != 1 || web().Weight != 9 ||
		answer.Changes[0].Service != "web" || answer.Changes[0].Realserver != "10.0.11.2" ||
		answer.Changes[0].Key != "weight" || answer.Changes[0].Old != 3.0 || answer.Changes[0].New != 9.0 {
		t.Errorf("in all services: %+v, %v, weight %d; want 9", answer, err, web().Weight)
	}
	s.must("undrain", "web", "10.0.11.2")
	if r := web(); r.Weight != 3 || r.Configured != nil {
		t.Errorf("at the end status has %+v, want 3", r)
	}
	testkit.Within(t, "the log has it", soon, func() bool {
		return strings.Contains(s.director.Output(), "weight 9 -> 3")
	})

	for _, c := range []struct {
		command string
		code    int
		says    string
	}{
		{"set wbe 10.0.11.2 --weight 1", 1, `there is no service "wbe": did you mean web?`},
		{"set web 10.0.11.9 --weight 1", 1, `has no realserver 10.0.11.9: it has 10.0.11.2, 10.0.12.2`},
		{"set web 10.0.11.2 --weight 65536", 2, "65535"},
		{"set web 10.0.11.2", 2, "weight"},
		{"set web --weight 1", 2, "SERVICE REALSERVER"},
		{"set web web1 --weight 1", 2, "not an address"},
		{"drain web 10.0.11.2 --timeout 3s", 2, "--wait"},
		{"drain web 10.0.11.9 --wait", 1, "has no realserver 10.0.11.9"},
	} {
		got := s.ask(strings.Fields(c.command)...)
		if got.code != c.code || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, c.says) {
			t.Errorf("%s: exit status %d, want %d and a line with %q: %s", c.command, got.code, c.code, c.says,
				got.stderr)
		}
	}
	for command, want := range map[string][]string{"drain ": {"web"}, "set web ": {"10.0.11.2", "10.0.12.2"},
		"undrain --all ":       {"10.0.11.2", "10.0.12.2"},
		"explain 192.0.2.7:1 ": {"198.51.100.80:80"}, "connections --service ": {"web"},
		"capture --vip ": {"198.51.100.80"}} {
		got := run(t, s.Director, exec.Command(programPath("director"),
			append([]string{"__complete", "-c", s.director.config}, strings.Split(command, " ")...)...))
		for _, name := range want {
			if !slices.Contains(strings.Split(got.stdout, "\n"), name) {
				t.Errorf("completion of %q: %q, want %q among it", command, got.stdout, name)
			}
		}
	}
}

// load sends requests to the VIP, each on a new connection, by many clients, until it is stopped.
type load struct {
	stop     func()
	clients  sync.WaitGroup
	requests atomic.Int64
	mu       sync.Mutex
	failures []string
}

func (s *site) startLoad(clients int) *load {
	stop := make(chan struct{})
	l := &load{stop: sync.OnceFunc(func() { close(stop) })}
	s.t.Cleanup(l.stop)
	for range clients {
		l.clients.Go(func() {
			c := s.browser()
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				_, err := fetch(c, "http://"+s.at(80)+"/")
				if l.requests.Add(1); err != nil {
					l.mu.Lock()
					l.failures = append(l.failures, err.Error())
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

// end ends the load. No request may have failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.clients.Wait()
	t.Logf("%d requests", l.requests.Load())
	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed: %s", len(l.failures), l.requests.Load(), l.failures[0])
	}
}

// more waits for n further requests.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	want := l.requests.Load() + n
	testkit.Within(t, "requests are made", 3*soon, func() bool { return l.requests.Load() >= want })
}

// startDrain starts `director drain --wait` and returns when it waits.
func (s *site) startDrain(service, realserver string) *lab.Process {
	return s.startDrainBy("--wait", service, realserver)
}

func (s *site) startDrainBy(flag, service, realserver string) *lab.Process {
	s.t.Helper()
	p, err := s.Director.Start(exec.Command(programPath("director"), "drain", service, realserver, flag, "-c",
		s.director.config))
	if err != nil {
		s.t.Fatal(err)
	}
	testkit.Within(s.t, "drain --wait shows its progress", soon, func() bool {
		return strings.Contains(p.Output(),
			"draining for ")
	})
	return p
}

// mustDrain waits for its end with exit status 0.
func (s *site) mustDrain(p *lab.Process) {
	s.t.Helper()
	select {
	case <-p.Done():
	case <-time.After(3 * soon):
		s.t.Fatalf("drain --wait waits though all has ended: %s", p.Output())
	}
	if err := p.Wait(); err != nil || !strings.Contains(p.Output(), "drained in ") {
		s.t.Errorf("drain --wait: %v: %s", err, p.Output())
	}
}

// TestDrainWait takes a web server out under load and kills it as soon as `drain --wait` has returned: no request
// fails. Without VSTUN_FULL each method has one family.
func TestDrainWait(t *testing.T) {
	t.Parallel()
	needTool(t, "nginx", "nginx-light")
	byMethodOnce(t, testDrainWait)
}

func testDrainWait(t *testing.T, m method, ipv6 bool) {
	s := newMethodSite(t, m, ipv6, 2, nil)
	s.unmapped = true // the service has two ports
	s.startAgents("")
	for _, web := range s.Webs {
		s.nginx(web)
		s.namedEchoAt(web, ":81")
	}
	s.startDirectorWith(strings.NewReplacer("port = 80", "port = [80, 81]\n"+m.keys(), "198.51.100.80",
		s.VIP.String()).Replace(drainTOML("", s.realserver(0, "")+", "+s.realserver(1, ""))))
	leaves := s.Webs[0].Addr.String()
	l := s.startLoad(8)
	l.more(t, 100)
	// A connection to each server that is longer than all requests.
	var long []io.Closer
	at := map[string]bool{}
	for !at["web1"] || !at["web2"] {
		c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(81))
		at[server] = true
		long = append(long, c)
	}

	if got := s.ask("drain", "web", leaves, "--wait", "--timeout", "2s"); got.code != 1 ||
		!strings.Contains(got.stderr, "director: after 2s there remain") {
		t.Errorf("while a connection is open: exit status %d, want 1 and how many remain: %s%s", got.code, got.stdout,
			got.stderr)
	}
	drain := s.startDrainBy(s.method.drained(), "web", leaves)
	l.more(t, 100)
	select {
	case <-drain.Done():
		t.Fatalf("drain --wait has returned while a connection was open: %v\n%s", drain.Wait(), drain.Output())
	default:
	}
	for _, c := range long {
		c.Close()
	}
	s.mustDrain(drain)
	s.die(0)
	l.more(t, 200)
	s.revive(0)
	s.must("undrain", "web", leaves)
	before := s.director.balance().Services[0].Realservers[0].Connections
	l.more(t, 100)
	if r := s.director.balance().Services[0].Realservers[0]; r.Weight != 1 || r.Connections == before {
		t.Errorf("after undrain the realserver gets nothing: %+v", r)
	}
	l.end(t)
}

// TestDrainActive: drain --active returns when no connection is established, while closed ones are still in FIN_WAIT.
func TestDrainActive(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startWith(strings.Replace(drainTOML("", web1+", "+web2), `tcp_fin = "1s"`, `tcp_fin = "1h"`, 1))
	var to1 net.Conn
	for range 2 {
		if c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80)); server == "web1" {
			to1 = c
		}
	}
	if to1 == nil {
		t.Fatal("neither of two connections is at web1")
	}
	if got := s.ask("drain", "web", "10.0.11.2", "--active", "--timeout", "1s"); got.code != 1 ||
		!strings.Contains(got.stderr, "director: after 1s there remain 1 active, 0 closing: ") {
		t.Errorf("while a connection is open: exit status %d: %s%s", got.code, got.stdout, got.stderr)
	}
	drain := s.startDrainBy("--active", "web", "10.0.11.2")
	to1.Close()
	s.mustDrain(drain)
	if r := s.director.balance().Services[0].Realservers[0]; r.Active != 0 || r.Inactive != 1 || r.Weight != 0 {
		t.Errorf("status has %+v, want a connection that is inactive, and weight 0", r)
	}
	if got := s.ask("drain", "web", "10.0.11.2", "--wait", "--timeout", "1s"); got.code != 1 ||
		!strings.Contains(got.stderr, "remain 0 active, 1 closing: ") {
		t.Errorf("--wait: exit status %d: %s%s", got.code, got.stdout, got.stderr)
	}
}

// TestDrainWaitForOneThatLeft waits for a realserver that is not configured any more, and for persistent clients that
// come back.
func TestDrainWaitForOneThatLeft(t *testing.T) {
	t.Parallel()
	s, to1, to2 := twoConnections(t, "")
	s.reloadWith(drainTOML("", web2))
	if got := s.ask("drain", "web", "10.0.11.2", "--wait", "--timeout", "1s"); got.code != 1 ||
		!strings.Contains(got.stderr, "1 active, 0 closing") {
		t.Errorf("while a connection is open: exit status %d: %s", got.code, got.stderr)
	}
	drain := s.startDrain("web", "10.0.11.2")
	to1.Close()
	s.mustDrain(drain)
	mustStay(t, to2, "web2")

	s.reloadWith(fmt.Sprintf(strings.Replace(drainTOML("", "%s"), "scheduler",
		"persistence = { timeout = \"1m\" }\nscheduler", 1), web2))
	s.mustBeServedBy(80, "web2")
	if got := s.ask("drain", "web", "10.0.12.2", "--wait", "--timeout", "1s"); got.code != 1 ||
		!strings.Contains(got.stderr, "1 persistent client") ||
		!strings.Contains(got.stderr, "expire_quiescent_template") {
		t.Errorf("with a persistent client: exit status %d: %s", got.code, got.stderr)
	}
}

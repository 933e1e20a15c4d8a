package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// checkedTOML returns an HTTP service at the site's VIP with a realserver on each web server. service and check are
// further keys.
func (s *site) checkedTOML(service, check string) string {
	text := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\nscheduler = "+
		"\"rr\"\n%s\n%scheck = { %s }\n", s.VIP, service, s.method.keys(), check)
	for i := range s.Webs {
		text += fmt.Sprintf("[[service.realserver]]\n%s\n", strings.Join(s.realserverKeys(i, "80"), "\n"))
	}
	return text
}

// health returns the health of each realserver of the first service, by status: "up", "down".
func (s *site) health() string {
	s.t.Helper()
	var all []string
	for _, r := range s.director.balance().Services[0].Realservers {
		all = append(all, r.Health)
	}
	return strings.Join(all, " ")
}

// awaitHealth waits until health returns want.
func (s *site) awaitHealth(want string) api.Service {
	s.t.Helper()
	testkit.Within(s.t, "the realservers are "+want, 2*soon, func() bool { return s.health() == want })
	return s.director.balance().Services[0]
}

// quick is the intervals and timeouts of checks. On a busy machine a check may wait for some 100 ms.
const quick = `interval = "1s", timeout = "1s", rise = 2, fall = 3`

// startChecked starts agents, web servers and a director that checks them, and waits until all are up.
func (s *site) startChecked(service, check string) (servers []*lab.Process) {
	s.t.Helper()
	s.startAgents(`encap = ["ipip", "gue"]`)
	for _, web := range s.Webs {
		servers = append(servers, s.nginxProcess(web))
	}
	s.startDirectorWith(s.checkedTOML(service, check))
	s.awaitHealth(strings.TrimSpace(strings.Repeat("up ", len(s.Webs))))
	return servers
}

// outWithin bounds the time until a realserver that dies is out, with quick: three intervals and a timeout, with room
// for a busy machine.
const outWithin = 4 * time.Second

const room = 4 * time.Second

// awaitOut waits until the realservers have this health. It fails if that takes longer than outWithin from begin on.
func (s *site) awaitOut(what, want string, begin time.Time) api.Service {
	s.t.Helper()
	svc := s.awaitHealth(want)
	took := time.Since(begin)
	s.t.Logf("%s: %s after %v", what, want, took)
	if took > outWithin+room {
		s.t.Errorf("%s: it took %v until the realservers were %s, want %v", what, took, want, outWithin)
	}
	return svc
}

// awaitReason waits until the last check of a realserver of the first service has this reason.
func (s *site) awaitReason(realserver int, reason string) (svc api.Service) {
	s.t.Helper()
	said := ""
	defer func() { s.t.Logf("the check says %q", said) }()
	testkit.Within(s.t, "a check has the reason "+reason, soon, func() bool {
		svc = s.director.balance().Services[0]
		said = svc.Realservers[realserver].Check.Reason
		return said == reason
	})
	return svc
}

// visitors is clients that send requests, each on a new connection.
type visitors struct {
	t    *testing.T
	stop func()

	mu      sync.Mutex
	asked   int
	waiting map[int]time.Time // start times of the requests in flight
	failed  []failure
}

type failure struct {
	begun time.Time
	err   error
}

// visit sends requests to port 80 of the VIP, at a rate per second, until the test ends. It takes the client's ports in
// their order: the kernel's choice repeats one after 2 s at this rate, and the connections that a dead server refused
// stay in the table for 60 s, bound to it, as in IPVS.
func (s *site) visit(rate int) *visitors {
	s.t.Helper()
	c := &visitors{t: s.t, waiting: map[int]time.Time{}}
	done := make(chan struct{})
	var running sync.WaitGroup
	var port atomic.Uint32
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		const first, last = 1024, 32_768 // below those that the kernel chooses from
		n := first + int(port.Add(1))%(last-first)
		from := &net.TCPAddr{IP: s.Client.Addr.AsSlice(), Port: n}
		err = s.Client.Do(func() error {
			conn, err = (&net.Dialer{LocalAddr: from}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	browser := &http.Client{Timeout: soon, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	running.Go(func() {
		pace := time.NewTicker(time.Second / time.Duration(rate))
		defer pace.Stop()
		for {
			select {
			case <-done:
				return
			case <-pace.C:
			}
			running.Go(func() {
				begun := time.Now()
				c.mu.Lock()
				n := c.asked
				c.asked++
				c.waiting[n] = begun
				c.mu.Unlock()
				_, err := fetch(browser, "http://"+s.at(80)+"/")
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.waiting, n)
				if err != nil {
					c.failed = append(c.failed, failure{begun, err})
				}
			})
		}
	})
	c.stop = sync.OnceFunc(func() { close(done); running.Wait() })
	s.t.Cleanup(c.stop)
	return c
}

// finish waits until the requests in flight have ended.
func (c *visitors) finish() {
	c.t.Helper()
	now := time.Now()
	testkit.Within(c.t, "requests end", 2*soon, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, begun := range c.waiting {
			if begun.Before(now) {
				return false
			}
		}
		return true
	})
}

// mustWork fails the test if a request that began in the span failed.
func (c *visitors) mustWork(what string, from, to time.Time) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, f := range c.failed {
		if f.begun.After(from) && f.begun.Before(to) {
			if n++; n <= 3 {
				c.t.Errorf("%s: a request %v later: %v", what, f.begun.Sub(from), f.err)
			}
		}
	}
	if n > 3 {
		c.t.Errorf("%s: %d requests failed", what, n)
	}
}

// span is a time in which no request may fail.
type span struct {
	what     string
	from, to time.Time
}

// TestDeathUnderLoad kills, under load, a web server, and then an agent, or the host, of a web server that lives. Each
// is out in time, later requests do not fail, and it comes back. In the end the machine is in its former state. With
// VSTUN_FULL=1 (`make long`) there are 250 requests a second and family, else 50, and one family for each method.
func TestDeathUnderLoad(t *testing.T) {
	t.Parallel()
	for family, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			for _, m := range []method{tun, dr, nat} {
				t.Run(string(m), func(t *testing.T) {
					needFamily(t, m, ipv6)
					testDeathUnderLoad(t, m, ipv6)
				})
			}
		})
	}
}

func testDeathUnderLoad(t *testing.T, m method, ipv6 bool) {
	s := newMethodSite(t, m, ipv6, 2, nil)
	before := s.observeAll()
	servers := s.startChecked("", `type = "http", body = "web", `+quick)
	clients := s.visit(long(250, 50, 50))                          // by each of two families
	calm := long(3*time.Second, time.Second, 500*time.Millisecond) // the load goes on
	var spans []span
	quiet := func(what string) {
		from := time.Now()
		time.Sleep(calm)
		spans = append(spans, span{what, from, time.Now()})
		clients.finish()
	}
	quiet("everything works")

	begin := time.Now()
	if err := servers[0].Stop(); err != nil {
		t.Fatal(err)
	}
	s.awaitOut("a web server ends", "down up", begin)
	quiet("one web server has ended")
	svc := s.awaitReason(0, "connection refused")
	via := map[method]string{tun: "tunnel", dr: "tunnel", nat: "direct"}[m]
	if r := svc.Realservers[0]; r.Check.Type != "http" || r.Check.Via != via || r.Effective != 0 ||
		r.Weight != 1 || svc.WeightUp != 1 || svc.Health != "up" {
		t.Errorf("status has %+v, %+v, %+v", svc, r, r.Check)
	}
	servers[0] = s.nginxProcess(s.Webs[0])
	s.awaitHealth("up up")
	quiet("it is back")

	s.die(1)
	begin = time.Now()
	svc = s.awaitOut("a realserver dies", "up down", begin)
	quiet("one realserver is dead")
	t.Logf("the check says: %s", svc.Realservers[1].Check.Reason)
	s.revive(1)
	s.awaitHealth("up up")
	quiet("the realserver is back")

	clients.stop()
	for _, q := range spans {
		clients.mustWork(q.what, q.from, q.to)
	}
	t.Logf("%d requests, %d failed", clients.asked, len(clients.failed))
	st := s.director.balance()
	for _, r := range st.Services[0].Realservers {
		if r.Connections == 0 || r.Effective != 1 {
			t.Errorf("realserver %+v", r)
		}
	}
	if out := s.ask("connections", "--json", "--client", s.Director.Addr.String()).stdout; out != "" {
		t.Errorf("checks are among the connections:\n%s", out)
	}
	for _, word := range []string{"realserver down", "realserver up"} {
		if !strings.Contains(s.director.Output(), word) {
			t.Errorf("the log does not have %q", word)
		}
	}
	s.director.stop()
	for _, a := range s.agents {
		a.stop()
	}
	mustBe(t, "after the end", before, s.observeAll())
}

// TestTunnelIsChecked breaks what only checks through the tunnel can find: protocol 4 is blocked on the path, and an
// agent does not accept the VIP. Direct checks of the realserver's own address succeed.
func TestTunnelIsChecked(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startChecked("", `type = "http", `+quick)
	block := func(verb string) {
		t.Helper()
		got := run(t, s.Router, exec.Command("iptables", "-w", verb, "FORWARD", "-p", "4", "-d",
			s.Webs[0].Addr.String(), "-j", "DROP"))
		if got.code != 0 {
			t.Skipf("SKIPPED: iptables: %s", got.stderr)
		}
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("SKIPPED: there is no iptables")
	}
	begin := time.Now()
	block("-A")
	s.awaitOut("protocol 4 is blocked", "down up", begin)
	s.awaitReason(0, "no connection within 1s")
	direct := s.checkedTOML("", `type = "http", via = "direct", `+quick)
	s.reloadWith(direct)
	if svc := s.awaitHealth("up up"); svc.Realservers[0].Check.Via != "direct" {
		t.Errorf("status has %+v", svc.Realservers[0].Check)
	}
	s.reloadWith(s.checkedTOML("", `type = "http", `+quick))
	s.awaitHealth("down up")
	block("-D")
	s.awaitHealth("up up")

	s.agents[0].stop()
	s.agents[0].configure(s.agentTOMLOf(s.agents[0].socket, netip.MustParseAddr("198.51.100.99")))
	begin = time.Now()
	s.agents[0].start()
	s.awaitOut("the agent does not have the VIP", "down up", begin)
	s.reloadWith(direct)
	s.awaitHealth("up up")
}

// TestRefusedReloadKeepsHealth: a refused reload of a file without a service keeps the results of that service's
// checks.
func TestRefusedReloadKeepsHealth(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startWith(s.checkedTOML("", `type = "tcp", interval = "1h", timeout = "5s"`))
	s.awaitHealth("up")
	begin := time.Now()
	s.director.configure(s.fileWith("director.metrics = \"192.0.2.99:9464\"\n" + strings.Replace(s.checkedTOML("",
		`type = "ping"`), `"web"`, `"other"`, 1)))
	if got := s.ask("reload"); got.code != 1 || !strings.Contains(got.stderr, "192.0.2.99") {
		t.Fatalf("reload: %+v", got)
	}
	least := time.Since(begin).Seconds() // before the director is asked
	r := s.director.balance().Services[0].Realservers[0]
	if r.Health != "up" || r.Check.Since < least {
		t.Errorf("after the reload it is %s, for %v s, want up for %v s or more", r.Health, r.Check.Since, least)
	}
	s.mustBeServedBy(80, "web1")
}

// agentTOMLOf returns an agent's configuration with another VIP.
func (s *site) agentTOMLOf(socket string, vip netip.Addr) string {
	was := s.vips
	defer func() { s.vips = was }()
	s.vips = []netip.Addr{vip}
	return s.agentTOML(socket, "")
}

// TestStartsDown: with initial = "down" a realserver gets no clients before its checks have passed; with "up" it gets
// them until its checks have failed. A reload keeps its state.
func TestStartsDown(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents("")
	s.namedEcho(s.Webs[0], 80)
	slow := func(initial string) string {
		const check = `type = "tcp", interval = "1h", timeout = "5s", rise = 1, fall = 1, initial = `
		return s.checkedTOML("", check+`"`+initial+`"`)
	}
	s.startDirectorWith(slow("down"))
	s.awaitHealth("up down") // the first checks come at once
	s.awaitReason(1, "connection refused")
	for range 4 {
		s.mustBeServedBy(80, "web1")
	}
	for _, same := range []string{slow("down"), slow("up"), strings.Replace(slow("down"), `"rr"`, `"wrr"`, 1)} {
		s.reloadWith(same)
		if got := s.health(); got != "up down" {
			t.Errorf("after a reload the realservers are %s", got)
		}
	}
	s.mustBeServedBy(80, "web1")
	s.namedEcho(s.Webs[1], 80)
	s.reloadWith(strings.NewReplacer("1h", "300ms", "5s", "300ms").Replace(slow("down")))
	s.awaitHealth("up up")
}

// TestFailureIsTold: with on_failure = "drain" a failed realserver keeps its connections. The notification command runs
// for each change.
func TestFailureIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	alive := []net.PacketConn{s.alive(s.Webs[0]), s.alive(s.Webs[1])}
	told := filepath.Join(s.dir, "told")
	s.startDirectorWith(s.checkedTOML("on_failure = \"drain\"\nquorum = 2\npersistence = { timeout = \"1h\" }",
		`type = "udp", port = 9, send = "x", expect = "yes", `+quick) +
		fmt.Sprintf("[notify]\ncommand = [\"/bin/sh\", \"-c\", 'echo \"$@\" >>%s', \"sh\"]\n", told))
	s.awaitHealth("up up")
	c, home := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	alive[strings.TrimPrefix(home, "web")[0]-'1'].Close()
	want := map[string]string{"web1": "down up", "web2": "up down"}[home]
	s.awaitHealth(want)
	mustStay(t, c, home)
	if _, err := askName(s.dial("tcp", 80), "hello"); err != nil {
		t.Errorf("its persistent client: %v", err)
	}
	svc := s.director.balance().Services[0]
	for _, r := range svc.Realservers {
		if r.Weight != 1 || r.Health == "down" && (r.Effective != 0 || r.Active != 2) || r.Health == "up" &&
			(r.Effective != 1 || r.Active != 0) {
			t.Errorf("status has %+v", r)
		}
	}
	for _, line := range []string{"realserver web 10.0.11.2 unknown up", "realserver web 10.0.12.2 unknown up",
		"service web - unknown up weight 2 is up, quorum 2",
		"realserver web " + map[string]string{"web1": "10.0.11.2", "web2": "10.0.12.2"}[home] +
			" up down port unreachable", "service web - up down weight 1 is up, quorum 2"} {
		testkit.Within(t, "the command has run for: "+line, soon, func() bool {
			text, err := os.ReadFile(told)
			return err == nil && strings.Contains(string(text), line)
		})
	}
	before, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	s.director.stop() // is no failure of any realserver
	if after, err := os.ReadFile(told); err != nil || string(after) != string(before) {
		t.Errorf("at its end the director tells %q, %v", strings.TrimPrefix(string(after), string(before)), err)
	}
}

// TestSorryServer: when the weight that is up falls below the quorum, new clients go to the sorry server. When the
// quorum is reached again, they go to the realservers.
func TestSorryServer(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.echoNamed(web, 53)
	}
	sorry := s.Webs[2]
	var servers []net.PacketConn
	for _, web := range s.Webs[:2] {
		servers = append(servers, s.alive(web))
	}
	toml := fmt.Sprintf(`
[[service]]
name = "dns"
vip = %q
protocol = "udp"
port = 53
scheduler = "rr"
quorum = 2
sorry_server = %q
check = { type = "udp", port = 9, send = "alive?", expect = "yes", %s }
realserver = [ { address = %q }, { address = %q } ]
`, s.VIP, sorry.Addr, quick, s.Webs[0].Addr, s.Webs[1].Addr)
	s.startDirectorWith(toml)
	s.awaitHealth("up up")
	client := s.dial("udp", 53)
	ask := func() string {
		t.Helper()
		for range 10 {
			if err := client.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("who?")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, err := client.Read(buf); err == nil {
				return string(buf[:n])
			}
		}
		t.Fatal("no answer")
		return ""
	}
	if got := ask(); got != "web1" && got != "web2" {
		t.Errorf("answered by %s", got)
	}
	servers[0].Close()
	testkit.Within(t, "the sorry server is in use", 2*soon, func() bool {
		return s.director.balance().Services[0].Sorry
	})
	if got := ask(); got != "web3" {
		t.Errorf("without quorum the same client is answered by %s, want the sorry server", got)
	}
	svc := s.director.balance().Services[0]
	if svc.Health != "down" || svc.WeightUp != 1 || svc.Quorum != 2 || len(svc.Realservers) != 3 ||
		svc.Realservers[2].Health != "unchecked" || svc.Realservers[2].Effective != 1 {
		t.Errorf("status has %+v", svc)
	}
	servers[0] = s.alive(s.Webs[0])
	testkit.Within(t, "the sorry server is not in use", 2*soon,
		func() bool { return !s.director.balance().Services[0].Sorry })
	if got := ask(); got != "web1" && got != "web2" {
		t.Errorf("with quorum the same client is answered by %s", got)
	}
}

// echoNamed answers each datagram to a port of the VIP with the host's name.
func (s *site) echoNamed(h *lab.Host, port uint16) {
	s.answerUDP(h, port, func([]byte) []byte { return []byte(h.Name) })
}

// alive answers "yes" on port 9 of the VIP.
func (s *site) alive(h *lab.Host) net.PacketConn {
	return s.answerUDP(h, 9, func([]byte) []byte { return []byte("yes") })
}

// TestLateAnswers: one realserver answers UDP checks after their timeout, another one never. No check takes the late
// answer to another check for its own, however few ports there are.
func TestLateAnswers(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents("")
	if err := s.Director.Sysctl("net.ipv4.ip_local_port_range", "40000 40199"); err != nil {
		t.Fatal(err)
	}
	late := s.listenUDP(s.Webs[0], s.at(9))
	var answered atomic.Int64
	var running sync.WaitGroup
	running.Go(func() {
		for {
			buf := make([]byte, 100)
			_, from, err := late.ReadFrom(buf)
			if err != nil {
				return
			}
			running.Go(func() {
				time.Sleep(150 * time.Millisecond)
				_, _ = late.WriteTo([]byte("yes"), from)
				answered.Add(1)
			})
		}
	})
	t.Cleanup(func() { late.Close(); running.Wait() })
	s.listenUDP(s.Webs[1], s.at(9)) // says nothing
	s.startDirectorWith(s.checkedTOML("", `type = "udp", port = 9, send = "alive?", expect = "yes", interval = `+
		`"100ms", timeout = "100ms", rise = 1, fall = 1`))
	n := int64(short(60, 30))
	testkit.Within(t, "many late answers", 6*soon, func() bool {
		// on a busy machine the late answer may be in time for once
		if got := s.health(); !strings.HasSuffix(got, " down") {
			t.Fatalf("the realservers are %s after %d late answers", got, answered.Load())
		}
		return answered.Load() >= n
	})
}

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// spread is directors behind a router that spreads flows over them.
type spread struct {
	*site
	hosts      []*lab.Host // of the directors
	spare      []*lab.Host // without a program
	directors  []*program
	second     *lab.Host // another router, which has a session with each director; nil: none
	scheduling string    // keys of the service
	tables     string    // further keys of [director], then tables
}

// newSpread builds the hosts of three directors, of these realservers and spare ones, and starts the realservers with
// keys of their agents. start starts the directors.
func newSpread(t *testing.T, realservers, spare int, agents func(s *spread) string) *spread {
	t.Helper()
	s := &spread{site: newSite(t, realservers+2+spare, nil)}
	s.scheduling = "scheduler = \"mh\"\nscheduler_flags = [\"mh-port\"]\norder = \"address\"\n"
	s.hosts = []*lab.Host{s.Director, s.Webs[realservers], s.Webs[realservers+1]}
	s.spare = s.Webs[realservers+2:]
	s.Webs = s.Webs[:realservers]
	s.sources = nil
	for _, h := range append(s.hosts, s.spare...) {
		s.sources = append(s.sources, h.Addr)
	}
	if err := s.Router.Sysctl("net.ipv4.fib_multipath_hash_policy", "1"); err != nil {
		t.Fatal(err)
	}
	s.startAgents(agents(s))
	for _, web := range s.Webs {
		s.namedEchoAt(web, ":80")
	}
	return s
}

// plain is no keys of agents.
func plain(*spread) string { return "" }

// start starts the directors with these realservers, and waits until the router sends flows to all of them.
func (s *spread) start(realservers ...*lab.Host) {
	s.t.Helper()
	for _, h := range s.hosts {
		s.add(h, realservers...)
	}
	s.awaitHops(s.VIP, s.hosts...)
	s.awaitBFD(s.directors...)
	s.director = s.directors[0]
}

// add starts the next director, on this host.
func (s *spread) add(h *lab.Host, realservers ...*lab.Host) {
	s.t.Helper()
	i := len(s.directors)
	s.directors = append(s.directors, s.prepare(h, "director"))
	s.configure(i, realservers...)
	s.directors[i].start()
}

// configure writes a director's file. The directors have the realservers in different orders, and choose the same one
// for a flow.
func (s *spread) configure(i int, realservers ...*lab.Host) {
	s.t.Helper()
	d := s.directors[i]
	var list []string
	for _, web := range realservers {
		list = append(list, fmt.Sprintf("{ address = %q }", web.Addr))
	}
	if i == 1 {
		slices.Reverse(list)
	}
	// The short form asks for no time, and a busy machine must end no session.
	interval := long(100*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond)
	bfd := fmt.Sprintf("bfd = { interval = %q }", interval)
	bgp := s.bgpTOML(d.host, bfd)
	if s.second != nil {
		bgp += peerTOML(atSecond(i, 1), bfd)
	}
	d.configure(fmt.Sprintf("[director]\ncontrol = %q\nunknown_flows = \"hash\"\n", d.socket) + s.tables + bgp +
		fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = [80, 81]\n"+
			"check = { type = \"tcp\", port = 80, initial = \"up\" }\n%srealserver = [%s]\n", s.VIP, s.scheduling,
			strings.Join(list, ", ")))
}

// mustLoseNothing wants that all requests since the last call were answered.
func (s *spread) mustLoseNothing(r *requests, what string) {
	s.t.Helper()
	r.await(s.t, 100)
	if all, late, failed := r.take(s.t); len(failed) > 0 {
		s.t.Errorf("%s: %d of %d requests failed, %d late: %v", what, len(failed), all, late, failed[0])
	}
}

// takeOutage returns how long after begin the last request began that was not answered at once.
func (r *requests) takeOutage(t *testing.T, begin time.Time) (last time.Duration, disturbed int) {
	t.Helper()
	for _, e := range r.taken(t) {
		if e.failed != nil || e.took > delayed {
			disturbed++
			last = max(last, e.begin.Sub(begin))
		}
	}
	return last, disturbed
}

// TestBGPSpread: three directors share the flows. One that stops or starts again breaks no request. One that is killed
// breaks requests only until BFD has found it. In the long form there is a second router, and the service loses its
// quorum in the end.
func TestBGPSpread(t *testing.T) {
	t.Parallel()
	routers := map[string]func(s *site, router *lab.Host, directors ...netip.Addr){
		"BIRD": (*site).birdOn, "FRR": (*site).frrOn}
	for name, other := range map[string]string{"BIRD": "FRR", "FRR": "BIRD"} {
		t.Run(name, func(t *testing.T) {
			if name == "FRR" {
				needFull(t, "TestBGP has FRR, too")
			}
			t.Parallel()
			s := newSpread(t, 2, long(1, 0, 0), plain)
			routers[name](s.site, s.Router, s.sources[:3]...)
			if full() {
				s.second = s.spare[0]
				routers[other](s.site, s.second, s.connect(s.second, s.hosts...)...)
			}
			s.start(s.Webs...)
			r := s.startRequests(long(500, 100, 50))
			r.await(t, 100)
			for _, d := range s.directors {
				if n := d.balance().In.Packets; n == 0 {
					t.Errorf("%s has got no packet", d)
				}
			}
			r.take(t)
			last := s.directors[2]
			last.stop()
			s.awaitHops(s.VIP, s.hosts[:2]...)
			s.mustLoseNothing(r, "a stop")
			last.start()
			s.awaitHops(s.VIP, s.hosts...)
			s.mustLoseNothing(r, "a start")

			begin := time.Now()
			last.kill()
			s.awaitHops(s.VIP, s.hosts[:2]...)
			found := time.Since(begin)
			r.await(t, 200)
			outage, disturbed := r.takeOutage(t, begin)
			t.Logf("after a kill -9: found after %v, the last disturbed request began after %v, %d disturbed",
				found.Round(time.Millisecond), outage.Round(time.Millisecond), disturbed)
			if full() && outage > time.Second {
				t.Errorf("requests were answered again only after %v, want 1s", outage)
			}
			s.mustLoseNothing(r, "two directors")
			if full() {
				last.start()
				s.awaitHops(s.VIP, s.hosts...)
				s.awaitBFD(s.directors...)
				s.freeze(r)
				r.stop()
				s.loseQuorum()
			}
		})
	}
}

// freeze stops the second director for a second, which BFD finds. Then each session comes back once.
func (s *spread) freeze(r *requests) {
	s.t.Helper()
	d := s.directors[1]
	before := d.balance().BGP.Peers
	r.take(s.t)
	begin := time.Now()
	d.signal(unix.SIGSTOP)
	s.awaitHops(s.VIP, s.hosts[0], s.hosts[2])
	time.Sleep(time.Until(begin.Add(time.Second)))
	d.signal(unix.SIGCONT)
	r.await(s.t, 200)
	outage, disturbed := r.takeOutage(s.t, begin)
	s.awaitHops(s.VIP, s.hosts...)
	s.awaitBFD(d)
	s.t.Logf("a director without CPU for 1s: the last disturbed request began after %v, %d disturbed",
		outage.Round(time.Millisecond), disturbed)
	for i, p := range d.balance().BGP.Peers {
		if p.Ups != before[i].Ups+1 || p.Downs != before[i].Downs+1 {
			s.t.Errorf("a session before and after a director had no CPU for 1s: %+v, %+v", before[i], p)
		}
	}
	s.mustLoseNothing(r, "a director that has CPU again")
}

// loseQuorum ends all realservers. Both routers lose each director's route within a second after the director finds
// that the service is down.
func (s *spread) loseQuorum() {
	s.t.Helper()
	testkit.Eventually(s.t, "the second router has all routes", func() bool {
		return len(s.hopsAt(s.second, s.VIP)) == len(s.hosts)
	})
	for i := range s.Webs {
		s.die(i)
	}
	down, late := make([]time.Time, len(s.directors)), make([]time.Duration, len(s.directors))
	testkit.Within(s.t, "no router has a route", 3*soon, func() bool {
		for i, d := range s.directors {
			if down[i].IsZero() && d.balance().Services[0].Health == "down" {
				down[i] = time.Now()
			}
		}
		first, second := s.nextHops(s.VIP), s.hopsAt(s.second, s.VIP)
		for i, h := range s.hosts {
			if !down[i].IsZero() && (slices.Contains(first, h.Addr.String()) ||
				slices.Contains(second, atSecond(i, 2).String())) {
				late[i] = time.Since(down[i])
			}
		}
		return len(first)+len(second) == 0
	})
	s.t.Logf("withdrawn at both routers within %v after the quorum was lost", slices.Max(late))
	if slices.Max(late) > time.Second {
		s.t.Errorf("withdrawn within %v after the quorum was lost, want 1s", late)
	}
}

// quiet is what a director takes without traffic.
type quiet struct {
	memory int // KiB
	cpu    time.Duration
}

// quietWith starts a director with this TOML, measures it, and stops it. Only the long form measures.
func (s *site) quietWith(config string) (q quiet) {
	s.t.Helper()
	if !full() {
		return q
	}
	s.startDirectorWith(config)
	defer s.director.stop()
	return s.measureQuiet()
}

// measureQuiet measures the director.
func (s *site) measureQuiet() (q quiet) {
	s.t.Helper()
	time.Sleep(quietTime)
	before := s.cpuTime()
	time.Sleep(quietTime)
	return quiet{s.resident(), s.cpuTime() - before}
}

// quietTime is the time for which a director without traffic is measured.
const quietTime = 10 * time.Second

// compareQuiet measures what BGP adds to a director without it.
func (s *site) compareQuiet(without quiet) {
	s.t.Helper()
	if !full() {
		return
	}
	with := s.measureQuiet()
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / quietTime.Seconds() }
	memory, cpu := (with.memory-without.memory)>>10, share(with.cpu-without.cpu)
	s.t.Logf("without traffic BGP adds %d MB to %d MB, and %.1f %% of a core to %.1f %%", memory, without.memory>>10,
		cpu, share(without.cpu))
	if memory > 60 || cpu > 1 {
		s.t.Errorf("want 60 MB and 1 %% of a core at most")
	}
}

// resident returns the memory of the director, in KiB.
func (s *site) resident() (kib int) {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.director.balance().Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssAnon:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		s.t.Fatal(err)
	}
	return kib
}

// cpuTime returns the CPU time that the director has taken.
func (s *site) cpuTime() time.Duration {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.director.balance().Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	const utime, stime, jiffy = 11, 12, 10 * time.Millisecond // proc_pid_stat(5)
	user, errUser := strconv.Atoi(fields[utime])
	system, errSystem := strconv.Atoi(fields[stime])
	if errUser != nil || errSystem != nil {
		s.t.Fatalf("%s", text)
	}
	return time.Duration(user+system) * jiffy
}

// TestBGPManyVIPs: reloads of services disturb no session, and no route of another service.
func TestBGPManyVIPs(t *testing.T) {
	t.Parallel()
	const perService = 10
	services, reloads := long(100, 100, 30), long(100, 20, 5)
	s := newSite(t, 1, nil)
	s.bird(s.Director)
	toml := func(bgp string, generation int) string {
		var b strings.Builder
		b.WriteString(bgp)
		for i := range services {
			var vips []netip.Addr
			for n := range perService {
				vips = append(vips, netip.AddrFrom4([4]byte{203, 0, byte(i), byte(n + 1)}))
			}
			port := 80
			if i >= generation*10%services && i < generation*10%services+10 { // ten services change
				port = 8080
			}
			fmt.Fprintf(&b, "[[service]]\nname = \"s%d\"\nvip = [%s]\nprotocol = \"tcp\"\nport = %d\n"+
				"realserver = [{ address = %q }]\n", i, quoted(vips), port, s.Webs[0].Addr)
		}
		return b.String()
	}
	bgp := s.bgpTOML(s.Director, "bfd = { interval = \"300ms\" }")
	without := s.quietWith(toml("", 0))
	begin := time.Now()
	s.startDirectorWith(toml(bgp, 0))
	routes := func() int { return strings.Count(s.birdc("show route protocol director1"), "[director1") }
	testkit.Eventually(t, "all routes", func() bool { return routes() == services*perService })
	t.Logf("%d routes %v after the start", services*perService, time.Since(begin).Round(time.Millisecond))
	s.compareQuiet(without)
	for n := 1; n <= reloads; n++ {
		s.director.configure(s.fileWith(toml(bgp, n)))
		s.mustReload()
		if got := routes(); got != services*perService {
			t.Fatalf("%d routes after reload %d, want %d", got, n, services*perService)
		}
	}
	if p := sessionOf(t, s.director); p.Ups != 1 || p.Downs != 0 || p.Announced != services*perService {
		t.Errorf("the session has not gone on: %+v", p)
	}
	updates := s.birdc("show protocols all director1")
	_, updates, _ = strings.Cut(updates, "Import updates:")
	var received, rejected, filtered, ignored, accepted int
	if _, err := fmt.Sscan(updates, &received, &rejected, &filtered, &ignored, &accepted); err != nil ||
		received != services*perService {
		t.Errorf("the router has got %d updates, %v; want %d: a reload has sent routes again", received, err,
			services*perService)
	}
}

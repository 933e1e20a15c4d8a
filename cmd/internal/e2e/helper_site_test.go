package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer/keep"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

const (
	soon = 10 * time.Second      // deadline of steps that take milliseconds on an idle machine
	tick = 10 * time.Millisecond // between two polls
)

// short returns n, or less with -short.
func short[N int | time.Duration](n, less N) N {
	if testing.Short() {
		return less
	}
	return n
}

// full reports whether tests have their long forms.
func full() bool { return os.Getenv("VSTUN_FULL") != "" }

// long returns n with VSTUN_FULL=1, else usual, or less with -short.
func long[N int | time.Duration](n, usual, less N) N {
	if full() {
		return n
	}
	return short(usual, less)
}

// slowWithRace skips a test that takes long with the race detector, and whose code other tests run with it, too.
func slowWithRace(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("SKIPPED: takes long with the race detector: make test runs it")
	}
}

// needFull skips a test for a reason, unless VSTUN_FULL=1 is set.
func needFull(t *testing.T, why string) {
	t.Helper()
	if !full() {
		t.Skipf("SKIPPED: %s: set VSTUN_FULL=1", why)
	}
}

// site is a lab with our programs. Everything that its methods start ends with the test.
type site struct {
	*lab.Lab
	t        *testing.T
	dir      string
	method   method       // how the director forwards
	unmapped bool         // the realservers of nat have the VIP's ports
	vips     []netip.Addr // destinations that the agents accept
	sources  []netip.Addr // sources that the agents accept
	director *program
	agents   []*program // in the order of Webs
}

// newSite builds the hosts, without programs, for the method tun.
func newSite(t *testing.T, webs int, links map[string]lab.Link) *site {
	t.Helper()
	return newSiteBy(t, tun, webs, links)
}

// newSiteBy is newSite for a forwarding method.
func newSiteBy(t *testing.T, m method, webs int, links map[string]lab.Link) *site {
	t.Helper()
	needMachine(t)
	name := strings.NewReplacer("Test", "", "/", "-").Replace(t.Name())
	prefix := fmt.Sprintf("e2e%d-%s", os.Getpid(), name)
	l, err := lab.New(lab.Spec{Prefix: prefix[:min(len(prefix), 40)], Webs: webs, Network: m.network(), Links: links})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return &site{Lab: l, t: t, dir: t.TempDir(), method: m, vips: []netip.Addr{l.VIP},
		sources: []netip.Addr{l.Director.Addr}}
}

// addIPv6 lets the agents also accept packets to the IPv6 VIP, and tunnels over IPv6. It must be called before they
// start.
func (s *site) addIPv6() {
	s.vips, s.sources = append(s.vips, s.VIP6), append(s.sources, s.Director.Addr6)
}

// speak replaces the site's VIP and its hosts' addresses by the IPv6 ones, if ipv6 is true. It must be called first.
func (s *site) speak(ipv6 bool) {
	if !ipv6 {
		return
	}
	s.VIP = s.VIP6
	for _, h := range append([]*lab.Host{s.Client, s.Director}, s.Webs...) {
		h.Addr = h.Addr6
	}
	if s.Insider != nil {
		s.Insider.Addr = s.Insider.Addr6
	}
	s.vips, s.sources = []netip.Addr{s.VIP}, []netip.Addr{s.Director.Addr}
}

// newRunningSite builds the hosts and starts a director with these services and an agent on each web server.
func newRunningSite(t *testing.T, webs int, services ...service) *site {
	t.Helper()
	return newRunningSiteOf(t, false, webs, services...)
}

// newRunningSiteOf is newRunningSite with IPv4 or IPv6.
func newRunningSiteOf(t *testing.T, ipv6 bool, webs int, services ...service) *site {
	t.Helper()
	s := newSite(t, webs, nil)
	s.speak(ipv6)
	s.startAgents("")
	s.startDirector("", services...)
	return s
}

// service is a [[service]] on the VIP. The weights belong to the web servers, in their order. A web server with a
// negative weight is left out.
type service struct {
	protocol  string
	ports     string // in TOML
	scheduler string
	weights   []int
}

// directorTOML returns a director's configuration. more is TOML between [director] and the services.
func (s *site) directorTOML(socket, more string, services ...service) string {
	text := fmt.Sprintf("[director]\ncontrol = %q\n%s\n", socket, more)
	for i, svc := range services {
		text += fmt.Sprintf("[[service]]\nname = \"s%d\"\nvip = %q\nprotocol = %q\nport = %s\nscheduler = %q\n%s",
			i+1, s.VIP, svc.protocol, svc.ports, svc.scheduler, s.method.keys())
		var all []string
		for i, w := range svc.weights {
			if w >= 0 {
				all = append(all, s.realserver(i, svc.ports, fmt.Sprintf("weight = %d", w)))
			}
		}
		text += fmt.Sprintf("realserver = [ %s ]\n", strings.Join(all, ", "))
	}
	return text
}

// agentTOML returns a realserver's configuration. more is further keys of [realserver].
func (s *site) agentTOML(socket, more string) string {
	return fmt.Sprintf("[realserver]\nvips = [%s]\ndirectors = [%s]\ncontrol = %q\n%s\n", quoted(s.vips),
		quoted(s.sources), socket, more)
}

// startDirector starts the director and waits until it is up.
func (s *site) startDirector(more string, services ...service) {
	s.t.Helper()
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.directorTOML(s.director.socket, more, services...))
	s.director.start()
}

// startAgents starts an agent on each web server and waits until they are up. A realserver of VS/NAT needs none.
func (s *site) startAgents(more string) {
	s.t.Helper()
	switch s.method {
	case dr:
		more = "encap = []"
	case nat:
		return
	}
	for _, web := range s.Webs {
		s.startAgent(web, more)
	}
}

// startAgent starts the next agent.
func (s *site) startAgent(web *lab.Host, more string) {
	s.t.Helper()
	p := s.prepare(web, "realserver")
	p.configure(s.agentTOML(p.socket, more))
	p.start()
	s.agents = append(s.agents, p)
}

// count counts packets until the end of the test.
func (s *site) count(h *lab.Host, link string, f lab.Filter) func() uint64 {
	s.t.Helper()
	c, err := h.Count(link, f)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return func() uint64 {
		s.t.Helper()
		n, err := c.Packets()
		if err != nil {
			s.t.Fatal(err)
		}
		return n
	}
}

// program is one of our programs on a host. Its control socket has a directory of its own.
type program struct {
	*lab.Process
	t      *testing.T
	host   *lab.Host
	name   string // "director", "realserver"
	config string // path
	socket string // path
	ending bool   // the test has ended it
}

// prepare returns a program that is not started.
func (s *site) prepare(h *lab.Host, name string) *program {
	s.t.Helper()
	return newProgram(s.t, h, name, filepath.Join(s.dir, h.Name+".toml"), filepath.Join(s.dir, h.Name, "c.sock"))
}

func newProgram(t *testing.T, h *lab.Host, name, config, socket string) *program {
	t.Helper()
	return &program{t: t, host: h, name: name, config: config, socket: socket}
}

// configure writes the configuration file.
func (p *program) configure(text string) {
	p.t.Helper()
	if err := os.WriteFile(p.config, []byte(withFastPath(p.name, text)), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) String() string { return p.host.Name + "'s " + p.name }

// start starts the program and waits until it answers on its control socket. At the end of the test the program must
// still run, and end with exit status 0.
func (p *program) start() {
	p.t.Helper()
	p.startAs(exec.Command(programPath(p.name), "run", "-c", p.config))
}

// startAs is start by another command, which runs the program.
func (p *program) startAs(cmd *exec.Cmd) {
	p.t.Helper()
	process, err := p.host.Start(cmd)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Process, p.ending = process, false
	p.removeTable()
	p.t.Cleanup(func() {
		if p.Process == process && !p.ending {
			p.stop()
		}
		if strings.Contains(process.Output(), "DATA RACE") {
			p.t.Errorf("%s has a data race", p)
		}
		if p.t.Failed() {
			p.t.Logf("the end of what %s wrote:\n%s", p, process.Output())
		}
	})
	testkit.Within(p.t, p.String()+" is up", 3*soon, func() bool {
		select {
		case <-process.Done():
			p.ending = true
			p.t.Fatalf("%s ended before it was up: %v\n%s", p, process.Wait(), process.Output())
		default:
		}
		var ignored struct{}
		return p.get(&ignored) == nil
	})
}

// removeTable removes the connection table, which outlives the program, at the end of the test.
func (p *program) removeTable() {
	p.t.Helper()
	p.t.Cleanup(func() {
		if err := keep.Remove(keep.Path(p.socket, ".table")); err != nil {
			p.t.Error(err)
		}
	})
}

// stop ends the program with SIGTERM. It must have run until now, and end with exit status 0.
func (p *program) stop() {
	p.t.Helper()
	p.ending = true
	select {
	case <-p.Done():
		p.t.Errorf("%s had ended by itself: %v", p, p.Wait())
	default:
	}
	if err := p.Stop(); err != nil {
		p.t.Errorf("%s did not end with exit status 0: %v", p, err)
	}
}

// kill ends the program with SIGKILL.
func (p *program) kill() {
	p.t.Helper()
	p.ending = true
	p.signal(unix.SIGKILL)
	<-p.Done()
}

func (p *program) signal(sig unix.Signal) {
	p.t.Helper()
	if err := p.Signal(sig); err != nil {
		p.t.Fatalf("%s: %v: %v", p, sig, err)
	}
}

func (p *program) get(into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	return api.Get(ctx, p.socket, "/status", into)
}

// mustGet is get, and fails the test if that fails. A program that does not answer writes where its goroutines are, and
// ends.
func (p *program) mustGet(into any) {
	p.t.Helper()
	err := p.get(into)
	if errors.Is(err, api.ErrSilent) && p.Signal(unix.SIGQUIT) == nil {
		select {
		case <-p.Done():
			p.ending = true
		case <-time.After(soon):
		}
	}
	if err != nil {
		p.t.Fatalf("status of %s: %v", p, err)
	}
}

// balance returns a director's status.
func (p *program) balance() (st api.DirectorStatus) {
	p.t.Helper()
	p.mustGet(&st)
	return st
}

// intake returns an agent's status.
func (p *program) intake() (st api.RealserverStatus) {
	p.t.Helper()
	p.mustGet(&st)
	return st
}

// mustLetIn waits until an agent has let in this number of bytes, and fails the test if it refused a packet. An agent
// counts a batch when its packets are with the server, which may have answered by then.
func (p *program) mustLetIn(bytes int) {
	p.t.Helper()
	testkit.Within(p.t, fmt.Sprintf("%s has let in %d bytes", p, bytes), soon,
		func() bool { return p.intake().Out.Bytes >= uint64(bytes) })
	if in := p.intake(); len(in.Drops) != 0 || in.Overruns != 0 {
		p.t.Errorf("%s refused %v, %d overruns; want nothing and 0", p, in.Drops, in.Overruns)
	}
}

// descriptors returns the number of the program's open descriptors.
func (p *program) descriptors() int {
	p.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(fds)
}

// sum returns the total of all reasons.
func sum(drops map[string]uint64) (n uint64) {
	for _, d := range drops {
		n += d
	}
	return n
}

// result is the result of a command.
type result struct {
	code           int
	stdout, stderr string
}

// run runs a command on a host to its end.
func run(t *testing.T, h *lab.Host, cmd *exec.Cmd) result {
	t.Helper()
	return runFor(t, h, cmd, 30*time.Second)
}

// runFor is run with another deadline than its half minute.
func runFor(t *testing.T, h *lab.Host, cmd *exec.Cmd, deadline time.Duration) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	late := time.NewTimer(deadline)
	defer late.Stop()
	select {
	case <-p.Done():
	case <-late.C:
		err := p.Stop()
		t.Fatalf("%v did not end within %v (then: %v)\n%s%s", cmd.Args, deadline, err, stdout.Bytes(), stderr.Bytes())
	}
	code := 0
	if err := p.Wait(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			t.Fatalf("%v: %v", cmd.Args, err)
		}
		code = exit.ExitCode()
	}
	return result{code, stdout.String(), stderr.String()}
}

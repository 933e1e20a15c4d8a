package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// Ports of the services of TestAgentReload, one for each tunnel.
const (
	webPort, downloadPort, echoPort              = 80, 81, 53 // ipip, as the second VIP and that of IPv6
	grePort, guePort, fouPort, ipv6Port, bothVIP = 1001, 1002, 1003, 1004, 1005
)

// TestAgentReload changes every key that a reload of an agent can change, in its unit's sandbox, while requests,
// uploads, downloads and datagrams pass by another VIP. None is lost, added keys work, a refused file changes nothing,
// and 30 reloads leak nothing: 100 with VSTUN_FULL=1 (`make long`).
func TestAgentReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	web, second := s.Webs[0], netip.MustParseAddr("198.51.100.81")
	if err := s.Router.Route(second, s.Director.Addr); err != nil {
		t.Fatal(err)
	}
	before := s.observeAll()
	agent := s.startShutIn()
	initial := observe(t, web)
	s.startDirectorWith(s.reloadDirectorTOML(second, 7))
	s.acceptUploadsAt(web, s.at(webPort))
	s.serveTCP(web, s.at(downloadPort), func(c net.Conn) { _, _ = io.CopyN(c, stream(), downloadSize) })
	s.echoUDP(web, echoPort)
	for _, port := range []int{grePort, guePort, fouPort, ipv6Port, bothVIP} {
		s.namedEchoAt(web, fmt.Sprintf(":%d", port))
	}

	load := s.putLoad()
	both, sources := []netip.Addr{s.VIP, second, s.VIP6}, []netip.Addr{s.Director.Addr, s.Director.Addr6}
	variants := []struct {
		vips, sources []netip.Addr
		more          string
		says          []string
		reach         string // "": nothing new
	}{
		{both[:2], sources[:1], "", []string{"vip 198.51.100.81: added"}, fmt.Sprintf("%s:%d", second, bothVIP)},
		{both, sources[:1], "", []string{"vip " + s.VIP6.String() + ": added"},
			fmt.Sprintf("[%s]:%d", s.VIP6, bothVIP)},
		{both, sources, "", []string{"director " + s.Director.Addr6.String() + ": added"}, s.at(ipv6Port)},
		{both[:1], sources[:1], `encap = ["ipip", "gre"]` + "\nencap_key = 7",
			[]string{"vip 198.51.100.81: removed", "vip " + s.VIP6.String() + ": removed",
				"director " + s.Director.Addr6.String() + ": removed", "encap ipip -> ipip,gre", "encap_key none -> 7"},
			s.at(grePort)},
		{both[:1], sources[:1], `encap = ["ipip", "gue"]`,
			[]string{"encap ipip,gre -> ipip,gue", "encap_key 7 -> none"}, s.at(guePort)},
		{both[:1], sources[:1], `encap = ["fou", "ipip"]` + "\nencap_port = 6081",
			[]string{"encap ipip,gue -> fou,ipip", "encap_port 6080 -> 6081"}, s.at(fouPort)},
		{both[:1], sources[:1], "mss = 1000\nlog = \"debug\"",
			[]string{"encap fou,ipip -> ipip", "encap_port 6081 -> 6080", "mss auto -> 1000", "log info -> debug"}, ""},
		{both[:1], sources[:1], "mss = \"off\"\nmetrics = \"127.0.0.1:9465\"",
			[]string{"mss 1000 -> off", "metrics none -> 127.0.0.1:9465", "log debug -> info"}, ""},
		{both[:1], sources[:1], "table = 30324",
			[]string{"mss off -> auto", "table 30323 -> 30324", "metrics 127.0.0.1:9465 -> none"}, ""},
		{both[:1], sources[:1], "", []string{"table 30324 -> 30323"}, ""},
	}
	configure := func(i int) {
		v := variants[i%len(variants)]
		s.vips, s.sources = v.vips, v.sources
		agent.configure(s.agentTOML(agent.socket, v.more))
	}
	for i, v := range variants {
		configure(i)
		if got := agent.command("reload"); got.code != 0 || got.stdout != strings.Join(v.says, "\n")+"\n" {
			t.Errorf("reload: exit status %d\n%s%swant\n%s",
				got.code, got.stdout, got.stderr, strings.Join(v.says, "\n"))
		}
		if v.reach != "" {
			s.mustReach(v.reach)
		}
		if strings.HasPrefix(v.more, "mss = 1000") {
			if n := sendMSS(t, s.dial("tcp", webPort)); n > 1000 || n < 900 {
				t.Errorf("with mss = 1000 segments have %d bytes", n)
			}
		}
		if strings.Contains(v.more, "encap_key = 7") { // another key, to which the director changes
			agent.configure(s.agentTOML(agent.socket, strings.Replace(v.more, "7", "8", 1)))
			if got := agent.command("reload"); got.stdout != "encap_key 7 -> 8\n" {
				t.Errorf("another key: %+v", got)
			}
			s.reloadWith(s.reloadDirectorTOML(second, 8))
			s.mustReach(v.reach)
			agent.configure(s.agentTOML(agent.socket, v.more))
			if got := agent.command("reload"); got.code != 0 {
				t.Error(got.stderr)
			}
		}
	}
	if got := agent.command("reload"); got.code != 0 || got.stdout != "nothing changed\n" {
		t.Errorf("the same file again: %+v", got)
	}
	if now := observe(t, web); fmt.Sprint(now) != fmt.Sprint(initial) {
		t.Errorf("with the first configuration again the host is\n%v\nand was\n%v", now, initial)
	}

	was := agent.intake()
	for _, c := range []struct {
		name string
		vips []netip.Addr
		more string
		says []string // a line each
	}{
		{"faults", both[:2], "mss = 7\ncolour = 1", []string{"mss", "colour"}},
		{"another device", both[:2], `tun = "vs7"`, []string{"tun changed"}},
		{"more queues", both[:2], "queues = 77", []string{"queues changed"}},
		{"a port that takes a capability", both[:2], "encap = [\"gue\"]\nencap_port = 500", []string{"encap_port"}},
		{"a host's own address", []netip.Addr{s.VIP, web.Addr}, "", []string{web.Addr.String()}},
		{"a table in use", both[:2], "table = 254", []string{"table"}},
		{"an address of another host", both[:2], `metrics = "192.0.2.99:9465"`, []string{"192.0.2.99:9465"}},
	} {
		s.vips = c.vips
		agent.configure(s.agentTOML(agent.socket, c.more))
		got := agent.command("reload")
		lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
		if got.code != 1 || got.stdout != "" || len(lines) != len(c.says) {
			t.Errorf("%s: exit status %d, want 1 and %d lines:\n%s%s",
				c.name, got.code, len(c.says), got.stdout, got.stderr)
		}
		for _, word := range c.says {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("%s: %s does not speak of %s", c.name, got.stderr, word)
			}
		}
		now := agent.intake()
		if !slices.Equal(now.VIPs, was.VIPs) || now.MSS != was.MSS || now.Configuration.Error == "" ||
			!now.Configuration.Read.Equal(was.Configuration.Read) {
			t.Errorf("%s: the agent has changed: %+v", c.name, now)
		}
		if now := observe(t, web); fmt.Sprint(now) != fmt.Sprint(initial) {
			t.Errorf("%s: the host is\n%v\nand was\n%v", c.name, now, initial)
		}
	}

	for i := range variants { // maps and buffers have grown once
		configure(i)
		agent.mustReloadBySignal()
	}
	beforeAll := agent.leftovers()
	for i := range long(100, 30, 20) {
		configure(i)
		agent.mustReloadBySignal()
	}
	configure(len(variants) - 1)
	agent.mustReloadBySignal()
	var afterAll leftovers
	testkit.Within(t, "nothing is left behind", 6*soon, func() bool {
		afterAll = agent.leftovers()
		return afterAll.goroutines <= beforeAll.goroutines && afterAll.descriptors <= beforeAll.descriptors
	})
	t.Logf("%+v after all, %+v before", afterAll, beforeAll)

	load.mustBeWhole()
	now := agent.intake()
	// The end of a connection by a former key or tunnel may arrive after the reload that replaced it. The agent may
	// also read it after that reload, from a socket that the reload closes.
	delete(now.Drops, "tunnel_key")
	delete(now.Drops, "outer_header")
	delete(now.Drops, "not_ipv4") // by gue, where now fou is expected
	if len(now.Drops) != 0 || now.Overruns != 0 {
		t.Errorf("the agent has dropped %v, and lost %d", now.Drops, now.Overruns)
	}
	for _, p := range []*program{agent, s.director} {
		p.stop()
	}
	mustBe(t, "at the end", before, s.observeAll())
}

// reloadDirectorTOML returns a director's services by every tunnel, with this key of gre.
func (s *site) reloadDirectorTOML(second netip.Addr, key int) string {
	rs := fmt.Sprintf("realserver = [ { address = %q } ]\n", s.Webs[0].Addr)
	rs6 := fmt.Sprintf("realserver = [ { address = %q } ]\n", s.Webs[0].Addr6)
	svc := func(name, protocol, vip, port, more string) string {
		return fmt.Sprintf("[[service]]\nname = %q\nprotocol = %q\nvip = %s\nport = %s\n%s",
			name, protocol, vip, port, more)
	}
	vip := fmt.Sprintf("%q", s.VIP)
	return svc("web", "tcp", vip, fmt.Sprintf("[%d, %d]", webPort, downloadPort), rs) +
		svc("echo", "udp", vip, fmt.Sprint(echoPort), rs) +
		svc("others", "tcp", fmt.Sprintf("[%q, %q]", second, s.VIP6), fmt.Sprint(bothVIP), rs) +
		svc("gre", "tcp", vip, fmt.Sprint(grePort), fmt.Sprintf("encap = \"gre\"\nencap_key = %d\n", key)+rs) +
		svc("gue", "tcp", vip, fmt.Sprint(guePort), "encap = \"gue\"\n"+rs) +
		svc("fou", "tcp", vip, fmt.Sprint(fouPort), "encap = \"fou\"\nencap_port = 6081\n"+rs) +
		svc("six", "tcp", vip, fmt.Sprint(ipv6Port), rs6)
}

// startShutIn starts the agent of the first web server in its unit's sandbox.
func (s *site) startShutIn() *program {
	s.t.Helper()
	p := s.prepare(s.Webs[0], "realserver")
	p.configure(s.agentTOML(p.socket, ""))
	s.agents = []*program{p}
	if raceDetector { // which has needs of its own
		p.start()
		return p
	}
	needTool(s.t, "systemd-analyze", "systemd")
	s.openDir()
	dir := filepath.Dir(p.socket)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, unprivileged, unprivileged)); err != nil {
		s.t.Fatal(err)
	}
	p.startAs(p.inUnit())
	p.mustHaveOnlyNetAdmin(p.startBounding())
	return p
}

// command runs a command of the program, such as `realserver reload`.
func (p *program) command(words ...string) result {
	p.t.Helper()
	return run(p.t, p.host, exec.Command(programPath(p.name), append(words, "-c", p.config)...))
}

// mustReloadBySignal sends SIGHUP, and waits until the file is in force.
func (p *program) mustReloadBySignal() {
	p.t.Helper()
	was := p.intake().Configuration
	p.signal(unix.SIGHUP)
	testkit.Within(p.t, p.String()+" has read its file", 3*soon, func() bool {
		c := p.intake().Configuration
		if c.Error != "" && c.Error != was.Error {
			p.t.Fatalf("reload: %s", c.Error)
		}
		return c.Read.After(was.Read)
	})
}

// mustReach sends a request to the named echo server at an address.
func (s *site) mustReach(address string) {
	s.t.Helper()
	c, err := s.Client.Dial("tcp", address)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer c.Close()
	if server, err := askName(c, "hello"); err != nil || server != s.Webs[0].Name {
		s.t.Errorf("%s is answered by %q, %v", address, server, err)
	}
}

// downloadSize and uploadSize are the bytes of one transfer.
const downloadSize, uploadSize = 1 << 20, 1 << 20

// steadyLoad is the traffic of clients until the test ends.
type steadyLoad struct {
	t         *testing.T
	requests  *visitors
	stop      func()
	uploads   atomic.Int64
	downloads atomic.Int64
	sent      atomic.Int64 // datagrams
	answered  atomic.Int64
}

// putLoad starts requests, uploads, downloads and datagrams, one of each at a time, with a pause between two.
func (s *site) putLoad() *steadyLoad {
	s.t.Helper()
	l := &steadyLoad{t: s.t, requests: s.visit(20)}
	done := make(chan struct{})
	var running sync.WaitGroup
	again := func(count *atomic.Int64, period time.Duration, once func() error) {
		running.Go(func() {
			pace := time.NewTicker(period)
			defer pace.Stop()
			for {
				select {
				case <-done:
					return
				case <-pace.C:
				}
				if err := once(); err != nil {
					s.t.Error(err)
					return
				}
				count.Add(1)
			}
		})
	}
	dial := func(port uint16) (net.Conn, error) {
		c, err := s.Client.Dial("tcp", s.at(port))
		if err == nil {
			err = c.SetDeadline(time.Now().Add(6 * soon))
		}
		return c, err
	}
	again(&l.uploads, 20*time.Millisecond, func() error {
		c, err := dial(webPort)
		if err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		defer c.Close()
		answer, err := put(c, uploadSize)
		if want := fmt.Sprintf("%d bytes, all as they should be", uploadSize); err != nil || answer != want {
			return fmt.Errorf("upload: %q, %w", answer, err)
		}
		return nil
	})
	want := make([]byte, downloadSize)
	_, _ = io.ReadFull(stream(), want) // never fails
	again(&l.downloads, 20*time.Millisecond, func() error {
		c, err := dial(downloadPort)
		if err != nil {
			return fmt.Errorf("download: %w", err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("download: %d bytes, %w", len(got), err)
		}
		return nil
	})
	echo, err := s.Client.Dial("udp", s.at(echoPort))
	if err != nil {
		s.t.Fatal(err)
	}
	again(&l.sent, 2*time.Millisecond, func() error {
		_, err := fmt.Fprintf(echo, "datagram %d", l.sent.Load())
		return err
	})
	go func() { // ends with echo
		for b := make([]byte, 2048); ; {
			if _, err := echo.Read(b); err != nil {
				return
			}
			l.answered.Add(1)
		}
	}()
	l.stop = sync.OnceFunc(func() { close(done); running.Wait() })
	s.t.Cleanup(func() { l.stop(); echo.Close() })
	return l
}

// mustBeWhole ends the load, and fails the test if a part of it was lost.
func (l *steadyLoad) mustBeWhole() {
	l.t.Helper()
	l.stop()
	l.requests.stop()
	deadline := time.Now().Add(soon)
	for l.answered.Load() != l.sent.Load() && time.Now().Before(deadline) {
		time.Sleep(tick)
	}
	l.t.Logf("%d requests, %d uploads, %d downloads, %d datagrams",
		l.requests.asked, l.uploads.Load(), l.downloads.Load(), l.sent.Load())
	if sent, answered := l.sent.Load(), l.answered.Load(); sent != answered || sent == 0 {
		l.t.Errorf("%d datagrams of %d were answered", answered, sent)
	}
	if len(l.requests.failed) > 0 || l.requests.asked == 0 || l.uploads.Load() == 0 || l.downloads.Load() == 0 {
		l.t.Errorf("%d requests, failures %v; %d uploads, %d downloads",
			l.requests.asked, l.requests.failed, l.uploads.Load(), l.downloads.Load())
	}
}

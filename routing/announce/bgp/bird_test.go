package bgp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vstun/routing/announce"
	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// bird is BIRD on another host at a link of its own. This host has the addresses 10.0.N.1 and 2001:db8:N::1 there, the
// other one 10.0.N.2 and 2001:db8:N::2.
type bird struct {
	t      *testing.T
	number int
	ns     netns.NsHandle
	dir    string
	cmd    *exec.Cmd
	static []string // prefixes of routes that it sends
}

var birds int // that have been made

// newBird makes the link and the other host. run runs BIRD there.
func newBird(t *testing.T) *bird {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		t.Skip("SKIPPED: needs root, to make a network namespace")
	}
	if _, err := exec.LookPath("bird"); err != nil {
		t.Skip("SKIPPED: needs BIRD 2")
	}
	birds++
	b := &bird{t: t, number: birds, dir: t.TempDir()}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ours, err := netns.Get()
	kerneltest.Must(t, err)
	defer ours.Close()
	b.ns, err = netns.New()
	kerneltest.Must(t, err)
	t.Cleanup(func() { b.ns.Close() })
	kerneltest.Must(t, netns.Set(ours))
	name := fmt.Sprint("eth", b.number)
	kerneltest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: kerneltest.Named(name), PeerName: "eth0",
		PeerNamespace: netlink.NsFd(b.ns)}))
	t.Cleanup(func() { _ = netlink.LinkDel(kerneltest.LinkOf(t, name)) })
	b.configure(name, 1)
	b.in(func() { b.configure("eth0", 2) })
	return b
}

// in calls fn in the other host's namespace.
func (b *bird) in(fn func()) {
	b.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ours, err := netns.Get()
	kerneltest.Must(b.t, err)
	defer ours.Close()
	kerneltest.Must(b.t, netns.Set(b.ns))
	defer func() { kerneltest.Must(b.t, netns.Set(ours)) }()
	fn()
}

func (b *bird) configure(device string, host int) {
	kerneltest.LinkUp(b.t, device)
	for _, a := range []string{"10.0.%d.%d/24", "2001:db8:%d::%d/64"} {
		at, err := netlink.ParseAddr(fmt.Sprintf(a, b.number, host))
		kerneltest.Must(b.t, err)
		if at.IP.To4() == nil {
			at.Flags = syscall.IFA_F_NODAD
		}
		kerneltest.Must(b.t, netlink.AddrAdd(kerneltest.LinkOf(b.t, device), at))
	}
}

// addr returns an address at the link: of host 1 or 2.
func (b *bird) addr(host int, ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", b.number, host))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", b.number, host))
}

// run runs BIRD with a session with this host. statements are those of its protocol.
func (b *bird) run(as, peerAS uint32, ipv6 bool, statements string) {
	b.t.Helper()
	var routes strings.Builder
	for _, p := range b.static {
		fmt.Fprintf(&routes, "route %s blackhole;\n", p)
	}
	config := fmt.Sprintf(`router id 10.0.%d.2;
log "%s" all;
protocol device { scan time 1; }
protocol bfd { interface "*" { interval 100 ms; multiplier 3; }; }
protocol bgp vstun {
	local %v as %d;
	neighbor %v as %d;
	hold time 9;
	error wait time 1, 2;
	connect delay time 1;
	%s
	ipv4 { import all; export where source = RTS_STATIC; };
	ipv6 { import all; export none; };
}
protocol static {
	ipv4;
	%s
}
`, b.number, b.path("log"), b.addr(2, ipv6), as, b.addr(1, ipv6), peerAS, statements, routes.String())
	kerneltest.Must(b.t, os.WriteFile(b.path("bird.conf"), []byte(config), 0o600))
	b.in(func() {
		b.cmd = exec.Command("bird", "-f", "-c", b.path("bird.conf"), "-s", b.path("ctl"), "-P", b.path("pid"))
		var out bytes.Buffer
		b.cmd.Stdout, b.cmd.Stderr = &out, &out
		b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		kerneltest.Must(b.t, b.cmd.Start())
	})
	b.t.Cleanup(func() {
		routes := b.ask("show route all")
		b.end(syscall.SIGTERM)
		if b.t.Failed() {
			text, _ := os.ReadFile(b.path("log"))
			b.t.Logf("BIRD:\n%s\n%s", routes, text)
		}
	})
	testkit.Eventually(b.t, "BIRD answers", func() bool {
		return strings.Contains(b.ask("show status"), "up and running")
	})
}

func (b *bird) path(name string) string { return filepath.Join(b.dir, name) }

// end ends BIRD.
func (b *bird) end(signal syscall.Signal) {
	if b.cmd != nil {
		_ = b.cmd.Process.Signal(syscall.SIGCONT)
		_ = b.cmd.Process.Signal(signal)
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

// ask returns the answer to a command of birdc.
func (b *bird) ask(command string) string {
	out, _ := exec.Command("birdc", append([]string{"-r", "-s", b.path("ctl")}, strings.Fields(command)...)...).
		CombinedOutput()
	return string(out)
}

// route returns what BIRD has of a VIP, "" without a route.
func (b *bird) route(vip string) string {
	a := netip.MustParseAddr(vip)
	text := b.ask("show route for " + netip.PrefixFrom(a, a.BitLen()).String() + " all")
	if !strings.Contains(text, "BGP.") {
		return ""
	}
	return text
}

// waitRoute waits for a route that matches all patterns.
func (b *bird) waitRoute(vip string, patterns ...string) {
	b.t.Helper()
	testkit.Eventually(b.t, fmt.Sprintf("route %s with %q", vip, patterns), func() bool {
		text := b.route(vip)
		return text != "" && !slices.ContainsFunc(patterns, func(p string) bool {
			return !regexp.MustCompile(p).MatchString(text)
		})
	})
}

func (b *bird) waitNoRoute(vip string) {
	b.t.Helper()
	testkit.Eventually(b.t, "no route "+vip, func() bool { return b.route(vip) == "" })
}

// events are the events of a speaker.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) add(v Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, v)
}

func (e *events) has(ok func(Event) bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.all, ok)
}

const ownAS, routerAS = 65010, 65000

// peer returns the configuration of the session with b.
func (b *bird) peer(as uint32, ipv6 bool, change ...func(*announce.Peer)) announce.Peer {
	p := announce.Peer{Addr: b.addr(2, ipv6), AS: as, HoldTime: 9 * time.Second, IPv4: true, IPv6: true,
		NextHop: b.addr(1, !ipv6)}
	for _, f := range change {
		f(&p)
	}
	return p
}

// speak returns a speaker with sessions with peers.
func speak(t *testing.T, peers ...announce.Peer) (*Speaker, *events) {
	t.Helper()
	e := &events{}
	s := New(e.add)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%+v\n%+v", s.Status(), e.all)
		}
		kerneltest.Must(t, s.Close())
	})
	kerneltest.Must(t, s.Set(config(peers...)))
	return s, e
}

func config(peers ...announce.Peer) announce.Config {
	return announce.Config{AS: ownAS, RouterID: netip.MustParseAddr("192.0.2.1"), Peers: peers}
}

func waitState(t *testing.T, s *Speaker, state announce.State) announce.Session {
	t.Helper()
	testkit.Eventually(t, "session "+state.String(), func() bool { return s.Status().Sessions[0].State == state })
	return s.Status().Sessions[0]
}

func waitFault(t *testing.T, s *Speaker, fault announce.Fault) {
	t.Helper()
	testkit.Eventually(t, "fault "+fault.String(), func() bool { return s.Status().Sessions[0].Fault == fault })
}

func route(vip string) announce.Route { return announce.Route{VIP: netip.MustParseAddr(vip)} }

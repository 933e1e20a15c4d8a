package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// The tests of privileges reload another VIP, by another tunnel, to a UDP port that may need a capability.
const firstVIP = `
[[service]]
name = "first"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
realserver = [ { address = "10.0.11.2" } ]
`

func secondVIP(udpPort int) string {
	return fmt.Sprintf(`
[[service]]
name = "second"
vip = "198.51.100.81"
protocol = "tcp"
port = 80
encap = "gue"
encap_port = %d
realserver = [ { address = "10.0.11.2" } ]
`, udpPort)
}

// someTunnels returns keys of the agent.
func someTunnels(udpPort int) string {
	return fmt.Sprintf("encap = [\"ipip\", \"gre\", \"gue\"]\nencap_port = %d", udpPort)
}

const (
	openPort       = 6080
	privilegedPort = 443
)

// TestPrivileges checks the capabilities of both programs once they are up: every thread has CAP_NET_ADMIN only, and no
// way to more. That suffices for a reload, for repairs of the network state, and for undoing it at the end.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	second := netip.MustParseAddr("198.51.100.81")
	s.addVIP(second)
	before := s.observeAll()
	s.startAgents(someTunnels(privilegedPort))
	s.namedEchoAt(s.Webs[0], ":80")
	s.startDirectorWith(firstVIP)
	programs := []*program{s.director, s.agents[0]}
	for _, p := range programs {
		p.mustHaveOnlyNetAdmin(p.startBounding())
		p.mustLogReady()
		if strings.Contains(p.Output(), "level=WARN") {
			t.Errorf("%s warns:\n%s", p, p.Output())
		}
	}
	s.mustReloadSecond(second, privilegedPort)
	for _, p := range programs {
		p.mustRepair()
		p.mustHaveOnlyNetAdmin(p.startBounding())
		p.stop()
	}
	mustBe(t, "at the end", before, s.observeAll())
}

// TestPrivilegesThatStay: the programs may not change their privileges, as in some containers. They log it once, and
// work.
func TestPrivilegesThatStay(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("SKIPPED: the race detector has needs of its own")
	}
	s := newSite(t, 1, nil)
	box := &sandbox{Filter: refuse(t, unix.SYS_CAPSET, unix.SYS_PRCTL)}
	for _, p := range []*program{s.prepare(s.Webs[0], "realserver"), s.prepare(s.Director, "director")} {
		p.configure(s.agentTOML(p.socket, ""))
		if p.name == "director" {
			p.configure(s.directorTOML(p.socket, "", service{"tcp", "80", "wrr", []int{1}}))
		}
		p.startAs(box.command(t, exec.Command(programPath(p.name), "run", "-c", p.config)))
		p.mustLogReady()
		if warnings := strings.Count(p.Output(), "level=WARN"); warnings != 1 || !strings.Contains(p.Output(),
			"cannot drop all capabilities") || !strings.Contains(p.Output(), "no_new_privs") {
			t.Errorf("%s gives %d warnings, want one, of its privileges:\n%s", p, warnings, p.Output())
		}
	}
	s.namedEcho(s.Webs[0], 80)
	s.mustBeServedBy(80, "web1")
}

// mustLogReady waits until the program's log has the lines before ready.
func (p *program) mustLogReady() {
	p.t.Helper()
	testkit.Within(p.t, p.String()+" logs that it is ready", soon, func() bool {
		return strings.Contains(p.Output(),
			"msg=ready")
	})
}

// startBounding returns the bounding set that a program needs to start, in the kernel's format.
func (p *program) startBounding() string {
	set := 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON |
		1<<unix.CAP_NET_BIND_SERVICE
	return fmt.Sprintf("%016x", set)
}

// mustHaveOnlyNetAdmin checks the capabilities of each thread of a program that is up. bounding is in the kernel's
// format.
func (p *program) mustHaveOnlyNetAdmin(bounding string) {
	p.t.Helper()
	var st struct{ Pid int }
	if err := p.get(&st); err != nil {
		p.t.Fatal(err)
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", st.Pid))
	if err != nil || len(threads) < 2 {
		p.t.Fatalf("%d threads of %s, %v", len(threads), p, err)
	}
	const none, netAdmin = "0000000000000000", "0000000000001000"
	for _, thread := range threads {
		for key, want := range map[string]string{"CapEff": netAdmin, "CapPrm": netAdmin, "CapInh": none, "CapAmb": none,
			"CapBnd": bounding, "NoNewPrivs": "1"} {
			if got := field(p.t, thread, key); got != want {
				p.t.Errorf("%s: %s: %s is %s, want %s", p, thread, key, got, want)
			}
		}
	}
}

// field returns a field of a thread's status; proc(5).
func field(t *testing.T, path, key string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, _ := strings.Cut(s.Text(), ":"); k == key {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("%s has no %s", path, key)
	return ""
}

// mustReloadSecond adds the second VIP to the director, sends a request to either, and removes it again.
func (s *site) mustReloadSecond(second netip.Addr, udpPort int) {
	s.t.Helper()
	s.reloadWith(firstVIP + secondVIP(udpPort))
	for _, vip := range []netip.Addr{s.VIP, second} {
		c, err := s.dialFrom(anyPort(s.Client.Addr), netip.AddrPortFrom(vip, 80).String())
		if err != nil {
			s.t.Fatal(err)
		}
		if server := mustAnswer(s.t, c); server != "web1" {
			s.t.Errorf("%s is answered by %s", vip, server)
		}
		c.Close()
	}
	s.mustCheck()
	s.reloadWith(firstVIP)
}

// mustCheck gives the director checks with sockets of several kinds, and an exec check. All pass.
func (s *site) mustCheck() {
	s.t.Helper()
	toml := firstVIP
	for i, check := range []string{`type = "tcp", port = 80`, `type = "ping"`, `type = "ping", via = "direct"`,
		`type = "exec", command = ["/bin/true"]`} {
		toml += fmt.Sprintf("[[service]]\nname = \"check%d\"\nvip = %q\nprotocol = \"udp\"\nport = %d\ncheck = { "+
			"%s, interval = \"500ms\" }\nrealserver = [ { address = %q } ]\n",
			i, s.VIP, 9000+i, check, s.Webs[0].Addr)
	}
	s.reloadWith(toml)
	var failed []string
	defer func() {
		if len(failed) > 0 {
			s.t.Logf("not passed: %q", failed)
		}
	}()
	testkit.Within(s.t, "all checks pass", 2*soon, func() bool {
		failed = nil
		for _, svc := range s.director.balance().Services {
			for _, r := range svc.Realservers {
				if r.Check != nil && r.Health != "up" {
					failed = append(failed, r.Check.Type+": "+r.Check.Reason)
				}
			}
		}
		return len(failed) == 0
	})
}

// mustRepair removes addresses and routes of a program's device by setting it down. The program restores them.
func (p *program) mustRepair() {
	p.t.Helper()
	before := observe(p.t, p.host)
	if err := p.host.Do(func() error {
		l, err := netlink.LinkByName("vs0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	}); err != nil {
		p.t.Fatal(err)
	}
	testkit.Within(p.t, p.String()+" puts its device and routes back", soon, func() bool {
		now := observe(p.t, p.host)
		return fmt.Sprint(now) == fmt.Sprint(before)
	})
}

// TestForeignConfiguration: root starts the director with a file of another user, for example in a home directory. It
// runs, and warns at once, and at a reload, that it can't read the file again.
func TestForeignConfiguration(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.namedEchoAt(s.Webs[0], ":80")
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.directorTOML(s.director.socket, "", service{"tcp", "80", "wrr", []int{1}}))
	if err := errors.Join(os.Chown(s.director.config, unprivileged, unprivileged), os.Chmod(s.director.config,
		0o600)); err != nil {
		t.Fatal(err)
	}
	s.director.start()
	s.director.mustLogReady() // the warning comes before that
	if !strings.Contains(s.director.Output(), "a reload can't read the configuration file") {
		t.Errorf("no warning:\n%s", s.director.Output())
	}
	cmd := exec.Command(programPath("director"), "reload", "--socket", s.director.socket)
	if got := run(t, s.Director, cmd); got.code != 1 || !strings.Contains(got.stderr,
		"permission denied: want a file that the program's user owns") {
		t.Errorf("reload: exit status %d, %s", got.code, got.stderr)
	}
	s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
}

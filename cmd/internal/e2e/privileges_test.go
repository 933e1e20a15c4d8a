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
)

// What the tests of privileges reload: another VIP, by another tunnel, to a UDP port which may need a capability.
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

// someTunnels are keys of the agent.
func someTunnels(udpPort int) string {
	return fmt.Sprintf("encap = [\"ipip\", \"gre\", \"gue\"]\nencap_port = %d", udpPort)
}

const (
	openPort       = 6080
	privilegedPort = 443
)

// TestPrivileges looks at what both programs may still do once they are up: every thread of theirs has CAP_NET_ADMIN,
// nothing else, and no way to more. That is enough for all that comes: a reload, watching over what is theirs, and
// leaving the machine as it was.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	second := netip.MustParseAddr("198.51.100.81")
	s.addVIP(second)
	before := s.observeAll()
	s.startAgents(someTunnels(privilegedPort))
	s.parrotAt(s.Webs[0], ":80")
	s.startWrittenDirector(firstVIP)
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

// TestPrivilegesThatStay refuses the programs every change of their privileges, as a container may: they say so, once,
// and work.
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
	s.parrot(s.Webs[0], 80)
	s.mustParrot(80, "web1")
}

// mustLogReady waits until the program's log has what came before its being ready.
func (p *program) mustLogReady() {
	p.t.Helper()
	eventually(p.t, p.String()+" logs that it is ready", soon, func() bool {
		return strings.Contains(p.Output(),
			"msg=ready")
	})
}

// startBounding is the bounding set of a program, as the kernel writes it: what it needs while it starts.
func (p *program) startBounding() string {
	set := 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	if p.name == "realserver" {
		set |= 1 << unix.CAP_NET_BIND_SERVICE
	}
	return fmt.Sprintf("%016x", set)
}

// mustHaveOnlyNetAdmin reads what the kernel says of each thread of a program that is up. Their bounding set is as the
// kernel writes it.
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

// field is a field of a thread's status; proc(5).
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

// mustReloadSecond gives the director the second VIP too, makes a request to either, and takes it away again.
func (s *site) mustReloadSecond(second netip.Addr, udpPort int) {
	s.t.Helper()
	s.reloadWritten(firstVIP + secondVIP(udpPort))
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
	s.reloadWritten(firstVIP)
}

// mustCheck gives the director checks that need sockets of several kinds, and a program to start: all of them pass.
func (s *site) mustCheck() {
	s.t.Helper()
	toml := firstVIP
	for i, check := range []string{`type = "tcp", port = 80`, `type = "ping"`, `type = "ping", via = "direct"`,
		`type = "exec", command = ["/bin/true"]`} {
		toml += fmt.Sprintf("[[service]]\nname = \"check%d\"\nvip = %q\nprotocol = \"udp\"\nport = %d\ncheck = { "+
			"%s, interval = \"500ms\" }\nrealserver = [ { address = %q } ]\n",
			i, s.VIP, 9000+i, check, s.Webs[0].Addr)
	}
	s.reloadWritten(toml)
	var failed []string
	defer func() {
		if len(failed) > 0 {
			s.t.Logf("not passed: %q", failed)
		}
	}()
	eventually(s.t, "all checks pass", 2*soon, func() bool {
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

// mustRepair takes addresses and routes from a program's device, by setting it down: the program puts them back.
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
	eventually(p.t, p.String()+" puts its device and routes back", soon, func() bool {
		now := observe(p.t, p.host)
		return fmt.Sprint(now) == fmt.Sprint(before)
	})
}

// TestForeignConfiguration has root start the director with a file that is somebody else's, in a home directory for
// one: it runs, and says at once, and again when it is asked, that it won't be able to read the file again.
func TestForeignConfiguration(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.parrotAt(s.Webs[0], ":80")
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.directorTOML(s.director.socket, "", service{"tcp", "80", "wrr", []int{1}}))
	if err := errors.Join(os.Chown(s.director.config, nobody, nobody), os.Chmod(s.director.config, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.director.start()
	s.director.mustLogReady() // the warning comes before that
	if !strings.Contains(s.director.Output(), "a reload can't read the configuration file") {
		t.Errorf("no warning:\n%s", s.director.Output())
	}
	cmd := exec.Command(programPath("director"), "reload", "--socket", s.director.socket)
	if got := run(t, s.Director, cmd); got.code != 1 || !strings.Contains(got.stderr,
		"permission denied: let the user read it") {
		t.Errorf("reload: exit status %d, %s", got.code, got.stderr)
	}
	s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
}

package e2e

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestEndsWhileItStarts sends each signal that ends a program at a random moment of its start. The program undoes
// everything that it had done by then.
func TestEndsWhileItStarts(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	before := s.observeAll()
	director, agent := s.prepare(s.Director, "director"), s.prepare(s.Webs[0], "realserver")
	director.configure(s.directorTOML(director.socket, "", service{"tcp", "80", "wrr", []int{1}}))
	agent.configure(s.agentTOML(agent.socket, ""))
	for _, p := range []*program{director, agent} {
		if err := os.Mkdir(filepath.Dir(p.socket), 0o755); err != nil {
			t.Fatal(err)
		}
		p.removeTable()
	}
	for i := range short(30, 10) {
		for _, p := range []*program{director, agent} {
			sig := []unix.Signal{unix.SIGTERM, unix.SIGINT}[i/2%2]
			process, err := p.host.Start(exec.Command(programPath(p.name), "run", "-c", p.config))
			if err != nil {
				t.Fatal(err)
			}
			timer := time.NewTimer(time.Duration(rand.IntN(40)) * time.Millisecond)
			select {
			case <-timer.C:
			case <-process.Done():
				t.Fatalf("%s ended by itself: %v\n%s", p, process.Wait(), process.Output())
			}
			if err := process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // a terminal that is closed right behind a Ctrl-C
				_ = process.Signal(unix.SIGHUP) // it may have ended
			}
			select {
			case <-process.Done():
			case <-time.After(soon):
				t.Fatalf("%s does not end with %v\n%s", p, sig, process.Output())
			}
			// In its first milliseconds, before it changes anything, a signal may kill it.
			if err := process.Wait(); err != nil && !strings.Contains(err.Error(), "signal: ") {
				t.Errorf("%s, %v: %v\n%s", p, sig, err, process.Output())
			}
			mustBeEmpty(t, "after "+sig.String(), filepath.Dir(p.socket))
		}
	}
	mustBe(t, "after all starts", before, s.observeAll())
}

// TestLogWithoutReader closes the pipe of the log: the programs go on, reload and end as usual.
func TestLogWithoutReader(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	before := s.observeAll()
	s.startAgents("")
	director := s.prepare(s.Director, "director")
	director.configure(s.directorTOML(director.socket, "", service{"tcp", "80", "wrr", []int{1}}))
	director.removeTable()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(programPath("director"), "run", "-c", director.config)
	cmd.Stdout, cmd.Stderr = write, write
	process, err := s.Director.Start(cmd)
	write.Close()
	read.Close()
	if err != nil {
		t.Fatal(err)
	}
	director.Process, s.director = process, director
	s.namedEcho(s.Webs[0], 80)
	testkit.Within(t, "the director is up", soon, func() bool {
		var ignored struct{}
		return director.get(&ignored) == nil
	})
	s.reload("", service{"tcp", "[80, 81]", "wrr", []int{5}})
	s.mustBeServedBy(80, s.Webs[0].Name)
	director.stop()
	s.agents[0].stop()
	mustBe(t, "at the end", before, s.observeAll())
}

// TestRemovedDevice deletes the TUN devices of running programs: each logs it, cleans up and ends with status 1.
func TestRemovedDevice(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	before := s.observeAll()
	s.startAgents("")
	s.startDirector("", service{"tcp", "80", "wrr", []int{1}})
	stop := s.traffic80(t)
	for _, p := range []*program{s.director, s.agents[0]} {
		p.ending = true
		if err := p.host.Do(func() error {
			l, err := netlink.LinkByName("vs0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*program{s.director, s.agents[0]} {
		select {
		case <-p.Done():
		case <-time.After(soon):
			t.Fatalf("%s lives on without its device\n%s", p, p.Output())
		}
		if err := p.Wait(); err == nil || err.Error() != "exit status 1" {
			t.Errorf("%s: %v, want exit status 1", p, err)
		}
		if !strings.Contains(p.Output(), "has been removed by another program") {
			t.Errorf("%s does not log the cause:\n%s", p, p.Output())
		}
	}
	stop()
	mustBe(t, "without the devices", before, s.observeAll())
}

// traffic80 sends packets to the VIP, answered or not. A program that only writes to its device notices by them that
// the device is gone.
func (s *site) traffic80(t *testing.T) (stop func()) {
	t.Helper()
	s.namedEcho(s.Webs[0], 80)
	s.mustBeServedBy(80, s.Webs[0].Name)
	return s.traffic(80)
}

// TestKilledDirectorDoesNotLoop sends packets to the VIP of a director that was killed: its kernel rejects them instead
// of sending them back to the router. Otherwise they would loop until their TTL is used up.
func TestKilledDirectorDoesNotLoop(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"udp", "53", "rr", []int{1}})
	s.director.kill()
	toDirector := s.count(s.Director, "eth0", lab.Filter{Destination: s.VIP, Direction: lab.In})
	back := s.count(s.Director, "eth0", lab.Filter{Destination: s.VIP, Direction: lab.Out})
	told := s.count(s.Client, "eth0", lab.Filter{Protocol: unix.IPPROTO_ICMP, Direction: lab.In})
	conn := s.dial("udp", 53)
	if _, err := conn.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the client learns that the VIP is unreachable", soon, func() bool { return told() > 0 })
	if in, out := toDirector(), back(); in != 1 || out != 0 {
		t.Errorf("%d packets reached the director and %d left it, want 1 and 0", in, out)
	}
	s.director.start()
}

// TestServiceLeavesWithItsVIP removes the only service of a VIP: its connections go on until they end. Then the VIP's
// routes are removed.
func TestServiceLeavesWithItsVIP(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	const more = "[connections]\ntimeouts = { tcp_fin = \"1s\" }"
	s.startDirector(more, service{"tcp", "80", "wrr", []int{1}})
	s.namedEcho(s.Webs[0], 80)
	conn := s.dial("tcp", 80)
	if _, err := askName(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	other := strings.ReplaceAll(s.directorTOML(s.director.socket, more, service{"tcp", "80", "wrr", []int{1}}),
		s.VIP.String(), "198.51.100.99")
	s.director.configure(strings.ReplaceAll(other, "s1", "s9"))
	s.director.signal(unix.SIGHUP)
	testkit.Within(t, "the other service is in force", soon, func() bool {
		st := s.director.balance()
		return len(st.Services) == 1 && st.Services[0].Name == "s9"
	})
	if server, err := askName(conn, "still there?"); err != nil || server != s.Webs[0].Name {
		t.Errorf("the connection is answered by %q, %v", server, err)
	}
	if st := s.director.balance(); st.Leaving.Connections != 1 {
		t.Errorf("leaving are %+v, want one connection", st.Leaving)
	}
	conn.Close()
	testkit.Within(t, "the VIP's routes are gone", 30*time.Second, func() bool {
		var left int
		if err := s.Director.Do(func() error {
			routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
			for _, r := range routes {
				if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && a.Unmap() == s.VIP {
					left++
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return left == 0
	})
}

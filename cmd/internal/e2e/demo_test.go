package e2e

import (
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// demo is a `lab demo` on a host of another lab, with its own /run: it does not collide with other demos on this
// machine.
type demo struct {
	*lab.Process
	t   *testing.T
	out *os.File // the read end of its standard output
	log strings.Builder
}

// startDemo starts the demo. Its standard output holds a few lines only: unread, it blocks the demo.
func startDemo(s *site, args ...string) *demo {
	s.t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "demo"), os.NewFile(uintptr(ends[1]), "demo")
	s.t.Cleanup(func() { ours.Close() })
	defer theirs.Close()
	// the kernel rounds up to its minimum
	if err := unix.SetsockoptInt(ends[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		s.t.Fatal(err)
	}
	cmd := private(withPrivateRun, exec.Command(programPath("lab"), append([]string{"demo"}, args...)...))
	cmd.Stdout = theirs
	p, err := s.Client.Start(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	d := &demo{Process: p, t: s.t, out: ours}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("the demo:\n%s\n%s", d.log.String(), p.Output())
		}
	})
	return d
}

// read reads the demo's output until it has the text. "" means to the end.
func (d *demo) read(text string) {
	d.t.Helper()
	b := make([]byte, 1)
	for text == "" || !strings.Contains(d.log.String(), text) {
		switch n, err := d.out.Read(b); {
		case n == 1:
			d.log.WriteByte(b[0])
		case err == io.EOF && text == "":
			return
		default:
			d.t.Fatalf("the demo's output ends before %q: %v", text, err)
		}
	}
}

// end waits for the end of the demo and returns its exit status, which also reports files left in /run.
func (d *demo) end() int {
	d.t.Helper()
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	select {
	case <-d.Done():
	case <-late.C:
		d.t.Fatalf("the demo does not end: %v", d.Stop())
	}
	if err := d.Wait(); err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			return exit.ExitCode()
		}
		d.t.Fatal(err)
	}
	return 0
}

// TestDemo runs the demo to its end, in each network, with IPv4, and with VSTUN_FULL=1 (`make long`) with IPv6.
func TestDemo(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { mustPlayOne(t, "198.51.100.80", "10.0.11.2") })
	t.Run("IPv6", func(t *testing.T) { mustPlayOne(t, "http://[2001:db8:100::80]/", "fd00:0:11::2", "--ipv6") })
	t.Run("LAN", func(t *testing.T) { mustPlayOne(t, "10.0.2.80 is announced on", "10.0.2.11", "--lan") })
	t.Run("LAN-IPv6", func(t *testing.T) {
		needFull(t, "the same with IPv4 runs already")
		mustPlayOne(t, "fd00:0:2::80 is announced on", "fd00:0:2::11", "--lan", "--ipv6")
	})
	t.Run("HA", func(t *testing.T) { mustPlayPair(t, "10.0.2.80", "10.0.2.3", "--ha") })
	t.Run("tunnel", func(t *testing.T) {
		slowWithRace(t)
		mustPlay(t, []string{"site0: none", "lan0: none", "tap, gue"}, "--tunnel")
	})
	t.Run("tunnel-IPv6", func(t *testing.T) {
		needFull(t, "the same with IPv4 runs already")
		mustPlay(t, []string{"site0: none", "fd00:0:11::2", "tap, gue"}, "--tunnel", "--ipv6")
	})
	t.Run("HA-IPv6", func(t *testing.T) {
		needFull(t, "the same with IPv4 runs already")
		mustPlayPair(t, "fd00:0:2::80", "fd00:0:2::3", "--ha", "--ipv6")
	})
}

// mustPlayOne runs the demo of one director.
func mustPlayOne(t *testing.T, vip, web string, args ...string) {
	mustPlay(t, []string{vip, web, "web1 8, web2 4", "web1 3, web2 3", "into the director",
		"replies that passed the director: on its eth0           0"}, args...)
}

// mustPlayPair runs the demo of two directors. In each of its four changes no connection breaks.
func mustPlayPair(t *testing.T, vip, backup string, args ...string) {
	const lost = ` +\d+\.\d\d s +0 of 100 +0 of 20 +\d+ of \d+\n`
	output := mustPlay(t, []string{vip, backup, "The director is the master."}, args...)
	for _, change := range []string{"kill -9 of the director", "the director starts again", "director standby",
		"director active"} {
		if !regexp.MustCompile("(?m)^" + change + lost).MatchString(output) {
			t.Errorf("%q lost connections, or is not in its output:\n%s", change, output)
		}
	}
}

// mustPlay runs the demo, whose output must have these texts. It returns the output.
func mustPlay(t *testing.T, texts []string, args ...string) string {
	t.Helper()
	t.Parallel()
	s := newSite(t, 0, nil)
	before := s.observeAll()
	begin := time.Now()
	d := startDemo(s, args...)
	d.read("")
	if code := d.end(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %v, more than 30 s", took)
	}
	for _, text := range texts {
		if !strings.Contains(d.log.String(), text) {
			t.Errorf("%q is not in its output", text)
		}
	}
	mustBe(t, "after the demo", before, s.observeAll())
	return d.log.String()
}

// TestDemoInterrupted sends SIGINT and SIGTERM to the demo at all its stages, and closes its output. It ends at once
// and leaves nothing behind.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	s := newSite(t, 0, nil)
	for _, c := range []struct {
		stage string
		sig   unix.Signal
	}{
		{"vstun demo:", unix.SIGINT},
		{"Programs", unix.SIGTERM},
		{"all up", unix.SIGINT},
		{"requests for", unix.SIGHUP}, // not at the last one: the demo may have ended
	} {
		d := startDemo(s)
		d.read(c.stage)
		if err := d.Signal(c.sig); err != nil {
			t.Fatal(err)
		}
		d.read("")
		if code := d.end(); code != 1 || !strings.Contains(d.Output(), "lab: demo interrupted\n") {
			t.Errorf("%v at %q: exit status %d, want 1 and a word about the interruption: %s", c.sig, c.stage, code,
				d.Output())
		}
	}

	d := startDemo(s)
	d.read("Programs")
	d.out.Close()
	if code := d.end(); code != 1 {
		t.Errorf("with its output closed: exit status %d, want 1: %s", code, d.Output())
	}

	d = startDemo(s, "--stay")
	d.read("runs until Ctrl-C")
	if err := d.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	d.read("")
	if code := d.end(); code != 0 {
		t.Errorf("--stay, then Ctrl-C: exit status %d, want 0: %s", code, d.Output())
	}
}

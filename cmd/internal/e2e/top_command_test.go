package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// terminal is the output of a program on a terminal.
type terminal struct {
	*os.File // the master's end
	text     testkit.Log
}

func (t *terminal) read() {
	buf := make([]byte, 1<<16)
	for {
		n, err := t.Read(buf)
		_, _ = t.text.Write(buf[:n]) // never fails
		if err != nil {
			return // all processes have closed it
		}
	}
}

func (t *terminal) has(words ...string) bool {
	text := t.text.String()
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// startTerminal starts a command of the director on a terminal of that size.
func (s *site) startTerminal(columns, rows uint16, command ...string) (*lab.Process, *terminal) {
	s.t.Helper()
	master, slave, err := pty.Open()
	if err == nil {
		err = pty.Setsize(master, &pty.Winsize{Cols: columns, Rows: rows})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(programPath("director"), append(command, "-c", s.director.config)...)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	p, err := s.Director.Start(cmd)
	slave.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	t := &terminal{File: master}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.read()
	}()
	s.t.Cleanup(func() {
		select {
		case <-p.Done():
		default:
			_ = p.Signal(unix.SIGKILL) // the test has failed, and says why
		}
		<-done
		master.Close()
	})
	return p, t
}

// press presses keys.
func (t *terminal) press(s *site, keys string) {
	s.t.Helper()
	if _, err := t.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// TestTop runs top in a terminal, sorts, and ends it. Without a terminal top prints one screen.
func TestTop(t *testing.T) {
	t.Parallel()
	needTool(t, "nginx", "nginx-light")
	s := newSite(t, 2, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.nginx(web)
	}
	s.startDirectorWith(drainTOML("", web1+", "+web2))
	l := s.startLoad(2)
	l.more(t, 10)
	p, screen := s.startTerminal(80, 24, "top", "--every", "200ms")
	defer func() {
		if t.Failed() {
			t.Logf("the terminal:\n%q", screen.text.String())
		}
	}()
	testkit.Within(t, "top shows the service", soon, func() bool {
		return screen.has("web tcp 198.51.100.80:80 rr", "10.0.11.2", "10.0.12.2", "WEIGHT", "CPS",
			"sort: configuration")
	})
	screen.press(s, "s")
	testkit.Within(t, "it sorts by another column", soon, func() bool { return screen.has("bit/s") })
	drain, progress := s.startTerminal(80, 24, "drain", "web", "10.0.11.2", "--wait")
	select {
	case <-drain.Done():
	case <-time.After(3 * soon):
		t.Fatalf("drain --wait does not end: %q", progress.text.String())
	}
	testkit.Within(t, "it shows its progress, on one line", soon, func() bool {
		return progress.has("\r\x1b[Kdraining for ",
			"\r\x1b[Kdrained in ")
	})
	screen.press(s, "q")
	select {
	case <-p.Done():
	case <-time.After(soon):
		t.Fatal("q does not end top")
	}
	if err := p.Wait(); err != nil {
		t.Errorf("top ends with %v", err)
	}
	testkit.Within(t, "the terminal is as it was", soon, func() bool { return screen.has("\x1b[?1049l") })

	got := s.ask("top", "--once", "--every", "500ms")
	if got.code != 0 || !strings.Contains(got.stdout, "web tcp 198.51.100.80:80 rr") || strings.Contains(got.stdout,
		"\x1b") || !strings.Contains(got.stdout, "10.0.12.2") {
		t.Errorf("once: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	var rows []struct {
		Service, Realserver string
		Weight              int
		CPS                 float64 `json:"connections_per_second"`
	}
	testkit.Within(t, "as JSON there are rates", soon, func() bool {
		err := json.Unmarshal([]byte(s.must("top", "--json")), &rows)
		if err != nil || len(rows) != 3 || rows[1].Weight != 0 || rows[1].CPS != 0 {
			t.Fatalf("as JSON: %+v, %v", rows, err)
		}
		return rows[0].CPS >= 1 && rows[2].CPS >= 1
	})
	for _, wrong := range []string{"--sort colour", "--every 1ms", "web"} {
		if got := s.ask(append([]string{"top"}, strings.Fields(wrong)...)...); got.code != 2 ||
			strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("top %s: exit status %d, want 2 and a line: %s", wrong, got.code, got.stderr)
		}
	}

	for _, command := range [][]string{{"status"}, {"connections"}, {"explain", "192.0.2.7:4711", s.at(80)}} {
		p, screen = s.startTerminal(60, 24, command...)
		<-p.Done()
		testkit.Within(t, "it is printed", soon, func() bool { return screen.has("10.0.12.2") })
		for _, line := range strings.Split(screen.text.String(), "\r\n") {
			if utf8.RuneCountInString(line) > 60 {
				t.Errorf("%v: in a terminal of 60 columns there is the line %q", command, line)
			}
		}
	}

	l.end(t) // only now: without requests there are soon no connections to be listed

	// The director ends while top runs: its connection is cut.
	p, screen = s.startTerminal(40, 10, "top", "--every", "200ms")
	testkit.Within(t, "top shows the service", soon, func() bool { return screen.has("10.0.11.2") })
	s.director.stop()
	testkit.Within(t, "top shows that the director has gone", soon, func() bool {
		return screen.has("connect") ||
			screen.has("c.sock")
	})
	if err := p.Stop(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("top at SIGTERM: %v", err)
	}
	testkit.Within(t, "after SIGTERM the terminal is as it was", soon, func() bool { return screen.has("\x1b[?1049l") })
}

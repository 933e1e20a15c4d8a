package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWatchdog runs both programs under a service manager that expects signs of life. They report READY=1, and send the
// signs, idle and under load.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	agent, director := s.prepare(s.Webs[0], "realserver"), s.prepare(s.Director, "director")
	agent.configure(s.agentTOML(agent.socket, ""))
	director.configure(s.directorTOML(director.socket, "", service{"tcp", "80", "rr", []int{1}}))
	managers := map[*program]*serviceManager{}
	for _, p := range []*program{agent, director} {
		m := newServiceManager(t)
		managers[p] = m
		cmd := exec.Command(programPath(p.name), "run", "-c", p.config)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=4000000")
		p.startAs(cmd)
		m.mustHear("READY=1")
		m.mustHear("WATCHDOG=1")
	}
	s.namedEcho(s.Webs[0], 80)
	s.mustBeServedBy(80, "web1")
	for p, m := range managers {
		m.mustHear("WATCHDOG=1")
		m.mustHear("WATCHDOG=1")
		p.stop()
		// an answer may be late on a busy machine
		if out := p.Output(); strings.Contains(out, "stands still") || strings.Contains(out, "lost while") {
			t.Errorf("a watchdog check of %s failed:\n%s", p, out)
		}
		for m.mustHear("") != "STOPPING=1" {
		}
	}
}

// serviceManager receives a program's notifications (sd_notify(3)).
type serviceManager struct {
	*net.UnixConn
	t    *testing.T
	path string
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &serviceManager{c, t, path}
}

// mustHear waits for the next notification, and returns it. It must be want, unless that is "".
func (m *serviceManager) mustHear(want string) string {
	m.t.Helper()
	b := make([]byte, 64)
	n, err := 0, m.SetReadDeadline(time.Now().Add(soon))
	if err == nil {
		n, err = m.Read(b)
	}
	if err != nil || want != "" && string(b[:n]) != want {
		m.t.Fatalf("the program sends %q, want %q: %v", b[:n], want, err)
	}
	return string(b[:n])
}

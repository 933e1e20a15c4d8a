package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWithoutRoot runs both programs as user nobody, with no more than CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun.
func TestWithoutRoot(t *testing.T) {
	t.Parallel()
	newSite(t, 1, nil).mustWorkWithoutRoot(openPort, func(*program) string {
		return field(t, "/proc/self/status",
			"CapBnd")
	}, func(p *program) *exec.Cmd {
		return private(asNobody, exec.Command(programPath(p.name), "run", "-c", p.config))
	})
}

// mustWorkWithoutRoot starts both programs by command, as user nobody. They must do all of their work, and restore the
// machine. bounding returns their bounding set in the kernel's format.
func (s *site) mustWorkWithoutRoot(udpPort int, bounding func(*program) string, command func(p *program) *exec.Cmd) {
	s.t.Helper()
	second := netip.MustParseAddr("198.51.100.81")
	s.addVIP(second)
	before := s.observeAll()
	s.agents = []*program{s.prepare(s.Webs[0], "realserver")}
	s.agents[0].configure(s.agentTOML(s.agents[0].socket, someTunnels(udpPort)))
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.fileWith(firstVIP))
	s.openDir()
	programs := []*program{s.agents[0], s.director}
	for _, p := range programs {
		dir := filepath.Dir(p.socket)
		if err := os.Mkdir(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			s.t.Fatal(err)
		}
		p.startAs(command(p))
		p.mustHaveOnlyNetAdmin(bounding(p))
	}
	s.namedEchoAt(s.Webs[0], ":80")
	s.mustReloadSecond(second, udpPort)
	for _, p := range programs {
		p.stop()
		mustBeEmpty(s.t, "at the end", filepath.Dir(p.socket))
	}
	mustBe(s.t, "at the end", before, s.observeAll())
}

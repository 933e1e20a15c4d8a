package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// unit is the assignments in a unit's [Service], in order.
type unit map[string][]string

// unitFile returns the path of a program's unit.
func unitFile(program string) string {
	return filepath.Join("..", "..", program, "vstun-"+program+".service")
}

func readUnit(t *testing.T, program string) unit {
	t.Helper()
	text, err := os.ReadFile(unitFile(program))
	if err != nil {
		t.Fatal(err)
	}
	u, section := unit{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case ok && section == "[Service]" && !strings.HasPrefix(line, "#"):
			u[key] = append(u[key], value)
		}
	}
	return u
}

// words returns the words of all lines of a key.
func (u unit) words(key string) []string { return strings.Fields(strings.Join(u[key], " ")) }

// mostExposed bounds the exposure, of 100, that `systemd-analyze security` finds. It finds 17 now, and a newer version
// may check more.
const mostExposed = 20

// TestUnits lets systemd verify both units and rate their confinement.
func TestUnits(t *testing.T) {
	t.Parallel()
	needMachine(t)
	needTool(t, "systemd-analyze", "systemd")
	for _, program := range []string{"director", "realserver"} {
		text, err := os.ReadFile(unitFile(program))
		if err != nil {
			t.Fatal(err)
		}
		// The program may be missing.
		installed := "/usr/local/bin/" + program
		if !strings.Contains(string(text), "ExecStart="+installed+" run -c /etc/vstun/"+program+".toml\n") {
			t.Errorf("the unit of %s does not start it from where it is installed", program)
		}
		file := filepath.Join(t.TempDir(), filepath.Base(unitFile(program)))
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), installed, programPath(program))),
			0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput(); err != nil ||
			len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
		if out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager",
			"--threshold="+strconv.Itoa(mostExposed), file).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze security: %v\n%s", err, out)
		}
	}
}

// TestUnitsSandbox: both programs do all of their work in the sandboxes of their units.
func TestUnitsSandbox(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("SKIPPED: the race detector has needs of its own")
	}
	s := newSite(t, 1, nil)
	needTool(t, "systemd-analyze", "systemd")
	s.mustWorkWithoutRoot(privilegedPort, (*program).startBounding, (*program).inUnit)
	if out := s.agents[0].Output(); !strings.Contains(out, "fast_path=true") {
		t.Errorf("the agent has no fast path:\n%s", out)
	}
}

// TestUnitsSandboxBGP: in the director's sandbox a session with a password and BFD comes up, and a realserver's name is
// resolved: when a reload brings them after the director has given up its capabilities, and at a start, with a
// listening socket.
func TestUnitsSandboxBGP(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("SKIPPED: the race detector has needs of its own")
	}
	s := newSite(t, 1, nil)
	needTool(t, "systemd-analyze", "systemd")
	s.removeRoutes()
	s.runBird(s.Router, fmt.Sprintf("log stderr all;\nrouter id 192.0.2.1;\nprotocol device { }\n"+
		"protocol bfd { interface \"*\" { interval 100 ms; }; }\nprotocol kernel { ipv4 { export all; }; }\n"+
		"protocol bgp director1 { local as %d; neighbor %v as %d; password \"secret\"; bfd on; error wait time 1, 2; "+
		"ipv4 { import all; export none; }; }\n", routerAS, s.Director.Addr, directorAS))
	s.zone(s.addressRecords("web.test.", 0)...)
	d := s.prepare(s.Director, "director")
	s.director = d
	d.configure(s.fileWith(firstVIP))
	s.openDir()
	dir := filepath.Dir(d.socket)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, unprivileged, unprivileged)); err != nil {
		t.Fatal(err)
	}
	d.startAs(d.inUnit())
	d.mustHaveOnlyNetAdmin(d.startBounding())
	service := fmt.Sprintf("[[service]]\nname = \"first\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\n"+
		"resolve = { server = %q }\nrealserver = [ { address = \"web.test\" } ]\n", s.VIP, s.Client.Addr)
	bgp := s.bgpTOML(s.Director, "password = \"secret\"\nbfd = { interval = \"100ms\" }\n")
	s.reloadWith(bgp + service)
	mustWork := func() {
		t.Helper()
		s.has(0)
		s.awaitHops(s.VIP, s.Director)
		s.awaitBFD(d)
		d.mustHaveOnlyNetAdmin(d.startBounding())
	}
	mustWork()
	d.stop()
	d.configure(s.fileWith(strings.Replace(bgp, "[bgp]\n", fmt.Sprintf("[bgp]\nlisten = %q\n", s.Director.Addr), 1) +
		service))
	d.startAs(d.inUnit())
	mustWork()
}

// inUnit returns the command that runs the program in its sandbox of the unit. The user nobody owns the folder of its
// socket.
func (p *program) inUnit() *exec.Cmd {
	p.t.Helper()
	u := readUnit(p.t, p.name)
	writable := append(u.words("ReadWritePaths"), filepath.Dir(p.socket))
	box := &sandbox{Unprivileged: true, Writable: writable, Filter: u.filter(p.t)}
	for _, name := range u.words("AmbientCapabilities") {
		c, err := cap.FromName(strings.ToLower(name))
		if err != nil {
			p.t.Fatal(err)
		}
		box.Caps = append(box.Caps, c)
	}
	return box.command(p.t, exec.Command(programPath(p.name), "run", "-c", p.config))
}

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWithoutRoot runs both programs as nobody, with no more than CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun: they do all of their work, and
// leave the machine as it was.
func TestWithoutRoot(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	before := s.observeAll()
	programs := []*program{s.prepare(s.Webs[0], "realserver"), s.prepare(s.Director, "director")}
	programs[0].configure(s.agentTOML(programs[0].socket, ""))
	programs[1].configure(s.directorTOML(programs[1].socket, "", service{"tcp", "80", "wrr", []int{1}}))
	s.openDir()
	for _, p := range programs {
		dir := filepath.Dir(p.socket)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		process, err := p.host.Start(private(asNobody, exec.Command(programPath(p.name), "run", "-c", p.config)))
		if err != nil {
			t.Fatal(err)
		}
		p.Process = process
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the end of what %s wrote:\n%s", p, process.Output())
			}
		})
		eventually(t, p.String()+" is up", soon, func() bool {
			select {
			case <-process.Done():
				t.Fatalf("%s ended: %v\n%s", p, process.Wait(), process.Output())
			default:
			}
			var ignored struct{}
			return p.get(&ignored) == nil
		})
	}
	s.parrot(s.Webs[0], 80)
	s.mustParrot(80, s.Webs[0].Name)
	for _, p := range programs {
		p.stop()
		mustBeEmpty(t, "at the end", filepath.Dir(p.socket))
	}
	mustBe(t, "at the end", before, s.observeAll())
}

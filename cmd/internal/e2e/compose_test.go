package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vstun/testdata/testkit"
)

// TestCompose runs the services of the compose file, by docker-compose and podman's service, on hosts of their own. A
// client is served out of them.
func TestCompose(t *testing.T) {
	t.Parallel()
	needTool(t, "docker-compose", "docker-compose")
	pod := newPodmanForHosts(t)
	text, err := os.ReadFile(filepath.Join(testkit.Root(t), "cmd/director/compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	serveFromHosts(t, pod, func(p *program, dir string) {
		socket := filepath.Join(pod.dir, p.name+".sock")
		// the network of this process is the "host" of its containers
		if _, err := p.host.Start(pod.command("system", "service", "--time", "0", "unix://"+socket)); err != nil {
			t.Fatal(err)
		}
		testkit.Within(t, "podman's service is there", soon, func() bool {
			_, err := os.Stat(socket)
			return err == nil
		})
		file := dir + ".yaml"
		services := replaceAll(t, string(text), map[string]string{
			"- /etc/vstun:":   "- " + filepath.Dir(p.config) + ":",
			"- /run/vstun:":   "- " + dir + ":",
			"- /dev/net/tun:": "- " + pod.tun + ":",
		})
		if err := os.WriteFile(file, []byte(services), 0o644); err != nil {
			t.Fatal(err)
		}
		up := exec.Command("docker-compose", "-f", file, "-p", "vstun-"+p.name, "up", "-d", p.name)
		up.Env = append(os.Environ(), "DOCKER_HOST=unix://"+socket)
		if got := runFor(t, p.host, up, testkit.Patience); got.code != 0 {
			t.Fatalf("docker-compose: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
		}
		pod.follow(p, "vstun-"+p.name)
	})
}

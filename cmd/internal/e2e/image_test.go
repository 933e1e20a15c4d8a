package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestImage runs both programs out of the image, by podman: as root with the host's network and the fast path, and as
// another user with a network of the container's own. /proc/sys is read-only in a container, so that its sysctls are
// set beforehand.
func TestImage(t *testing.T) {
	t.Parallel()
	needMachine(t)
	needTool(t, "sysctl", "procps")
	needFull(t, "the image takes a while to make")
	p := newPodman(t)
	info, err := os.Stat(p.image)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the image has %.1f MB", float64(info.Size())/1e6)
	if info.Size() > 45e6 {
		t.Error("that is more than 45 MB")
	}
	cmd, _ := p.run(container{User: "0", Network: "none"}, "sh")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "not found") {
		t.Errorf("a shell in the image: %v: %s", err, out)
	}
	t.Run("HostNetwork", func(t *testing.T) { mustServeFromContainers(t, p, "0:0", false) })
	t.Run("OwnNetworkUser", func(t *testing.T) { mustServeFromContainers(t, p, "65532:65532", true) })
}

// mustServeFromContainers starts a director and an agent in containers. A client must be served.
func mustServeFromContainers(t *testing.T, pod *podman, user string, ownNetwork bool) {
	s := newSite(t, 1, nil)
	s.openDir()
	s.director, s.agents = s.prepare(s.Director, "director"), []*program{s.prepare(s.Webs[0], "realserver")}
	s.director.configure(s.directorTOML(s.director.socket, "", service{"tcp", "80", "wrr", []int{1}}))
	s.agents[0].configure(s.agentTOML(s.agents[0].socket, ""))
	s.namedEchoAt(s.Webs[0], ":80")
	before := map[string]hostState{}
	for _, p := range []*program{s.agents[0], s.director} {
		dir := filepath.Dir(p.socket)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if user != "0:0" {
			if err := os.Chown(dir, 65532, 65532); err != nil {
				t.Fatal(err)
			}
		}
		c := container{User: user, Network: "host", Mounts: []string{p.config, dir}, BPF: user == "0:0"}
		if ownNetwork {
			c.Network, c.From = "ns:/run/netns/"+p.host.Namespace, "/run/netns/"+s.Client.Namespace
		}
		sysctls, _ := pod.run(c, p.name, "check", "--sysctls", "-c", p.config)
		s.presetSysctls(p.host, sysctls)
		testkit.Within(t, "the addresses are settled", soon, func() bool { return settled(t, p.host) })
		before[p.host.Name] = observe(t, p.host)
		cmd, name := pod.run(c, p.name, "run", "-c", p.config)
		begin := time.Now()
		p.startAs(cmd)
		took := time.Since(begin)
		t.Logf("%s answers on its control socket %v after podman run began", p, took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("the start of %s took %v, want at most a second", p, took)
		}
		status := run(t, p.host, pod.command("exec", name, p.name, "status", "-c", p.config))
		if status.code != 0 || !strings.Contains(status.stdout, s.VIP.String()) {
			t.Errorf("podman exec %s status: exit status %d:\n%s%s", p.name, status.code, status.stdout, status.stderr)
		}
	}
	for range 3 {
		s.mustBeServedBy(80, s.Webs[0].Name)
	}
	is := s.director.balance().FastPath
	t.Logf("fast path: %v %s", is.On, is.Reason)
	if is.On != (user == "0:0") && strings.Contains(is.Reason, "permitted") { // otherwise the kernel has none
		t.Errorf("the fast path of a container of user %s: %+v", user, is)
	}
	for _, p := range []*program{s.director, s.agents[0]} {
		p.stop() // podman passes SIGTERM on, and its exit status
		mustBe(t, "after the container", map[string]hostState{p.host.Name: before[p.host.Name]},
			map[string]hostState{p.host.Name: observe(t, p.host)})
	}
	if out, err := exec.Command("ip", "-o", "link", "show", "type", "tun").Output(); err == nil &&
		strings.Contains(string(out), "vs0") {
		t.Errorf("the machine's own network has the device:\n%s", out)
	}
}

// presetSysctls sets the sysctls of h that a command prints, which runs check --sysctls. In a container they are
// read-only.
func (s *site) presetSysctls(h *lab.Host, check *exec.Cmd) {
	s.t.Helper()
	got := run(s.t, h, check)
	if got.code != 0 {
		s.t.Fatalf("check --sysctls on %s: exit status %d: %s", h.Name, got.code, got.stderr)
	}
	for line := range strings.Lines(got.stdout) {
		s.shell(h, "sysctl -qw "+strings.ReplaceAll(strings.TrimSpace(line), " = ", "="))
	}
}

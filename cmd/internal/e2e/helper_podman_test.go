package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/daemon"
)

// podman has the image of both programs, in a store of its own that ends with the test.
type podman struct {
	t       *testing.T
	dir     string
	image   string // the tar file
	conf    string // containers.conf
	tun     string // a node of /dev/net/tun that all users may open
	started int
}

// newPodman makes the image for this machine's architecture, and loads it.
func newPodman(t *testing.T) *podman {
	t.Helper()
	needTool(t, "podman", "podman")
	needTool(t, "runc", "runc")
	dir, err := os.MkdirTemp("", "vstun-pod-") // short: podman's sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{t: t, dir: dir, image: filepath.Join(dir, "vstun-image.tar"), tun: filepath.Join(dir, "tun")}
	t.Cleanup(func() {
		p.do("rm", "--all", "--force", "--time", "0")
		p.do("rmi", "--all", "--force")
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("../../../.ci/image", dir)
	cmd.Env = append(os.Environ(), "ARCHS="+runtime.GOARCH)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	p.conf = filepath.Join(dir, "containers.conf")
	const conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n" + // of the machine
		"[engine]\nlock_type = \"file\"\n" // otherwise all podmans of the machine share their locks
	if err := os.WriteFile(p.conf, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(p.tun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.tun, 0o666); err != nil { // whatever the umask
		t.Fatal(err)
	}
	p.do("load", "--input", p.image)
	return p
}

// command is podman with these arguments. Its default runtime, crun, refuses the cgroups of some machines.
func (p *podman) command(args ...string) *exec.Cmd {
	cmd := exec.Command("podman", append(p.flags(), args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+p.conf)
	return cmd
}

// flags returns podman's flags for its store.
func (p *podman) flags() []string {
	sub := func(name string) string { return filepath.Join(p.dir, name) }
	return []string{"--root", sub("root"), "--runroot", sub("run"), "--tmpdir", sub("tmp"), "--storage-driver", "vfs",
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"}
}

// do runs podman to its end. It must succeed.
func (p *podman) do(args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).Output()
	if err != nil {
		text := ""
		if exit, ok := err.(*exec.ExitError); ok {
			text = string(exit.Stderr)
		}
		p.t.Errorf("podman %v: %v\n%s", args, err, text)
	}
	return string(out)
}

// container is a way to run the image.
type container struct {
	User    string
	Network string   // "host", "none" or "ns:PATH"
	From    string   // the network namespace that podman runs in, a path; "": the caller's
	Mounts  []string // folders and files that it has at the same path
	BPF     bool     // it may load BPF programs
}

// run returns podman run of a new container, and the container's name. Its root is read-only, and it has no capability
// but the two that the programs need.
func (p *podman) run(c container, command ...string) (cmd *exec.Cmd, name string) {
	p.started++
	name = fmt.Sprintf("vstun%d", p.started)
	args := []string{"run", "--rm", "--name", name, "--user", c.User, "--network", c.Network, "--read-only",
		"--cap-drop", "all", "--cap-add", "NET_ADMIN,NET_RAW", "--device", p.tun + ":/dev/net/tun"}
	if c.BPF {
		args = append(args, "--cap-add", "BPF,PERFMON", "--security-opt", "seccomp=unconfined")
	}
	for _, m := range c.Mounts {
		args = append(args, "--volume", m+":"+m)
	}
	release, _, _ := strings.Cut(daemon.Version(), "+")
	args = append(args, "vstun:"+release)
	cmd = p.command(append(args, command...)...)
	if c.From != "" {
		env := cmd.Env
		cmd = exec.Command("nsenter", append([]string{"--net=" + c.From}, cmd.Args...)...)
		cmd.Env = env
	}
	return cmd, name
}

// newPodmanForHosts is newPodman for serveFromHosts.
func newPodmanForHosts(t *testing.T) *podman {
	t.Helper()
	needMachine(t)
	needTool(t, "sysctl", "procps")
	needTool(t, "ip", "iproute2")
	needFull(t, "the image takes a while to make")
	return newPodman(t)
}

// serveFromHosts starts an agent that does not own its VIP, and a director, in containers with the networks of their
// hosts. A client must be served. start starts the container of a program, whose control socket is in dir.
func serveFromHosts(t *testing.T, pod *podman, start func(p *program, dir string)) {
	t.Helper()
	s := newSite(t, 1, nil)
	s.openDir()
	web := s.Webs[0]
	s.namedEchoAt(web, ":80")
	s.shell(web, fmt.Sprintf("ip tuntap add kube-ipvs0 mode tun; ip address add %s dev kube-ipvs0", single(s.VIP)))
	for _, name := range []string{"realserver", "director"} {
		h, control := web, "/run/vstun/"+name+".sock"
		config := s.agentTOML(control, "own_vips = false")
		if name == "director" {
			h, config = s.Director, s.directorTOML(control, "", service{"tcp", "80", "wrr", []int{1}})
		}
		etc, dir := filepath.Join(s.dir, h.Name+"-etc"), filepath.Join(s.dir, h.Name)
		for _, d := range []string{etc, dir} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		p := newProgram(t, h, name, filepath.Join(etc, name+".toml"), filepath.Join(dir, name+".sock"))
		p.configure(config)
		s.presetSysctls(h, exec.Command(programPath(name), "check", "--sysctls", "-c", p.config))
		start(p, dir)
	}
	for range 3 {
		s.mustBeServedBy(80, web.Name)
	}
}

// follow takes a container that runs already as the process of a program. Its root is read-only, and it has no
// capability but the two that the programs need.
func (p *podman) follow(program *program, name string) {
	p.t.Helper()
	p.t.Cleanup(func() {
		if p.t.Failed() {
			got := run(p.t, program.host, p.command("logs", name))
			p.t.Logf("%s:\n%s%s", name, got.stdout, got.stderr)
		}
	})
	program.startAs(p.command("attach", "--no-stdin", "--sig-proxy", name))
	p.t.Cleanup(func() { // another end than podman's would start it anew
		program.ending = true
		p.do("stop", name)
		if err := program.Wait(); err != nil {
			p.t.Errorf("%s did not end with exit status 0: %v", name, err)
		}
	})
	const want = "true [CAP_NET_ADMIN CAP_NET_RAW]\n"
	if got := p.do("inspect", "--format", "{{.HostConfig.ReadonlyRootfs}} {{.EffectiveCaps}}", name); got != want {
		p.t.Errorf("%s: read-only root and capabilities %q, want %q", name, got, want)
	}
}

// replaceAll replaces each key of replacements in text by its value. The text must have the key.
func replaceAll(t *testing.T, text string, replacements map[string]string) string {
	t.Helper()
	for old, replacement := range replacements {
		if !strings.Contains(text, old) {
			t.Fatalf("no %s in\n%s", old, text)
		}
		text = strings.ReplaceAll(text, old, replacement)
	}
	return text
}

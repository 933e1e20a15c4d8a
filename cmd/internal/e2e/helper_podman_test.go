package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// podman has the image of both programs, in a store of its own that ends with the test.
type podman struct {
	t       *testing.T
	dir     string
	image   string // the tar file
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
	sub := func(name string) string { return filepath.Join(p.dir, name) }
	return exec.Command("podman", append([]string{"--root", sub("root"), "--runroot", sub("run"), "--tmpdir",
		sub("tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime",
		"runc"}, args...)...)
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
}

// run returns podman run of a new container, and the container's name. Its root is read-only, and it has no capability
// but the two that the programs need.
func (p *podman) run(c container, command ...string) (cmd *exec.Cmd, name string) {
	p.started++
	name = fmt.Sprintf("vstun%d", p.started)
	args := []string{"run", "--rm", "--name", name, "--user", c.User, "--network", c.Network, "--read-only",
		"--cap-drop", "all", "--cap-add", "NET_ADMIN,NET_RAW", "--device", p.tun + ":/dev/net/tun",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	for _, m := range c.Mounts {
		args = append(args, "--volume", m+":"+m)
	}
	args = append(args, "vstun:0.1.0")
	cmd = p.command(append(args, command...)...)
	if c.From != "" {
		cmd = exec.Command("nsenter", append([]string{"--net=" + c.From}, cmd.Args...)...)
	}
	return cmd, name
}

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// booted is a systemd on this machine's files, in its own namespaces: with its journal and the packages that the test
// installs. Its writes are kept in memory. It can change the kernel settings of its own network only.
type booted struct {
	t   *testing.T
	pid int // of systemd
}

const systemd = "/lib/systemd/systemd"

// boot starts systemd until the test ends, or skips the test if systemd can't be started.
func boot(t *testing.T) *booted {
	t.Helper()
	return bootOn(t, nil)
}

// bootOn is boot with the network of a lab's host; nil: with a network of its own.
func bootOn(t *testing.T, h *lab.Host) *booted {
	t.Helper()
	if _, err := os.Stat(systemd); err != nil {
		t.Skip("SKIPPED: needs systemd: apt-get install systemd (or make deps)")
	}
	needTool(t, "nsenter", "util-linux")
	cgroup, err := makeCgroup()
	if err != nil {
		t.Skipf("SKIPPED: systemd needs a cgroup of its own: %v", err)
	}
	t.Cleanup(func() { removeCgroup(t, cgroup) })
	group, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	var out bytes.Buffer
	cmd := exec.Command("/proc/self/exe", t.TempDir())
	cmd.Env = append(os.Environ(), helperEnv+"="+bootsSystemd)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(group.Fd()), Pdeathsig: unix.SIGKILL}
	on := func(fn func() error) error { return fn() }
	if h != nil {
		on = h.Do
	} else {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // Pdeathsig depends on the thread; other locked threads end with their goroutines
		defer runtime.UnlockOSThread()
		if err := on(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				_ = cmd.Wait() // it is killed
			}
			return nil
		}); err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		t.Skipf("SKIPPED: systemd can't be started here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails only if it has ended
		<-ended
	})
	b := &booted{t, cmd.Process.Pid}
	for end := time.Now().Add(time.Minute); ; time.Sleep(tick) {
		// It fails at once while systemd does not listen yet.
		state, _ := b.try("timeout", "30", "systemctl", "is-system-running", "--wait")
		select {
		case <-ended:
			t.Skipf("SKIPPED: systemd does not run here:\n%s", out.Bytes())
		default:
		}
		if state = strings.TrimSpace(state); state == "running" || state == "degraded" {
			return b
		}
		if time.Now().After(end) {
			t.Skipf("SKIPPED: systemd does not come up here: %s\n%s", state, out.Bytes())
		}
	}
}

// try runs a command in it, and returns its output.
func (b *booted) try(command ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(b.pid), "-p", "-m", "-u", "-i", "-n", "-C",
		"-r", "-w"}, command...)...).CombinedOutput()
	return string(out), err
}

// run is try for a command that must succeed.
func (b *booted) run(command ...string) string {
	b.t.Helper()
	out, err := b.try(command...)
	if err != nil {
		journal, _ := b.try("journalctl", "--no-pager", "-n", "30", "-o", "cat")
		b.t.Fatalf("%s: %v\n%s\njournal:\n%s", strings.Join(command, " "), err, out, journal)
	}
	return out
}

// write writes a file in it, and makes the directory.
func (b *booted) write(path, text string) {
	b.t.Helper()
	if dir, file := filepath.Split(path); dir == "/etc/vstun/" {
		text = withFastPath(strings.TrimSuffix(file, ".toml"), text)
	}
	path = filepath.Join(fmt.Sprintf("/proc/%d/root", b.pid), path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// property returns a property of a unit, as systemctl show prints it.
func (b *booted) property(unit, name string) string {
	b.t.Helper()
	return b.properties(unit, name)[name]
}

// properties returns properties of a unit, at one moment.
func (b *booted) properties(unit string, names ...string) map[string]string {
	b.t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(b.run("systemctl", "show", "-p", strings.Join(names, ","), unit)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[name] = value
	}
	return all
}

// bootSystemd is a helper: it makes systemd's root in a directory and becomes systemd.
func bootSystemd(dir string) error {
	runtime.LockOSThread()
	root := filepath.Join(dir, "root")
	at := func(path string) string { return filepath.Join(root, path) }
	for _, step := range []func() error{
		func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) },
		func() error { return unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("none", dir, "tmpfs", 0, "mode=755") },
		func() error {
			return errors.Join(os.Mkdir(dir+"/upper", 0o755), os.Mkdir(dir+"/work", 0o755), os.Mkdir(root, 0o755))
		},
		func() error {
			return unix.Mount("none", root, "overlay", 0, "lowerdir=/,upperdir="+dir+"/upper,workdir="+dir+"/work")
		},
		func() error { return onlyJournal(root) },
		func() error { return unix.Mount("none", at("proc"), "proc", 0, "") },
		func() error { return unix.Mount(at("proc/sys/net"), at("proc/sys/net"), "", unix.MS_BIND, "") },
		func() error { return unix.Mount(at("proc/sys"), at("proc/sys"), "", unix.MS_BIND|unix.MS_REC, "") },
		func() error {
			return unix.Mount("none", at("proc/sys"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		},
		func() error { return unix.Mount("none", at("sys"), "sysfs", unix.MS_RDONLY, "") },
		func() error { return unix.Mount("none", at("sys/fs/cgroup"), "cgroup2", 0, "") },
		func() error { return unix.Mount("none", at("run"), "tmpfs", 0, "mode=755") },
		func() error { return unix.Mount("none", at("tmp"), "tmpfs", 0, "mode=1777") },
		func() error { return unix.Mount("none", at("dev"), "tmpfs", 0, "mode=755") },
		func() error { return makeDevices(at("dev")) },
		func() error { return unix.Chdir(root) },
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return unix.Exec(systemd, []string{systemd, "--unit=basic.target", "--show-status=no"}, []string{"container=vstun",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

// onlyJournal lets systemd start its journal only, and lets packages start their own units.
func onlyJournal(root string) error {
	errs := []error{os.RemoveAll(filepath.Join(root, "etc/fstab")),
		os.RemoveAll(filepath.Join(root, "usr/sbin/policy-rc.d"))}
	for _, dir := range []string{"etc/systemd", "usr/lib/systemd", "lib/systemd"} {
		errs = append(errs, os.RemoveAll(filepath.Join(root, dir, "system-generators")))
		links, err := filepath.Glob(filepath.Join(root, dir, "system/*.*s/*")) // .wants, .requires
		errs = append(errs, err)
		for _, link := range links {
			if filepath.Base(link) != "systemd-journald.service" && !strings.HasSuffix(filepath.Dir(link), ".d") {
				errs = append(errs, os.Remove(link))
			}
		}
	}
	return errors.Join(errs...)
}

// makeDevices makes the usual devices, and the TUN driver's.
func makeDevices(dev string) error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	errs := []error{os.Mkdir(dev+"/net", 0o755), os.Mkdir(dev+"/pts", 0o755), os.Mkdir(dev+"/shm", 0o1777),
		os.Symlink("pts/ptmx", dev+"/ptmx"),
		unix.Mknod(dev+"/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))}
	for i, name := range map[uint32]string{3: "null", 5: "zero", 7: "full", 8: "random", 9: "urandom"} {
		errs = append(errs, unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, i))))
	}
	return errors.Join(append(errs, unix.Mknod(dev+"/tty", unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))))...)
}

// makeCgroup makes a cgroup in the hierarchy that systemd uses, wherever it is mounted.
func makeCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return os.MkdirTemp(f[1], "vstun-e2e-")
		}
	}
	return "", errors.New("cgroup2 is not mounted")
}

// removeCgroup waits until the cgroup is empty, and removes it.
func removeCgroup(t *testing.T, root string) {
	testkit.Within(t, "the cgroup is removed", soon, func() bool {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // a folder may vanish meanwhile
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i]) // the check is whether the root is absent
		}
		_, err := os.Stat(root)
		return errors.Is(err, fs.ErrNotExist)
	})
}

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Roles of the test binary as a helper, which runs in its own mount namespace; see private.
const (
	withoutTUN      = "without-tun"       // hides /dev/net/tun and becomes the command
	withClosedTUN   = "with-closed-tun"   // is asUnprivileged, but /dev/net/tun is for root alone
	readOnlySysctls = "read-only-sysctls" // as in many containers
	// runs the command with CAP_NET_ADMIN, CAP_NET_RAW and access to /dev/net/tun, and no other privilege
	asUnprivileged = "as-unprivileged"
	bootsSystemd   = "boots-systemd" // see booted
	sandboxed      = "sandboxed"     // see sandbox
	// runs the command with an empty /run, and fails if the command leaves a file there
	withPrivateRun = "with-private-run"
)

// private makes the helper run cmd, in its own mount namespace.
func private(role string, cmd *exec.Cmd) *exec.Cmd {
	self := exec.Command("/proc/self/exe", append([]string{cmd.Path}, cmd.Args[1:]...)...)
	self.Env = append(os.Environ(), helperEnv+"="+role)
	self.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return self
}

// leftBehind is the exit status of withPrivateRun if the command has left files.
const leftBehind = 99

// helper is the helper's main function. It returns the exit status.
func helper(role string, args []string) int {
	var err error
	switch role {
	case withoutTUN:
		if err = unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err == nil {
			err = unix.Exec(args[0], args, os.Environ())
		}
	case readOnlySysctls:
		if err = unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err == nil {
			err = unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err == nil {
			err = unix.Exec(args[0], args, os.Environ())
		}
	case asUnprivileged, withClosedTUN:
		mode := map[string]os.FileMode{asUnprivileged: 0o666, withClosedTUN: 0o600}[role]
		if err = unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err == nil {
			err = unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))
		}
		if err == nil {
			err = os.Chmod("/dev/net/tun", mode) // whatever the umask
		}
		if err == nil {
			return runAs(unprivileged, args)
		}
	case bootsSystemd:
		err = bootSystemd(args[0])
	case sandboxed:
		err = enterSandbox(args)
	case withPrivateRun:
		if err = unix.Mount("none", "/run", "tmpfs", 0, ""); err == nil {
			return runAndLook(args)
		}
	default:
		err = fmt.Errorf("no such role")
	}
	fmt.Fprintf(os.Stderr, "helper %s: %v\n", role, err)
	return leftBehind
}

// unprivileged is the number of the user nobody, on Debian.
const unprivileged = 65534

// runAs runs a command as a user with the capabilities that our programs need, and forwards SIGTERM to it. It returns
// the command's exit status.
func runAs(uid uint32, args []string) int {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	runtime.LockOSThread() // the signal comes when the thread ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Credential: &syscall.Credential{Uid: uid, Gid: uid},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return leftBehind
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // fails only if it has ended
		}
	}()
	_ = cmd.Wait() // its status is what counts
	return cmd.ProcessState.ExitCode()
}

// runAndLook runs a command, forwards signals to it, and checks what it has left in /run.
func runAndLook(args []string) int {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	runtime.LockOSThread() // the signal comes when the thread ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return leftBehind
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // fails only if it has ended
		}
	}()
	_ = cmd.Wait() // its status is looked at below
	// /run/netns itself stays, as ip-netns(8) leaves it.
	left, err := filepath.Glob("/run/netns/*")
	more, err2 := filepath.Glob("/run/vstun*")
	if left = append(left, more...); len(left) > 0 || err != nil || err2 != nil {
		fmt.Fprintln(os.Stderr, "left behind:", left, err, err2)
		return leftBehind
	}
	return cmd.ProcessState.ExitCode()
}

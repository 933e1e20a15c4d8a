package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// sandbox confines a program as systemd does (systemd.exec(5)), in the parts that need no service manager.
type sandbox struct {
	Nobody bool        // user and group nobody, with Caps
	Caps   []cap.Value // AmbientCapabilities and CapabilityBoundingSet
	// Folders where the program may write. Everything else is read-only, and /dev has only net/tun and null. nil: no
	// such restriction.
	Writable []string
	Filter   []bpf.RawInstruction // of system calls; nil: none
}

// sandboxEnv carries a sandbox to the helper that enters it.
const sandboxEnv = "VSTUN_E2E_SANDBOX"

// command makes cmd run in the sandbox.
func (b *sandbox) command(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	cmd = private(sandboxed, cmd)
	cmd.Env = append(cmd.Env, sandboxEnv+"="+string(text))
	return cmd
}

// enterSandbox confines the helper, which then becomes the command.
func enterSandbox(args []string) error {
	var b sandbox
	if err := json.Unmarshal([]byte(os.Getenv(sandboxEnv)), &b); err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is this thread's, and so the command's
	if b.Writable != nil {
		if err := b.mount(); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	if b.Nobody {
		if err := b.dropPrivileges(); err != nil {
			return fmt.Errorf("drop privileges: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil { // another user has none
		return err
	}
	if b.Filter != nil {
		program := unix.SockFprog{Len: uint16(len(b.Filter)), Filter: (*unix.SockFilter)(unsafe.Pointer(&b.Filter[0]))}
		if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0,
			0); err != nil {
			return fmt.Errorf("filter: %w", err)
		}
	}
	return unix.Exec(args[0], args, os.Environ())
}

// mount does ProtectSystem=strict with ReadWritePaths, and PrivateDevices with BindPaths=/dev/net/tun.
func (b *sandbox) mount() error {
	err := errors.Join(
		unix.Mount("none", "/dev", "tmpfs", 0, ""),
		os.Mkdir("/dev/net", 0o755),
		unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))),
		os.Chmod("/dev/net/tun", 0o666), // whatever the umask
		// the standard input of started programs
		unix.Mknod("/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.Chmod("/dev/null", 0o666),
	)
	for _, path := range b.Writable {
		err = errors.Join(err, unix.Mount(path, path, "", unix.MS_BIND, ""))
	}
	if err == nil {
		err = unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE,
			&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	for _, path := range b.Writable {
		err = errors.Join(err, unix.MountSetattr(unix.AT_FDCWD, path, 0,
			&unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}))
	}
	return err
}

// dropPrivileges does User, AmbientCapabilities, CapabilityBoundingSet and NoNewPrivileges.
func (b *sandbox) dropPrivileges() error {
	for c := range cap.MaxBits() {
		if !slices.Contains(b.Caps, c) {
			if err := cap.DropBound(c); err != nil {
				return err
			}
		}
	}
	set := cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective, cap.Inheritable} {
		if err := set.SetFlag(flag, true, b.Caps...); err != nil {
			return err
		}
	}
	for _, step := range []func() error{
		func() error { return cap.SetGroups(nobody) },
		func() error { return cap.SetUID(nobody) },
		set.SetProc,
		func() error { return cap.SetAmbient(true, b.Caps...) },
		func() error { _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); return err },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// refuse returns a filter by which only these system calls fail.
func refuse(t *testing.T, numbers ...uint32) []bpf.RawInstruction {
	t.Helper()
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: callNumber, Size: 4}}
	for _, n := range numbers {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: 1}, fail(unix.EPERM))
	}
	return assemble(t, append(program, allow))
}

// callNumber is the offset in struct seccomp_data; seccomp(2).
const callNumber = 0

var allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}

func fail(with unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(with)}
}

func assemble(t *testing.T, program []bpf.Instruction) []bpf.RawInstruction {
	t.Helper()
	raw, err := bpf.Assemble(program)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

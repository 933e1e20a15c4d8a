package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountsEnv makes the test binary run one test in its own mount namespace.
const mountsEnv = "VSTUN_LAB_TEST_MOUNTS"

// TestFirstNamespaceOfAnotherProgram: another program's first `ip netns add` does not keep a lab from deleting its
// namespaces, whether it comes before, during or after the lab's.
func TestFirstNamespaceOfAnotherProgram(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2")
	}
	if os.Getenv(mountsEnv) != t.Name() {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), mountsEnv+"="+t.Name())
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Errorf("%s%v", out, err)
		}
		return
	}
	ip := func(verb, name string) {
		if out, err := exec.Command("ip", "netns", verb, name).CombinedOutput(); err != nil {
			t.Errorf("ip netns %s %s: %v: %s", verb, name, err, out)
		}
	}
	for _, when := range []string{"after", "beside", "before"} {
		if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil { // no /run/netns yet
			t.Fatal(err)
		}
		const others = 8
		add := func() {
			var programs sync.WaitGroup
			for i := range others {
				programs.Go(func() { ip("add", fmt.Sprint("other", i)) })
			}
			programs.Wait()
		}
		if when == "before" {
			add()
		}
		var beside sync.WaitGroup
		if when == "beside" {
			beside.Go(add)
		}
		l, err := New(Spec{Prefix: prefix("netns"), Webs: 1})
		if err != nil {
			t.Fatal(err)
		}
		beside.Wait()
		if when == "after" {
			add()
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		for i := range others {
			ip("del", fmt.Sprint("other", i))
		}
		if left, err := os.ReadDir(namespaceDir); err != nil || len(left) > 0 {
			t.Errorf("%s: left in %s: %v, %v", when, namespaceDir, left, err)
		}
		if err := unix.Unmount("/run", unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

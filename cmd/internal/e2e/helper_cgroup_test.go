package e2e

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// withoutTUNCgroup returns a descriptor of a new cgroup whose processes may not open /dev/net/tun, as in a container
// that has the node without the right to use it. The cgroup ends with the test.
func withoutTUNCgroup(t *testing.T) int {
	t.Helper()
	root := ""
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			root = path
		}
	}
	if root == "" {
		t.Skip("SKIPPED: needs cgroups version 2 at /sys/fs/cgroup or below")
	}
	dir, err := os.MkdirTemp(root, "vstun-e2e-")
	if err != nil {
		t.Skipf("SKIPPED: needs the right to make cgroups: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	// The context is struct bpf_cgroup_dev_ctx (linux/bpf.h): access type, major and minor number.
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupDevice, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, 8, asm.Word),
			asm.Mov.Imm(asm.R0, 1),
			asm.JNE.Imm(asm.R2, 10, "end"),
			asm.JNE.Imm(asm.R3, 200, "end"),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return().WithSymbol("end"),
		}})
	if err != nil {
		t.Fatal(err)
	}
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: dir,
		Attach: ebpf.AttachCGroupDevice, Program: program})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(attached.Close(), program.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	})
	return int(f.Fd())
}

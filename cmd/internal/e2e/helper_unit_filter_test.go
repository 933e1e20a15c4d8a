package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; seccomp(2). Of an argument it is the half that counts, on a little-endian machine.
const (
	argument0 = 16
	argument2 = 32
)

// filter returns the filter of SystemCallFilter, RestrictAddressFamilies, MemoryDenyWriteExecute and RestrictNamespaces
// of a unit.
func (u unit) filter(t *testing.T) []bpf.RawInstruction {
	t.Helper()
	numbers, calls := callNumbers(t), u.systemCalls(t)
	var program []bpf.Instruction
	// when lets body check a field of a system call, if it is this one. body ends the program or falls through.
	when := func(call string, offset uint32, body ...bpf.Instruction) {
		program = append(program, bpf.LoadAbsolute{Off: callNumber, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: numbers[call], SkipTrue: uint8(len(body) + 1)},
			bpf.LoadAbsolute{Off: offset, Size: 4})
		program = append(program, body...)
	}
	var families []bpf.Instruction
	known := map[string]uint32{"AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK,
		"AF_UNIX": unix.AF_UNIX, "AF_PACKET": unix.AF_PACKET}
	names := u.words("RestrictAddressFamilies")
	for i, name := range names {
		families = append(families, bpf.JumpIf{Cond: bpf.JumpEqual, Val: known[name], SkipTrue: uint8(len(names) - i)})
	}
	when("socket", argument0, append(families, fail(unix.EAFNOSUPPORT))...)
	when("mmap", argument2, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: unix.PROT_WRITE | unix.PROT_EXEC},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PROT_WRITE | unix.PROT_EXEC, SkipTrue: 1}, fail(unix.EPERM))
	when("mprotect", argument2, bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: unix.PROT_EXEC, SkipTrue: 1},
		fail(unix.EPERM))
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	when("clone", argument0, bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: namespaces, SkipTrue: 1}, fail(unix.EPERM))
	program = append(program, bpf.LoadAbsolute{Off: callNumber, Size: 4})
	// The first two are RestrictNamespaces'; the last is one that an older systemd refuses, or an older kernel lacks.
	for _, name := range []string{"unshare", "setns", "faccessat2"} {
		delete(calls, name)
	}
	for name, n := range numbers {
		if calls[name] {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: 1}, allow)
		}
	}
	return assemble(t, append(program, fail(unix.EPERM)))
}

// systemCalls returns the system calls that SystemCallFilter allows, by name. Its first line makes it a list of allowed
// calls.
func (u unit) systemCalls(t *testing.T) map[string]bool {
	t.Helper()
	groups := callGroups(t)
	allowed := map[string]bool{}
	var set func(name string, to bool)
	set = func(name string, to bool) {
		if !strings.HasPrefix(name, "@") {
			allowed[name] = to
			return
		}
		if len(groups[name]) == 0 {
			t.Errorf("there is no group of system calls %s", name)
		}
		for _, member := range groups[name] {
			set(member, to)
		}
	}
	for _, line := range append([]string{"@default"}, u["SystemCallFilter"]...) {
		names, off := strings.CutPrefix(line, "~")
		for _, name := range strings.Fields(names) {
			set(name, !off)
		}
	}
	set("@default", true)
	return allowed
}

// callGroups returns systemd's groups of system calls.
func callGroups(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("systemd-analyze", "syscall-filter", "--no-pager")
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	groups, group := map[string][]string{}, ""
	for line := range strings.Lines(string(out)) {
		name := strings.TrimSpace(line)
		switch {
		case name == "":
			group = ""
		case strings.HasPrefix(line, "@"):
			group = name
		case group != "" && !strings.HasPrefix(name, "#"):
			groups[group] = append(groups[group], name)
		}
	}
	return groups
}

// callNumbers returns the numbers of this machine's system calls, by name, from the source of x/sys.
func callNumbers(t *testing.T) map[string]uint32 {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix",
		"zsysnum_linux_"+runtime.GOARCH+".go"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]uint32{}
	for _, m := range regexp.MustCompile(`(?m)^\s*SYS_(\w+)\s*=\s*(\d+)`).FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(m[2], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		numbers[strings.ToLower(m[1])] = uint32(n)
	}
	if len(numbers) < 250 {
		t.Fatalf("only %d system calls", len(numbers))
	}
	return numbers
}

package bpf

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// NeedsCapability reports whether the kernel refuses a process without CAP_BPF each bpf() call, also those for maps and
// programs whose descriptors it has. Linux 5.19 and later do not: commit c8644cd0efe7.
func NeedsCapability() bool {
	disabled, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	if err == nil && strings.TrimSpace(string(disabled)) == "0" {
		return false
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return true
	}
	return olderThan(unix.ByteSliceToString(name.Release[:]), 5, 19)
}

// olderThan reports whether a kernel's release, such as "6.1.0-13-amd64", is older than a version.
func olderThan(release string, major, minor int) bool {
	var is, minorIs int
	if _, err := fmt.Sscanf(release, "%d.%d", &is, &minorIs); err != nil {
		return true
	}
	return is < major || is == major && minorIs < minor
}

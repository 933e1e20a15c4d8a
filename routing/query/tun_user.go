package query

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// TUNUser returns the process with a thread in this network namespace that has a queue of a TUN or TAP device, as
// "PID (NAME)". It returns "" if there is none, or none that this process may look at (proc_pid_fdinfo(5)).
func TUNUser(device string) string {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		if hasQueue(process, device) && isHere(process) {
			name, _ := os.ReadFile(process + "/comm")
			return fmt.Sprintf("%s (%s)", filepath.Base(process), bytes.TrimSpace(name))
		}
	}
	return ""
}

// hasQueue reports whether the process with this folder in /proc has a queue of a device of this name.
func hasQueue(process, device string) bool {
	line := []byte("iff:\t" + device + "\n") // tun_chr_show_fdinfo in drivers/net/tun.c
	files, _ := filepath.Glob(process + "/fd/*")
	for _, file := range files {
		if to, err := os.Readlink(file); err != nil || to != "/dev/net/tun" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(process, "fdinfo", filepath.Base(file)))
		if err == nil && bytes.Contains(text, line) {
			return true
		}
	}
	return false
}

// isHere reports whether a thread of a process is in the calling thread's network namespace.
func isHere(process string) bool {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	threads, _ := filepath.Glob(process + "/task/*/ns/net")
	return slices.ContainsFunc(threads, func(thread string) bool {
		there, err := os.Readlink(thread)
		return err == nil && there == here
	})
}

// CheckTUN returns an error with the remedy if there is a device of this name, which is the key tun.
func CheckTUN(name string) error {
	taken, err := LinkExists(name)
	if err != nil || !taken {
		return err
	}
	if user := TUNUser(name); user != "" { // to remove the device would end it
		return fmt.Errorf("TUN device %s: process %s uses a device of this name: stop it, or set another tun", name,
			user)
	}
	return fmt.Errorf("TUN device %s: there is a device of this name: set another tun, or remove it (ip link del %s)",
		name, name)
}

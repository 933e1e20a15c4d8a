package health

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

func shell(script string) Exec {
	return Exec{Command: []string{"/bin/sh", "-c", script, "sh", "an argument"}, Env: []string{"VSTUN_SERVICE=web"}}
}

func TestExec(t *testing.T) {
	var at netip.AddrPort
	for _, o := range []outcome{
		{"fine", shell("exit 0"), at, true, "exit status 0"},
		{"says why", shell("echo all well; echo more"), at, true, "all well"},
		{"fails", shell("exit 3"), at, false, "exit status 3"},
		{"says why it fails", shell("echo disk full >&2; exit 1"), at, false, "exit status 1: disk full"},
		{"environment and arguments", shell(`echo "$VSTUN_SERVICE, $1, $PWD"`), at, true, "web, an argument, /"},
		{"killed", shell("kill -9 $$"), at, false, "signal: killed"},
		{"talks, slow", shell("while :; do echo yes yes yes yes yes; done"), at, false,
			"not done in time, and killed: yes yes yes yes yes"},
		{"hangs, slow", shell("sleep 1000"), at, false, "not done in time, and killed"},
		{"missing", Exec{Command: []string{"/nonexistent/check"}}, at, false, "not checked, for a fault of this " +
			"machine: fork/exec /nonexistent/check: no such file or directory"},
		{"leaves its output open", shell("sleep 3 & echo started"), at, true, "started"},
	} {
		o.test(t)
	}
}

// TestExecKillsWhatItStarted: at its timeout a program is killed together with all its children.
func TestExecKillsWhatItStarted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	if reason, ok := once(t, shell(fmt.Sprintf("sleep 1000 & echo $! >%s; wait", file)), netip.AddrPort{},
		time.Second); ok {
		t.Fatal(reason)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the child is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") || syscall.Kill(pid, 0) != nil
	})
}

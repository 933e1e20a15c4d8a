package cli

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// TestMainCrash: a program that crashes does not end with the exit status of wrong usage.
func TestMainCrash(t *testing.T) {
	const crash = "VSTUN_TEST_CRASH"
	if os.Getenv(crash) != "" {
		if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil { // no file is left
			t.Fatal(err)
		}
		c := &cobra.Command{Use: "prog", Run: func(*cobra.Command, []string) { panic("a fault") }}
		c.SetArgs([]string{})
		os.Exit(Main(c))
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMainCrash$")
	cmd.Env = append(os.Environ(), crash+"=1")
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGABRT || !strings.Contains(string(out), "a fault") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMainStatus(t *testing.T) {
	root := func(args ...string) *cobra.Command {
		c := &cobra.Command{Use: "prog", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
		c.AddCommand(VersionCommand(),
			&cobra.Command{Use: "fails", Args: cobra.NoArgs, RunE: func(*cobra.Command,
				[]string) error {
				return errors.New("one\ntwo")
			}},
			&cobra.Command{Use: "misused", RunE: func(*cobra.Command,
				[]string) error {
				return UsageError{errors.New("bad file")}
			}})
		c.SetArgs(args)
		return c
	}
	for args, want := range map[string]int{"version": 0, "": 0, "fails": ExitFailure, "misused": ExitUsage,
		"bogus": ExitUsage, "fails x": ExitUsage,
		"fails --bogus": ExitUsage, "--help": 0} {
		stderr, restore := captureStderr(t)
		got := Main(root(strings.Fields(args)...))
		restore()
		text := stderr()
		if got != want {
			t.Errorf("%q: exit status %d, want %d", args, got, want)
		}
		if (got == 0) != (text == "") {
			t.Errorf("%q: standard error has %q", args, text)
		}
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "prog: ") {
				t.Errorf("%q: line %q", args, line)
			}
		}
	}
}

// captureStderr redirects standard error to a file until restore is called. stderr returns the file's contents.
func captureStderr(t *testing.T) (stderr func() string, restore func()) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = f
	return func() string {
			text, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			return string(text)
		}, func() {
			os.Stderr = old
		}
}

package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestRunEndsTogether(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if err := Run(t.Context(), wait, func(context.Context) error { return errors.New("broken") }, wait); err == nil ||
		err.Error() != "broken" {
		t.Errorf("%v", err)
	}
	if err := Run(t.Context(), wait, func(context.Context) error { return nil }); err != nil {
		t.Errorf("a task that ends: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, wait); err != nil {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		ctx, stop := Signals(t.Context())
		if err := Run(ctx, func(ctx context.Context) error {
			if err := syscall.Kill(os.Getpid(), sig); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		}); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
		stop()
	}
	ctx, stop := Signals(t.Context(), syscall.SIGHUP)
	for _, sig := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGHUP} {
		if ctx.Err() != nil {
			t.Error("SIGPIPE ends the program")
		}
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
	}
	<-ctx.Done()
	stop()
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hangup := OnHangup()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil { // before the task runs
		t.Fatal(err)
	}
	if err := Run(ctx, hangup(func() { n++; cancel() })); err != nil || n != 1 {
		t.Errorf("%d hangups, %v", n, err)
	}
}

func TestEvery(t *testing.T) {
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	if err := Every(time.Millisecond, func() {
		if n++; n == 3 {
			cancel()
		}
	})(ctx); err != nil || n != 3 {
		t.Errorf("%d times, %v", n, err)
	}
}

// serviceManager is the socket on which a service manager listens to this process.
func serviceManager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return l
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Error(err)
	}
	l := serviceManager(t)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 32)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", os.Getenv("NOTIFY_SOCKET")+"x")
	if err := Notify("READY=1"); err == nil {
		t.Error("nobody listens, and no error")
	}
}

// TestMainCrash wants a program that crashes not to end with the status of wrong usage.
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

// captureStderr sends standard error to a file; restore ends that, and stderr returns what came.
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

// TestLogNeverWaits: a reader that takes nothing costs lines, and no time.
func TestLogNeverWaits(t *testing.T) {
	r, w := io.Pipe()
	q := newLineQueue(w)
	for i := range 3 * logLines {
		if n, err := fmt.Fprintf(q, "%d\n", i); err != nil || n == 0 {
			t.Fatal(n, err)
		}
	}
	q.flush() // ends although nothing is written
	got := make(chan string)
	go func() {
		s := bufio.NewScanner(r)
		s.Scan()
		got <- s.Text()
		_, _ = io.Copy(io.Discard, r)
	}()
	if first := <-got; first != "0" {
		t.Errorf("the first line is %q", first)
	}
	for done := make(chan struct{}); ; {
		select {
		case q <- queued{written: done}:
			<-done
			return
		default:
			q.flush()
		}
	}
}

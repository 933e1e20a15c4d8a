package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
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

// serviceManager returns the socket of a service manager, to which this process reports.
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
		t.Error("no error without a listener")
	}
}

// TestLogNeverWaits: a reader that does not read costs lines, but no time.
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

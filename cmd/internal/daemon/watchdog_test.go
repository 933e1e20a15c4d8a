package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestWatchdog sends signs of life while the checks succeed, and again when they have recovered.
func TestWatchdog(t *testing.T) {
	const often = 10 * time.Millisecond
	manager := serviceManager(t)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(int((watchdogLooks*often)/time.Microsecond)))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	sign := func(within time.Duration) error {
		b := make([]byte, 32)
		if err := manager.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(b)
		if err == nil && string(b[:n]) != "WATCHDOG=1" {
			t.Errorf("%q", b[:n])
		}
		return err
	}
	var ill atomic.Bool
	var looks atomic.Int64
	log := &strings.Builder{}
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error)
	go func() {
		end <- Watchdog(slog.New(slog.NewTextHandler(log, nil)), func(context.Context) error { return nil },
			func(ctx context.Context) error {
				defer looks.Add(1)
				if ill.Load() { // as a status that never comes
					<-ctx.Done()
					return errors.New("no answer")
				}
				return nil
			})(ctx)
	}()
	for range 3 {
		if err := sign(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	ill.Store(true)
	for n := looks.Load() + 2; looks.Load() < n; { // the one that was on its way has ended
		time.Sleep(time.Millisecond)
	}
	for sign(time.Millisecond) == nil { // those from before
	}
	if err := sign(10 * often); err == nil {
		t.Error("a sign of life while a check fails")
	}
	ill.Store(false)
	if err := sign(time.Minute); err != nil {
		t.Error("no sign of life after the checks have recovered:", err)
	}
	cancel()
	if err := <-end; err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "no answer") {
		t.Errorf("the log does not say why: %s", log)
	}
}

// TestWatchdogNotExpected: without a service manager that expects signs of life, no check is made.
func TestWatchdogNotExpected(t *testing.T) {
	for _, env := range [][2]string{{"", ""}, {"0", ""}, {"x", ""}, {"-7", ""}, {"1000", "1"}} {
		t.Setenv("WATCHDOG_USEC", env[0])
		t.Setenv("WATCHDOG_PID", env[1])
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := Watchdog(slog.New(slog.NewTextHandler(io.Discard, nil)), func(context.Context) error {
			t.Errorf("%q: a check", env)
			return nil
		})(ctx); err != nil || ctx.Err() == nil {
			t.Errorf("%q: %v", env, err)
		}
	}
}

// loop is a Loop.
type loop struct {
	ended uint64
	busy  bool
}

func (l *loop) Progress() (uint64, bool) { return l.ended, l.busy }

func TestStandstill(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after [2]loop
		lost          uint64
		want          string
	}{
		{"idle", [2]loop{{3, false}, {0, false}}, [2]loop{{3, false}, {0, false}}, 0, ""},
		{"at work", [2]loop{{3, true}, {0, false}}, [2]loop{{4, true}, {0, true}}, 5, ""},
		{"in the same batch", [2]loop{{3, false}, {7, true}}, [2]loop{{9, true}, {7, true}}, 0,
			"worker 1 stands still in a batch of packets"},
		{"idle, and packets are lost", [2]loop{{3, false}, {7, false}}, [2]loop{{3, false}, {7, false}}, 5,
			"5 packets lost while all workers wait"},
	} {
		loops, lost := c.before, uint64(100)
		check := Standstill(func() uint64 { return lost }, &loops[0], &loops[1])
		if err := check(t.Context()); err != nil {
			t.Errorf("%s: at the first look: %v", c.name, err)
		}
		loops, lost = c.after, lost+c.lost
		if err := check(t.Context()); (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

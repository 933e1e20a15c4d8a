// Package daemon is the parts of a service that both programs share: tasks that start and end together, signals,
// readiness, the log, privileges and the watchdog.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// release is the version under development. .ci/version reads it from this line.
const release = "0.1.0"

// commit is what .ci/static sets by the linker; otherwise "".
var commit string

// Version returns the release and, if the build knows it, the commit.
func Version() string {
	if commit != "" {
		return release + "+" + commit
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return release
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return release + "+" + s.Value[:12]
		}
	}
	return release
}

// Task runs until ctx is cancelled, and then returns nil.
type Task func(ctx context.Context) error

// SignalError is the cause of the end of a context that Signals made.
type SignalError struct{ Signal syscall.Signal }

// Error returns the signal's name: "SIGTERM".
func (e SignalError) Error() string { return unix.SignalName(e.Signal) }

// Signals returns a context that ends with SIGTERM, SIGINT or one of more, and keeps SIGPIPE from ending the program. A
// program that changes the machine calls it first. Then neither these signals nor a closed pipe of its log end the
// program before it has cleaned up. The cause of the context's end is a SignalError.
func Signals(ctx context.Context, more ...os.Signal) (context.Context, context.CancelFunc) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a write to a closed pipe fails instead
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, append(more, syscall.SIGTERM, syscall.SIGINT)...)
	go func() {
		select {
		case s := <-signals:
			cancel(SignalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// Run runs tasks until ctx is cancelled or a task ends. Then it cancels the others and waits for them. It returns the
// first error, which is also the cause of the tasks' context.
func Run(ctx context.Context, tasks ...Task) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var g errgroup.Group
	for _, task := range tasks {
		g.Go(func() error {
			err := task(ctx)
			cancel(err)
			return err
		})
	}
	return g.Wait()
}

// LogStop is a task that logs the program's stop, with the signal that caused it or the failure of another task.
func LogStop(log *slog.Logger) Task {
	return func(ctx context.Context) error {
		<-ctx.Done()
		if s := (SignalError{}); errors.As(context.Cause(ctx), &s) {
			log.Info("stopping", "signal", s.Error())
		} else {
			log.Error("stopping", "error", context.Cause(ctx))
		}
		return nil
	}
}

// OnHangup catches SIGHUP from now on until the program's end, so that SIGHUP does not end the program. It returns a
// function that makes the task that calls fn for each SIGHUP.
func OnHangup() func(fn func()) Task {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	return func(fn func()) Task {
		return func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-ch:
					fn()
				}
			}
		}
	}
}

// Notify sends the program's state, such as "READY=1", to the service manager (sd_notify(3)). Without a service manager
// it does nothing.
func Notify(state string) error {
	if _, err := systemd.SdNotify(false, state); err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return nil
}

// Every returns a task that calls fn once each period.
func Every(period time.Duration, fn func()) Task {
	return func(ctx context.Context) error {
		t := time.NewTicker(period)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
				fn()
			}
		}
	}
}

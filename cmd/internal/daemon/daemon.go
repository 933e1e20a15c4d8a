// Package daemon is what both programs have in common as services: tasks that live and end together, signals,
// readiness, the log, and the exit status.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Exit statuses, as sysexits for scripts: promises to users.
const (
	ExitFailure = 1 // while running
	ExitUsage   = 2 // wrong usage or configuration
)

// UsageError is an error that ends the program with ExitUsage.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// Main runs a program's command line and returns its exit status. Every error is printed, one line a fault, after the
// program's name.
func Main(root *cobra.Command) int {
	// Go ends a program that crashes with status 2, which says here that the configuration is wrong: nobody would start
	// it anew. So it ends by SIGABRT.
	debug.SetTraceback("crash")
	root.SilenceErrors, root.SilenceUsage = true, true
	Prepare(root)
	running := false
	for _, c := range root.Commands() {
		if run := c.RunE; run != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				running = true // everything before is wrong usage
				return run(c, args)
			}
		}
	}
	err := root.Execute()
	if err == nil {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(os.Stderr, "%s: %s\n", root.Name(), strings.TrimRight(line, "\n"))
	}
	if usage := (UsageError{}); !running || errors.As(err, &usage) {
		return ExitUsage
	}
	return ExitFailure
}

// VersionCommand is the version command.
func VersionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s %s\n", c.Root().Name(), Version())
			return err
		}}
}

// release is the version that is being made.
const release = "0.1.0"

// Version is the release and, where the build knows it, the commit.
func Version() string {
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

// Task is something that runs until ctx is cancelled, and then returns nil.
type Task func(ctx context.Context) error

// SignalError is the cause of the end of a context that Signals made.
type SignalError struct{ Signal syscall.Signal }

// Error returns the signal's name: "SIGTERM".
func (e SignalError) Error() string { return unix.SignalName(e.Signal) }

// Signals returns a context that ends with SIGTERM, SIGINT or one of more, and keeps SIGPIPE from ending the program.
// It is for the very beginning of a program that changes the machine: from then on no signal but SIGKILL ends it before
// it has cleaned up, whoever reads its log, or doesn't. The cause of the context's end is a SignalError.
func Signals(ctx context.Context, more ...os.Signal) (context.Context, context.CancelFunc) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a write to a closed pipe fails then, and no more
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

// Run runs tasks until ctx is cancelled or one of them fails, then cancels the others and waits for them. It returns
// the first failure, which is the cause of the tasks' context. A task that ends by itself ends all.
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

// OnHangup takes SIGHUP from now on, and until the program's end, so that it never ends the program, and returns what
// makes the task that calls fn for each.
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

// Notify sends the program's state to the service manager (sd_notify(3)): "READY=1". Without a service manager it does
// nothing.
func Notify(state string) error {
	if _, err := systemd.SdNotify(false, state); err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return nil
}

// Every is a task that calls fn again and again, period apart.
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

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"vstun/cmd/internal/words"
)

// Watchdog returns a task that sends WATCHDOG=1 to the service manager (WatchdogSec= in systemd.service(5)) after each
// round in which no check has failed. Without a service manager that expects it, the task does nothing. A failed round
// is logged. The service manager restarts the program when all rounds fail for the time that it allows.
func Watchdog(log *slog.Logger, checks ...func(context.Context) error) Task {
	return func(ctx context.Context) error {
		allowed := watchdogTime()
		if allowed == 0 {
			<-ctx.Done()
			return nil
		}
		return Every(allowed/watchdogLooks, func() {
			ctx, cancel := context.WithTimeout(ctx, allowed/watchdogLooks)
			defer cancel()
			var errs []error
			for _, check := range checks {
				errs = append(errs, check(ctx))
			}
			err := errors.Join(errs...)
			switch {
			case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled): // the program ends
			case err != nil:
				log.Error("watchdog check failed; systemd will restart the program if it persists", "error", err)
			default:
				if err := Notify("WATCHDOG=1"); err != nil {
					log.Warn("sd_notify failed", "state", "WATCHDOG=1", "error", err)
				}
			}
		})(ctx)
	}
}

// watchdogLooks is the rounds of checks in the time that the service manager allows between two signs of life.
const watchdogLooks = 4

// watchdogTime returns the time that the service manager allows between two signs of life (sd_watchdog_enabled(3)). 0
// means that it expects none.
func watchdogTime() time.Duration {
	allowed, err := systemd.SdWatchdogEnabled(false)
	if err != nil || allowed < watchdogLooks*time.Microsecond {
		return 0
	}
	return allowed
}

// Loop is a worker that processes one batch after the other.
type Loop interface {
	// Progress returns the number of batches that have ended, and whether the worker is in the next one.
	Progress() (ended uint64, busy bool)
}

// Standstill returns a check for the watchdog. It fails if a loop has been in the same batch since the check before, or
// if all loops wait while lost grows. lost counts packets that the kernel dropped because they were not read in time.
// It may be nil.
func Standstill(lost func() uint64, loops ...Loop) func(context.Context) error {
	type state struct {
		ended uint64
		busy  bool
	}
	var was []state
	var lostBefore uint64
	return func(context.Context) error {
		var errs []error
		moved, now, lostNow := false, make([]state, len(loops)), uint64(0)
		if lost != nil {
			lostNow = lost()
		}
		for i, l := range loops {
			now[i].ended, now[i].busy = l.Progress()
			if was == nil {
				continue
			}
			if now[i] == was[i] && now[i].busy {
				errs = append(errs, fmt.Errorf("worker %d stands still in a batch of packets", i))
			}
			moved = moved || now[i].ended != was[i].ended
		}
		if was != nil && !moved && lostNow > lostBefore {
			errs = append(errs, fmt.Errorf("%s lost while all workers wait", words.Count(lostNow-lostBefore, "packet")))
		}
		was, lostBefore = now, lostNow
		return errors.Join(errs...)
	}
}

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

// Watchdog is a task that tells the service manager again and again that the program works, for as long as each of
// checks finds that it does: WatchdogSec= in systemd.service(5). Where none wants to know, it does nothing. One check
// that fails is no end yet: only when all do, for as long as the service manager allows, it ends the program and starts
// it anew. The log says what they found.
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
				log.Error("watchdog: not well: will be restarted if it stays so", "error", err)
			default:
				if err := Notify("WATCHDOG=1"); err != nil {
					log.Warn("watchdog: service manager not told that all is well", "error", err)
				}
			}
		})(ctx)
	}
}

// watchdogLooks is how often the checks are made in the time that the service manager allows between two signs of life.
const watchdogLooks = 4

// watchdogTime is the time that the service manager allows between two signs of life, 0 for any
// (sd_watchdog_enabled(3)).
func watchdogTime() time.Duration {
	allowed, err := systemd.SdWatchdogEnabled(false)
	if err != nil || allowed < watchdogLooks*time.Microsecond {
		return 0
	}
	return allowed
}

// Loop is a worker that treats one batch after the other.
type Loop interface {
	// Progress returns how many batches have ended, and whether the worker is in the next one.
	Progress() (ended uint64, busy bool)
}

// Standstill makes a check that finds loops which have been in the same batch since the check before; and those that
// all wait while lost, the packets that the kernel has dropped because nobody took them, grows. Lost may be nil.
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

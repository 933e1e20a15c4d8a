package routing

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vstun/testdata/testkit"
)

// passes runs follow for an hour of the bubble's time and returns how often it called reconcile.
func passes(t *testing.T, log *slog.Logger, every time.Duration, reconcile func() (int, error)) (n int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		wake := make(chan struct{}, 1)
		if every > 0 {
			go func() {
				tick := time.NewTicker(every)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						signal(wake)
					case <-ctx.Done():
						return
					}
				}
			}()
		}
		err := follow(ctx, log, wake, nil, func() (int, error) { n++; return reconcile() })
		if err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestStormIsFollowedOnceASecond(t *testing.T) {
	n := passes(t, slog.New(slog.DiscardHandler), 50*time.Millisecond, func() (int, error) { return 0, nil })
	if n > 3600 || n < 3000 {
		t.Errorf("%d passes in an hour, want one a second", n)
	}
}

func TestTroubleThatLastsIsLoggedOnceAndTriedSeldom(t *testing.T) {
	log := &testkit.Log{}
	n := passes(t, slog.New(slog.NewTextHandler(log, nil)), 50*time.Millisecond, func() (int, error) {
		return 0,
			errors.New("no device vs0")
	})
	if n > 370 || n < 300 {
		t.Errorf("%d passes in an hour, want one in 10 s", n)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("%d lines in the log, want 1:\n%s", lines, log)
	}
}

func TestQuietMachineIsPolled(t *testing.T) {
	n := passes(t, slog.New(slog.DiscardHandler), 0, func() (int, error) { return 0, nil })
	if n < 118 || n > 120 {
		t.Errorf("%d passes in an hour, want one in 30 s", n)
	}
}

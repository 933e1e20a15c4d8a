package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestLogStop: the log names the signal that stops the program, or the task that failed.
func TestLogStop(t *testing.T) {
	ended := func(ctx context.Context, task Task) string {
		var log bytes.Buffer
		_ = Run(ctx, LogStop(slog.New(slog.NewTextHandler(&log, nil))), task)
		return log.String()
	}
	for sig, name := range map[syscall.Signal]string{
		syscall.SIGTERM: "SIGTERM", syscall.SIGINT: "SIGINT", syscall.SIGHUP: "SIGHUP",
	} {
		ctx, stop := Signals(t.Context(), syscall.SIGHUP)
		log := ended(ctx, func(ctx context.Context) error {
			err := syscall.Kill(os.Getpid(), sig)
			<-ctx.Done()
			return err
		})
		if !strings.Contains(log, "level=INFO msg=stopping signal="+name+"\n") {
			t.Errorf("%v: log %q", sig, log)
		}
		stop()
	}
	log := ended(t.Context(), func(context.Context) error { return errors.New("no device vs0") })
	if !strings.Contains(log, `level=ERROR msg=stopping error="no device vs0"`) {
		t.Errorf("a task fails: log %q", log)
	}
}

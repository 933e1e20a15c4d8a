// Package reload is the frame in which a running program reads its configuration file again: one reload at a time, with
// its result in the log and in the status.
package reload

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/routing"
)

// Reloader makes the reloads of a program. Its methods may be called from any goroutine.
type Reloader struct {
	program string // as the log calls it
	file    string
	log     *slog.Logger
	mu      sync.Mutex                            // held by a reload, for the next one to wait
	last    atomic.Pointer[control.Configuration] // never nil
}

// New returns the Reloader of a program that has read the configuration file at the time read. The log calls the
// program by that name: "director".
func New(program, file string, read time.Time, log *slog.Logger) *Reloader {
	r := &Reloader{program: program, file: file, log: log}
	r.last.Store(&control.Configuration{Read: read})
	return r
}

// Result is what a successful reload has to say.
type Result struct {
	Changes  []control.Change
	Warnings []string // of the new configuration
	Summary  []any    // attributes for the log
}

// ErrEnding is the error of a reload that the program's end prevents.
var ErrEnding = errors.New("the program is ending")

// LoggedChanges is the largest number of changes that are logged at once, far below the number of lines that the log
// can hold.
const LoggedChanges = 100

// Reload calls apply, which reads the file and puts it in force, and returns the changes. If apply fails, it must have
// changed nothing. The log has the same.
func (r *Reloader) Reload(apply func() (Result, error)) ([]control.Change, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	read := time.Now()
	result, err := apply()
	for _, ending := range []error{ErrEnding, routing.ErrClosed, os.ErrClosed} {
		if errors.Is(err, ending) {
			r.log.Info("reload given up: the " + r.program + " is ending")
			return nil, errors.New("nothing changed: the " + r.program + " is ending")
		}
	}
	if err != nil {
		r.log.Error("reload: nothing changed", "file", r.file, "error", err)
		r.last.Store(&control.Configuration{Read: r.last.Load().Read, Error: err.Error()})
		return nil, err
	}
	r.last.Store(&control.Configuration{Read: read})
	for i, c := range result.Changes {
		if i == LoggedChanges {
			r.log.Info("reload: more changes, not logged", "changes", len(result.Changes)-i)
			break
		}
		r.log.Info("reload: " + c.Text)
	}
	daemon.LogWarnings(r.log, result.Warnings)
	summary := append([]any{"file", r.file}, result.Summary...)
	r.log.Info("reloaded", append(summary, "changes", len(result.Changes))...)
	return result.Changes, nil
}

// Configuration returns when the configuration in force was read, and why the last reload was refused, if it was.
func (r *Reloader) Configuration() control.Configuration { return *r.last.Load() }

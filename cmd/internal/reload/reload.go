// Package reload runs the reloads of a program's configuration file: one at a time, with the result in the log and in
// the status.
package reload

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
	"vstun/routing"
)

// Reloader makes the reloads of a program. Its methods may be called from any goroutine.
type Reloader struct {
	program string // as the log calls it
	file    string
	log     *slog.Logger
	mu      sync.Mutex                        // held by a reload, for the next one to wait
	last    atomic.Pointer[api.Configuration] // never nil
}

// New returns the Reloader of a program that has read the configuration file at the time read. The log calls the
// program by that name: "director".
func New(program, file string, read time.Time, log *slog.Logger) *Reloader {
	r := &Reloader{program: program, file: file, log: log}
	r.last.Store(&api.Configuration{Read: read})
	return r
}

// Result is the result of a successful reload.
type Result struct {
	Changes  []api.Change
	Warnings []string // of the new configuration
	Summary  []any    // attributes for the log
}

// ErrEnding is the error of a reload while the program ends.
var ErrEnding = errors.New("the program is ending")

// LoggedChanges is the largest number of changes that are logged at once, far below the number of lines that the log
// can hold.
const LoggedChanges = 100

// Reload calls apply, which reads the file and puts it in force, and returns the changes. If apply fails, it must have
// changed nothing. Reload logs the changes or the error.
func (r *Reloader) Reload(apply func() (Result, error)) ([]api.Change, error) {
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
		r.last.Store(&api.Configuration{Read: r.last.Load().Read, Error: err.Error()})
		return nil, err
	}
	r.last.Store(&api.Configuration{Read: read})
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

// Configuration returns the time at which the configuration in force was read, and the error of the last reload if it
// was refused.
func (r *Reloader) Configuration() api.Configuration { return *r.last.Load() }

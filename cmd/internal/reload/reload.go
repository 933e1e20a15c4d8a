// Package reload runs the reloads of a program's configuration file: one at a time, with the result in the log and in
// the status.
package reload

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
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
	return r.change(kind{name: "reload", done: "reloaded", level: slog.LevelError, ofFile: true}, apply)
}

// Apply is Reload for a configuration that a client has sent. If apply fails, the status stays as it is: the fault is
// not in the file.
func (r *Reloader) Apply(client string, apply func() (Result, error)) ([]api.Change, error) {
	return r.change(kind{name: "apply", done: "applied", level: slog.LevelWarn, about: []any{"client", client}}, apply)
}

// kind is a kind of changes.
type kind struct {
	name, done string     // in the log
	level      slog.Level // of an error
	about      []any      // attributes for the log
	ofFile     bool       // an error is the file's
}

func (r *Reloader) change(k kind, apply func() (Result, error)) ([]api.Change, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	read := time.Now()
	result, err := apply()
	for _, ending := range []error{ErrEnding, routing.ErrClosed, os.ErrClosed} {
		if errors.Is(err, ending) {
			r.log.Info(k.name + " given up: the " + r.program + " is ending")
			return nil, errors.New("nothing changed: the " + r.program + " is ending")
		}
	}
	if err != nil {
		r.log.Log(context.Background(), k.level, k.name+": nothing changed",
			slices.Concat([]any{"file", r.file}, k.about, []any{"error", err})...)
		if k.ofFile {
			r.last.Store(&api.Configuration{Read: r.last.Load().Read, Error: err.Error()})
		}
		return nil, err
	}
	r.last.Store(&api.Configuration{Read: read})
	for i, c := range result.Changes {
		if i == LoggedChanges {
			r.log.Info(k.name+": more changes, not logged", "changes", len(result.Changes)-i)
			break
		}
		r.log.Info(k.name + ": " + c.Text)
	}
	daemon.LogWarnings(r.log, result.Warnings)
	r.log.Info(k.done, slices.Concat([]any{"file", r.file}, k.about, result.Summary,
		[]any{"changes", len(result.Changes)})...)
	return result.Changes, nil
}

// Configuration returns the time at which the configuration in force was read, and the error of the last reload if it
// was refused.
func (r *Reloader) Configuration() api.Configuration { return *r.last.Load() }

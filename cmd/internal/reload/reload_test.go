package reload

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/routing"
)

// TestReload: the result of each reload is in the log and in the status.
func TestReload(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	var log bytes.Buffer
	r := New("director", "x.toml", start, slog.New(slog.NewTextHandler(&log, nil)))
	if c := r.Configuration(); !c.Read.Equal(start) || c.Error != "" {
		t.Errorf("before a reload: %+v", c)
	}
	for _, c := range []struct {
		name    string
		changes int
		err     error
		failed  string // the error in the status
		log     []string
	}{
		{"refused", 0, errors.New("a fault"), "a fault",
			[]string{`level=ERROR msg="reload: nothing changed" file=x.toml error="a fault"`}},
		{"ending", 0, fmt.Errorf("set: %w", routing.ErrClosed), "a fault",
			[]string{`level=INFO msg="reload given up: the director is ending"`}},
		{"ending controller", 0, ErrEnding, "a fault", []string{"given up"}},
		{"ending sockets", 0, os.ErrClosed, "a fault", []string{"given up"}},
		{"success", 1, nil, "", []string{`msg="reload: change 0"`, `msg="configuration: careful"`,
			"msg=reloaded file=x.toml services=3 changes=1"}},
		{"many changes", LoggedChanges + 7, nil, "", []string{`msg="reload: more changes, not logged" changes=7`,
			fmt.Sprintf("services=3 changes=%d", LoggedChanges+7)}},
	} {
		log.Reset()
		var list []api.Change
		for i := range c.changes {
			list = append(list, api.Change{Text: fmt.Sprint("change ", i)})
		}
		before := r.Configuration().Read
		got, err := r.Reload(func() (Result, error) {
			return Result{Changes: list, Warnings: []string{"careful"}, Summary: []any{"services", 3}}, c.err
		})
		if (err == nil) != (c.err == nil) || err == nil && len(got) != c.changes || err != nil && got != nil {
			t.Errorf("%s: %d changes, %v", c.name, len(got), err)
		}
		is := r.Configuration()
		if is.Error != c.failed || is.Read.Equal(before) != (c.err != nil) {
			t.Errorf("%s: status has %+v", c.name, is)
		}
		for _, want := range c.log {
			if !strings.Contains(log.String(), want) {
				t.Errorf("%s: the log lacks %q:\n%s", c.name, want, log.String())
			}
		}
		if n := strings.Count(log.String(), "\n"); n > LoggedChanges+3 {
			t.Errorf("%s: the log has %d lines", c.name, n)
		}
	}
}

// TestApply: the log names the client. An error is no error of the file, and a success ends the file's.
func TestApply(t *testing.T) {
	var log bytes.Buffer
	r := New("director", "x.toml", time.Now(), slog.New(slog.NewTextHandler(&log, nil)))
	for _, c := range []struct {
		failed, err error
		want        string // of the status
		log         string
	}{
		{nil, errors.New("a fault"), "",
			`level=WARN msg="apply: nothing changed" file=x.toml client="uid 7, pid 9" error="a fault"`},
		{errors.New("of the file"), errors.New("a fault"), "of the file", "apply: nothing changed"},
		{errors.New("of the file"), nil, "", `msg=applied file=x.toml client="uid 7, pid 9" services=3 changes=1`},
		{nil, fmt.Errorf("set: %w", routing.ErrClosed), "", "apply given up: the director is ending"},
	} {
		_, _ = r.Reload(func() (Result, error) { return Result{}, c.failed })
		log.Reset()
		changes, err := r.Apply("uid 7, pid 9", func() (Result, error) {
			return Result{Changes: []api.Change{{Text: "a change"}}, Summary: []any{"services", 3}}, c.err
		})
		if (err == nil) != (c.err == nil) || (len(changes) == 1) != (err == nil) || r.Configuration().Error != c.want ||
			!strings.Contains(log.String(), c.log) {
			t.Errorf("%v: %v, %v; status has %+v; the log:\n%s", c.err, changes, err, r.Configuration(), log.String())
		}
	}
}

// TestReloadsAreMadeInTurn: no two reloads are made at once.
func TestReloadsAreMadeInTurn(t *testing.T) {
	r := New("director", "x.toml", time.Now(), slog.New(slog.DiscardHandler))
	var running atomic.Int32
	done := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			_, _ = r.Reload(func() (Result, error) {
				if running.Add(1) > 1 {
					t.Error("two at once")
				}
				time.Sleep(time.Millisecond)
				running.Add(-1)
				return Result{}, nil
			})
		}()
	}
	for range 4 {
		<-done
	}
}

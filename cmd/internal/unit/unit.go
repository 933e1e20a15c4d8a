// Package unit asks systemd what it does with the unit of this process after a stop (ExecStopPost= in
// systemd.service(5)).
package unit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
)

// State is the state of a unit whose main process has ended.
type State struct {
	Name string // "vstun-director.service"
	Job  string // the type of the unit's job, such as "stop", "start" or "restart"; "": there is none
	// Waits: the job has not begun. A job "start" that has begun is the start that has failed.
	Waits bool

	Result  string        // why the process ended, such as "success", "exit-code" or "signal"; $SERVICE_RESULT
	Code    int32         // 1 exited, 2 killed, 3 killed and dumped: si_code of SIGCHLD (sigaction(2)); 0: it never ran
	Status  int32         // exit status, or number of the signal
	Lived   time.Duration // from the process's start to its end
	Restart string        // Restart= of the unit, such as "on-failure"
	Prevent Ends          // RestartPreventExitStatus=
	Force   Ends          // RestartForceExitStatus=
}

// Ends is a set of exit statuses and of signals that end a process.
type Ends struct{ Statuses, Signals []int32 }

func (e Ends) contain(code, status int32) bool {
	const exited, killed, dumped = 1, 2, 3
	return code == exited && slices.Contains(e.Statuses, status) ||
		(code == killed || code == dumped) && slices.Contains(e.Signals, status)
}

// InStopPost reports whether this process is a command of ExecStopPost=.
func InStopPost() bool { return os.Getenv("SERVICE_RESULT") != "" }

// Ask returns the state of the unit that this process belongs to. It must be a service. For root it asks systemd
// itself, which answers before the system bus is up, too.
func Ask(ctx context.Context) (State, error) {
	s, err := ask(ctx)
	if err != nil {
		return State{}, fmt.Errorf("ask systemd: %w", err)
	}
	return s, nil
}

func ask(ctx context.Context) (s State, err error) {
	bus, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		var other error
		if bus, other = systemd.NewSystemConnectionContext(ctx); other != nil {
			return s, errors.Join(err, other)
		}
	}
	defer bus.Close()
	if s.Name, err = bus.GetUnitNameByPID(ctx, uint32(os.Getpid())); err != nil {
		return s, err
	}
	jobs, err := bus.ListJobsContext(ctx)
	if err != nil {
		return s, err
	}
	for _, j := range jobs {
		if j.Unit == s.Name {
			s.Job, s.Waits = j.JobType, j.Status == "waiting"
		}
	}
	properties, err := bus.GetUnitTypePropertiesContext(ctx, s.Name, "Service")
	if err != nil {
		return s, err
	}
	s.Result, _ = properties["Result"].(string)
	s.Code, _ = properties["ExecMainCode"].(int32)
	s.Status, _ = properties["ExecMainStatus"].(int32)
	s.Restart, _ = properties["Restart"].(string)
	began, _ := properties["ExecMainStartTimestampMonotonic"].(uint64) // microseconds
	ended, _ := properties["ExecMainExitTimestampMonotonic"].(uint64)
	s.Lived = max(0, time.Duration(int64(ended-began))*time.Microsecond)
	s.Prevent, s.Force = ends(properties["RestartPreventExitStatus"]), ends(properties["RestartForceExitStatus"])
	if s.Result == "" || s.Restart == "" {
		return s, fmt.Errorf("%s has no Result= and Restart=", s.Name)
	}
	return s, nil
}

// ends returns a property of the type (aiai).
func ends(property any) (e Ends) {
	if pair, ok := property.([]any); ok && len(pair) == 2 {
		e.Statuses, _ = pair[0].([]int32)
		e.Signals, _ = pair[1].([]int32)
	}
	return e
}

// Queued reports whether a job is queued that starts the unit again: a user has asked for that.
func (s State) Queued() bool { return s.Job == "restart" || s.Job == "start" && s.Waits }

// StartsAgain reports whether systemd starts the unit again after the stop: because of a queued job, or by Restart=
// (service_shall_restart in systemd's src/core/service.c).
func (s State) StartsAgain() bool {
	switch {
	case s.Queued():
		return true
	case s.Job == "stop":
		return false
	}
	if s.Prevent.contain(s.Code, s.Status) {
		return false
	}
	if s.Force.contain(s.Code, s.Status) {
		return true
	}
	clean := s.Result == "success" || s.Result == "exec-condition"
	switch s.Restart {
	case "always":
		return s.Result != "exec-condition"
	case "on-success":
		return s.Result == "success"
	case "on-failure":
		return !clean
	case "on-abnormal":
		return !clean && s.Result != "exit-code"
	case "on-watchdog":
		return s.Result == "watchdog"
	case "on-abort":
		return s.Result == "signal" || s.Result == "core-dump"
	}
	return false
}

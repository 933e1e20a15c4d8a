package unit

import (
	"reflect"
	"testing"
)

func TestStartsAgain(t *testing.T) {
	prevent := Ends{Statuses: []int32{2}, Signals: []int32{15}}
	failed := State{Result: "exit-code", Code: 1, Status: 1, Restart: "on-failure"}
	with := func(change func(s *State)) State {
		s := failed
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		state State
		want  bool
	}{
		"failure":            {failed, true},
		"failure, stop job":  {with(func(s *State) { s.Job = "stop" }), false},
		"failure, a reload":  {with(func(s *State) { s.Job = "reload" }), true},
		"prevented":          {with(func(s *State) { s.Status, s.Prevent = 2, prevent }), false},
		"another status":     {with(func(s *State) { s.Prevent = prevent }), true},
		"prevented, restart": {with(func(s *State) { s.Status, s.Prevent, s.Job = 2, prevent, "restart" }), true},
		"prevented signal":   {with(func(s *State) { s.Code, s.Status, s.Prevent = 2, 15, prevent }), false},
		"a signal's number":  {with(func(s *State) { s.Code, s.Status, s.Prevent = 2, 2, prevent }), true},
		"forced": {State{Result: "success", Code: 1, Restart: "no", Force: Ends{Statuses: []int32{0}}},
			true},
		"success":          {State{Result: "success", Code: 1, Restart: "on-failure"}, false},
		"success, restart": {State{Result: "success", Code: 1, Restart: "on-failure", Job: "restart"}, true},
		"success, start": {State{Result: "success", Code: 1, Restart: "on-failure", Job: "start", Waits: true},
			true},
		"the start fails": {with(func(s *State) { s.Job = "start" }), true},
		"prevented start": {with(func(s *State) { s.Status, s.Prevent, s.Job = 2, prevent, "start" }),
			false},
		"kill":              {State{Result: "signal", Code: 2, Status: 9, Restart: "on-failure"}, true},
		"kill, abnormal":    {State{Result: "signal", Code: 2, Status: 9, Restart: "on-abnormal"}, true},
		"failure, abnormal": {with(func(s *State) { s.Restart = "on-abnormal" }), false},
		"watchdog":          {State{Result: "watchdog", Code: 3, Status: 6, Restart: "on-watchdog"}, true},
		"failure, watchdog": {with(func(s *State) { s.Restart = "on-watchdog" }), false},
		"dump, abort":       {State{Result: "core-dump", Code: 3, Status: 11, Restart: "on-abort"}, true},
		"failure, abort":    {with(func(s *State) { s.Restart = "on-abort" }), false},
		"success, always":   {State{Result: "success", Code: 1, Restart: "always"}, true},
		"condition, always": {State{Result: "exec-condition", Restart: "always"}, false},
		"success, success":  {State{Result: "success", Code: 1, Restart: "on-success"}, true},
		"failure, success":  {with(func(s *State) { s.Restart = "on-success" }), false},
		"failure, no":       {with(func(s *State) { s.Restart = "no" }), false},
		"sandbox":           {with(func(s *State) { s.Status, s.Prevent = 226, prevent }), true},
	} {
		if got := c.state.StartsAgain(); got != c.want {
			t.Errorf("%s: %v, want %v: %+v", name, got, c.want, c.state)
		}
	}
}

func TestEnds(t *testing.T) {
	if e := ends([]any{[]int32{2}, []int32{9, 15}}); !reflect.DeepEqual(e, Ends{[]int32{2}, []int32{9, 15}}) {
		t.Errorf("%+v", e)
	}
	for _, other := range []any{nil, "x", []any{[]int32{2}}, []any{"a", "b"}} {
		if e := ends(other); !reflect.DeepEqual(e, Ends{}) {
			t.Errorf("%v: %+v", other, e)
		}
	}
}

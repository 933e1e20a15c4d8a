package cli

import (
	"errors"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vstun/cmd/internal/api"
)

type usage = api.RealserverUsage

// drained runs `drain --wait` against a director that answers with one of loads after the other, then repeats the last.
func drained(t *testing.T, timeout time.Duration, active bool, loads ...[]usage) (out string, err error) {
	t.Helper()
	var n, set atomic.Int32
	socket := listen(t, func(s *api.Server) {
		s.Handle("GET /load", api.JSON(func(q url.Values) (any, error) {
			l := loads[min(int(n.Add(1)), len(loads))-1]
			if l == nil {
				return nil, errors.New("no service has a realserver " + q.Get("realserver"))
			}
			return l, nil
		}))
		s.Handle("POST /weight", api.JSON(func(q url.Values) (any, error) {
			set.Add(1)
			if q.Get("weight") != "0" || q.Get("service") != "web" || q.Get("realserver") != "10.0.11.2" {
				t.Errorf("asked for %v", q)
			}
			return api.Reload{Changes: []api.Change{{Text: "weight 1 -> 0"}}}, nil
		}))
	})
	path, _ := socket.Path()
	var text strings.Builder
	d := drain{socket: path, timeout: timeout, active: active, out: &text, progress: &text, look: time.Millisecond,
		report: time.Hour}
	c := DrainCommand(socket)
	c.SetContext(t.Context())
	err = d.run(c, url.Values{"service": {"web"}, "realserver": {"10.0.11.2"}}, true)
	if left := len(loads[0]) > 0 && loads[0][0].Left; loads[0] != nil && left != (set.Load() == 0) {
		t.Errorf("the weight was set %d times", set.Load())
	}
	return text.String(), err
}

// TestDrainWaits: drain --wait ends when no connection is left, at the deadline, or when the weight is set again.
func TestDrainWaits(t *testing.T) {
	load := func(weight, active, inactive, held int) []usage {
		return []usage{{Service: "web", Realserver: "10.0.11.2", Weight: weight, Active: active, Inactive: inactive,
			Held: held}}
	}
	left := []usage{{Service: "web", Realserver: "10.0.11.2", Left: true, Active: 1}}
	for _, c := range []struct {
		name    string
		timeout time.Duration
		loads   [][]usage
		want    string // of the output
		err     string
	}{
		{"at once", 0, [][]usage{load(1, 0, 0, 0), load(0, 0, 0, 0)}, "drained in", ""},
		{"one look is enough", 0, [][]usage{load(1, 0, 0, 0), load(0, 0, 0, 0), load(0, 1, 0, 0)}, "drained in", ""},
		{"a worker is late", 0, [][]usage{load(1, 0, 0, 0), {{Realserver: "10.0.11.2", Settling: true}},
			load(0, 1, 0, 0), load(0, 0, 0, 0)}, "draining for 0s: 1 active, 0 closing\ndrained in", ""},
		{"active, then inactive", 0, [][]usage{load(1, 2, 0, 0), load(0, 2, 0, 0), load(0, 0, 2, 0), load(0, 0, 0, 0)},
			"draining for 0s: 2 active, 0 closing\ndrained in", ""},
		{"persistent clients", 0, [][]usage{load(1, 0, 0, 1), load(0, 0, 0, 1), load(0, 0, 0, 0)},
			"0 active, 0 closing, 1 persistent client\n", ""},
		{"both", 20 * time.Millisecond, [][]usage{{{Realserver: "10.0.11.2", Active: 1, Inactive: 300},
			{Realserver: "10.0.11.2", Inactive: 16}}}, "", "remain 1 active, 316 closing: "},
		{"deadline", 20 * time.Millisecond, [][]usage{load(0, 1, 0, 0)}, "", "after 20ms there remain 1 active, 0 " +
			"closing: its weight stays 0"},
		{"deadline, persistent", 20 * time.Millisecond, [][]usage{load(0, 0, 0, 3)}, "", "expire_quiescent_template"},
		{"a weight again", 0, [][]usage{load(1, 1, 0, 0), load(0, 1, 0, 0), load(5, 1, 0, 0)}, "",
			"its weight is 5 again"},
		{"it has left", 0, [][]usage{left, left, nil}, "drained in", ""},
		{"it leaves meanwhile", 0, [][]usage{load(1, 1, 0, 0), load(0, 1, 0, 0), left, nil}, "drained in", ""},
		{"unknown", 0, [][]usage{nil}, "", "no service has a realserver 10.0.11.2"},
	} {
		out, err := drained(t, c.timeout, false, c.loads...)
		if !strings.Contains(out, c.want) || c.err == "" && err != nil || c.err != "" &&
			(err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v; want %q, %q", c.name, out, err, c.want, c.err)
		}
	}
}

// TestDrainOfActive: --active waits for established connections, not for closing ones and persistent clients.
func TestDrainOfActive(t *testing.T) {
	load := func(weight, active, inactive, held int) []usage {
		return []usage{{Service: "web", Realserver: "10.0.11.2", Weight: weight, Active: active, Inactive: inactive,
			Held: held}}
	}
	if out, err := drained(t, time.Minute, true, load(1, 2, 3, 4), load(0, 2, 3, 4), load(0, 0, 5, 4)); err != nil ||
		!strings.HasPrefix(out, "weight 1 -> 0\ndraining for 0s: 2 active, 3 closing, "+
			"4 persistent clients\ndrained in") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := drained(t, 20*time.Millisecond, true, load(0, 1, 3, 0)); err == nil || !strings.Contains(err.Error(),
		"remain 1 active, 3 closing") {
		t.Errorf("%q, %v", out, err)
	}
}

package control

import (
	"errors"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// drained runs `drain --wait` against a director whose loads are these, one after the other, the last again and again.
func drained(t *testing.T, timeout time.Duration, active bool, loads ...[]Load) (out string, err error) {
	t.Helper()
	var n, set atomic.Int32
	socket := listen(t, func(s *Server) {
		s.AnswerQuery("/load", func(q url.Values) (any, error) {
			l := loads[min(int(n.Add(1)), len(loads))-1]
			if l == nil {
				return nil, errors.New("no service has a realserver " + q.Get("realserver"))
			}
			return l, nil
		})
		s.DoQuery("/weight", func(q url.Values) (any, error) {
			set.Add(1)
			if q.Get("weight") != "0" || q.Get("service") != "web" || q.Get("realserver") != "10.0.11.2" {
				t.Errorf("asked for %v", q)
			}
			return Reload{Changes: []Change{{Text: "weight 1 -> 0"}}}, nil
		})
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

// TestDrainWaits: until nobody is left, a deadline has passed, or it makes no sense any more.
func TestDrainWaits(t *testing.T) {
	load := func(weight, active, inactive, held int) []Load {
		return []Load{{Service: "web", Realserver: "10.0.11.2", Weight: weight, Active: active, Inactive: inactive,
			Held: held}}
	}
	left := []Load{{Service: "web", Realserver: "10.0.11.2", Left: true, Active: 1}}
	for _, c := range []struct {
		name    string
		timeout time.Duration
		loads   [][]Load
		want    string // of the output
		err     string
	}{
		{"at once", 0, [][]Load{load(1, 0, 0, 0), load(0, 0, 0, 0)}, "drained in", ""},
		{"one look is enough", 0, [][]Load{load(1, 0, 0, 0), load(0, 0, 0, 0), load(0, 1, 0, 0)}, "drained in", ""},
		{"a worker is late", 0, [][]Load{load(1, 0, 0, 0), {{Realserver: "10.0.11.2", Settling: true}}, load(0, 1, 0, 0),
			load(0, 0, 0, 0)}, "draining for 0s: 1 active, 0 closing\ndrained in", ""},
		{"active, then inactive", 0, [][]Load{load(1, 2, 0, 0), load(0, 2, 0, 0), load(0, 0, 2, 0), load(0, 0, 0, 0)},
			"draining for 0s: 2 active, 0 closing\ndrained in", ""},
		{"persistent clients", 0, [][]Load{load(1, 0, 0, 1), load(0, 0, 0, 1), load(0, 0, 0, 0)},
			"0 active, 0 closing, 1 persistent client\n", ""},
		{"both", 20 * time.Millisecond, [][]Load{{{Realserver: "10.0.11.2", Active: 1, Inactive: 300},
			{Realserver: "10.0.11.2", Inactive: 16}}}, "", "remain 1 active, 316 closing: "},
		{"deadline", 20 * time.Millisecond, [][]Load{load(0, 1, 0, 0)}, "", "after 20ms there remain 1 active, 0 " +
			"closing: its weight stays 0"},
		{"deadline, persistent", 20 * time.Millisecond, [][]Load{load(0, 0, 0, 3)}, "", "expire_quiescent_template"},
		{"a weight again", 0, [][]Load{load(1, 1, 0, 0), load(0, 1, 0, 0), load(5, 1, 0, 0)}, "",
			"its weight is 5 again"},
		{"it has left", 0, [][]Load{left, left, nil}, "drained in", ""},
		{"it leaves meanwhile", 0, [][]Load{load(1, 1, 0, 0), load(0, 1, 0, 0), left, nil}, "drained in", ""},
		{"nobody knows it", 0, [][]Load{nil}, "", "no service has a realserver 10.0.11.2"},
	} {
		out, err := drained(t, c.timeout, false, c.loads...)
		if !strings.Contains(out, c.want) || c.err == "" && err != nil || c.err != "" &&
			(err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v; want %q, %q", c.name, out, err, c.want, c.err)
		}
	}
}

// TestDrainOfActive: --active waits for established connections, neither for those that close nor for persistent
// clients.
func TestDrainOfActive(t *testing.T) {
	load := func(weight, active, inactive, held int) []Load {
		return []Load{{Service: "web", Realserver: "10.0.11.2", Weight: weight, Active: active, Inactive: inactive,
			Held: held}}
	}
	if out, err := drained(t, time.Minute, true, load(1, 2, 3, 4), load(0, 2, 3, 4), load(0, 0, 5, 4)); err != nil ||
		!strings.HasPrefix(out, "weight 1 -> 0\ndraining for 0s: 2 active, 3 closing, 4 persistent clients\ndrained in") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := drained(t, 20*time.Millisecond, true, load(0, 1, 3, 0)); err == nil || !strings.Contains(err.Error(),
		"remain 1 active, 3 closing") {
		t.Errorf("%q, %v", out, err)
	}
}

// TestParseCapture: what a capture is asked for, and each value that it can't be.
func TestParseCapture(t *testing.T) {
	q, _ := url.ParseQuery("client=192.0.2.7:4711&vip=[2001:db8::80]&realserver=10.0.11.2&count=5&seconds=2&megabytes=3")
	c, err := ParseCapture(q)
	if err != nil || c.Client.String() != "192.0.2.7" || c.ClientPort != 4711 || c.VIP.String() != "2001:db8::80" ||
		c.Port != 0 || c.Realserver.String() != "10.0.11.2" ||
		c.Packets != 5 || c.Time != 2*time.Second || c.Bytes != 3<<20 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := ParseCapture(url.Values{}); err != nil || c.Packets != 1000 || c.Time != time.Minute ||
		c.Bytes != 64<<20 || c.Client.IsValid() {
		t.Errorf("without anything: %+v, %v", c, err)
	}
	for _, wrong := range []string{"client=me", "vip=:80", "realserver=web1", "count=0", "count=x", "seconds=100000",
		"megabytes=-1", "colour=red", "count=1&count=2"} {
		q, _ := url.ParseQuery(wrong)
		key, _, _ := strings.Cut(wrong, "=")
		if c, err := ParseCapture(q); err == nil || !strings.Contains(err.Error(), "--"+key) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", wrong, c, err)
		}
	}
}

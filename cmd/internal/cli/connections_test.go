package cli

import (
	"encoding/json"
	"errors"
	"iter"
	"net/url"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

var someStates = []string{"ESTABLISHED", "UDP", "TEMPLATE"}

func someConnections() []api.Connection {
	return []api.Connection{
		{Protocol: "tcp", State: "ESTABLISHED", Expires: 897.9, Client: "192.0.2.7", ClientPort: 41234,
			VIP: "198.51.100.80", Port: 80, Realserver: "10.0.11.2", Service: "web", Packets: 5},
		{Protocol: "tcp", State: "TEMPLATE", Expires: 299, Client: "192.0.2.0", VIP: "198.51.100.80",
			Realserver: "10.0.11.2", Service: "web", Template: true},
		{State: "TEMPLATE", Expires: 9, Client: "192.0.3.0", Realserver: "10.0.11.9", Service: "gone", Template: true},
		{Protocol: "udp", State: "UDP", Expires: 7200, Client: "2001:db8::7", ClientPort: 53, VIP: "2001:db8::1",
			Port: 53, Realserver: "10.0.11.2", Service: "dns", Packets: 1},
	}
}

// answering serves a director's GET /connections from list, and records the last query.
func answering(t *testing.T, list []api.Connection) (*Socket, *url.Values) {
	var query url.Values
	return listen(t, func(s *api.Server) {
		s.Handle("GET /connections", api.JSONLines(func(q url.Values) (iter.Seq[any], error) {
			query = q
			return func(yield func(any) bool) {
				for _, c := range list {
					if !yield(c) {
						return
					}
				}
			}, nil
		}))
	}), &query
}

func TestConnectionsTable(t *testing.T) {
	at, query := answering(t, someConnections())
	got, err := execute(ConnectionsCommand(someStates, at), "--client", "192.0.2.0/24", "--state", "udp", "--vip",
		"[2001:db8::1]:53", "--limit", "9",
		"--service", "web", "--realserver", "10.0.11.2")
	if err != nil {
		t.Fatal(err)
	}
	const want = `
pro  expire state       source                virtual               destination
TCP  14:57  ESTABLISHED 192.0.2.7:41234       198.51.100.80:80      10.0.11.2:80
TCP  04:59  TEMPLATE    192.0.2.0:0           198.51.100.80:0       10.0.11.2:0
-    00:09  TEMPLATE    192.0.3.0:0           -:0                   10.0.11.9:0
UDP  120:00 UDP         [2001:db8::7]:53      [2001:db8::1]:53      10.0.11.2:53
`
	if "\n"+got != want {
		t.Errorf("got:\n%s\nwant:%s", got, want)
	}
	const asked = "client=192.0.2.0%2F24&limit=9&realserver=10.0.11.2&service=web&state=udp" +
		"&vip=%5B2001%3Adb8%3A%3A1%5D%3A53"
	if query.Encode() != asked {
		t.Errorf("asked for %s, want %s", query.Encode(), asked)
	}
}

func TestNoConnections(t *testing.T) {
	at, query := answering(t, nil)
	if got, err := execute(ConnectionsCommand(someStates, at)); err != nil || strings.Count(got, "\n") != 1 ||
		!strings.HasPrefix(got, "pro ") || len(*query) != 0 {
		t.Errorf("%v, %q, query %v", err, got, query)
	}
	if got, err := execute(ConnectionsCommand(someStates, at), "--json"); err != nil || got != "" {
		t.Errorf("%v, %q", err, got)
	}
}

func TestConnectionsJSON(t *testing.T) {
	at, _ := answering(t, someConnections())
	out, err := execute(ConnectionsCommand(someStates, at), "--json")
	if err != nil {
		t.Fatal(err)
	}
	var got []api.Connection
	for line := range strings.Lines(out) {
		var c api.Connection
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got = append(got, c)
	}
	want := someConnections()
	if len(got) != len(want) || got[0] != want[0] || got[3] != want[3] {
		t.Errorf("got %+v", got)
	}
}

// TestBadFilter: the command refuses a bad filter before it sends a request, and reports a refusal of the director.
func TestBadFilter(t *testing.T) {
	at := &Socket{Config: func() (string, error) { return "", errors.New("asked") }}
	var usage UsageError
	if _, err := execute(ConnectionsCommand(someStates, at), "--state", "nonsense"); !errors.As(err, &usage) ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	at = listen(t, func(s *api.Server) {
		s.Handle("GET /connections", api.JSONLines(func(url.Values) (iter.Seq[any], error) {
			return nil, errors.New("no such state")
		}))
	})
	if _, err := execute(ConnectionsCommand(someStates, at)); err == nil || !strings.Contains(err.Error(),
		"no such state") {
		t.Errorf("%v", err)
	}
}

// closedPipe is an output whose reader leaves after some bytes.
type closedPipe struct{ room int }

func (p *closedPipe) Write(b []byte) (int, error) {
	if p.room -= len(b); p.room < 0 {
		return 0, syscall.EPIPE
	}
	return len(b), nil
}

// TestPipeEnds: `director connections | head` ends without an error, and the director ends its answer.
func TestPipeEnds(t *testing.T) {
	stopped := make(chan struct{})
	at := listen(t, func(s *api.Server) { s.Handle("GET /connections", api.JSONLines(endless(stopped))) })
	for _, args := range [][]string{{}, {"--json"}} {
		c := ConnectionsCommand(someStates, at)
		c.SetOut(&closedPipe{100_000})
		c.SetArgs(args)
		if err := c.Execute(); err != nil {
			t.Error(err)
		}
		testkit.Receive(t, "the answer stops", stopped)
	}
}

// endless returns connections without end, and sends to stopped when their iteration has been stopped.
func endless(stopped chan<- struct{}) func(url.Values) (iter.Seq[any], error) {
	return func(url.Values) (iter.Seq[any], error) {
		return func(yield func(any) bool) {
			defer func() { stopped <- struct{}{} }()
			for yield(someConnections()[0]) {
			}
		}, nil
	}
}

// TestManyConnectionsTakeNoMemory lists a hundred thousand rows: tens of megabytes, if either side held them.
func TestManyConnectionsTakeNoMemory(t *testing.T) {
	const rows = 100_000
	var before, now runtime.MemStats
	most := uint64(0)
	at := listen(t, func(s *api.Server) {
		s.Handle("GET /connections", api.JSONLines(func(url.Values) (iter.Seq[any], error) {
			return func(yield func(any) bool) {
				for i := range rows {
					if i%20_000 == 0 {
						runtime.GC()
						runtime.ReadMemStats(&now)
						most = max(most, now.HeapAlloc)
					}
					if !yield(someConnections()[0]) {
						return
					}
				}
			}, nil
		}))
	})
	runtime.GC()
	runtime.ReadMemStats(&before)
	out := &lineCounter{}
	c := ConnectionsCommand(someStates, at)
	c.SetOut(out)
	c.SetArgs([]string{"--json"})
	if err := c.Execute(); err != nil || out.lines != rows {
		t.Errorf("%v, %d lines", err, out.lines)
	}
	if grown := int(most) - int(before.HeapAlloc); grown > 2<<20 {
		t.Errorf("both sides hold %d bytes while rows pass", grown)
	}
}

type lineCounter struct{ lines int }

func (l *lineCounter) Write(b []byte) (int, error) {
	l.lines += strings.Count(string(b), "\n")
	return len(b), nil
}

package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/testdata/testkit"
)

// teller is a running Notifier and its failures.
type teller struct {
	*Notifier
	mu     sync.Mutex
	faults []string
	stop   func() // and wait for its end
}

func newTeller(t *testing.T, c Config) *teller {
	t.Helper()
	return newTellerWith(t, c, func(*Notifier) {})
}

// newTellerWith is newTeller. It calls prepare before the Notifier runs.
func newTellerWith(t *testing.T, c Config, prepare func(*Notifier)) *teller {
	t.Helper()
	n := &teller{}
	n.Notifier = New(func(err error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.faults = append(n.faults, err.Error())
	})
	prepare(n.Notifier)
	n.Set(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func (n *teller) said() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.faults...)
}

func event(i int) Event {
	return Event{Time: time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC), Kind: "realserver", Service: "web",
		Realserver: fmt.Sprintf("10.0.0.%d", i), Old: "up", New: "down", Reason: "HTTP status 503, want 200-399"}
}

// TestNotifyCommand: a program is run for each event, in order, with the event as arguments and in its environment.
func TestNotifyCommand(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "told")
	script := fmt.Sprintf(`echo "$*|$VSTUN_KIND $VSTUN_SERVICE $VSTUN_REALSERVER $VSTUN_OLD $VSTUN_NEW `+
		`$VSTUN_REASON" >>%s`, file)
	n := newTeller(t, Config{Command: []string{"/bin/sh", "-c", script, "sh", "own"}, Timeout: patience})
	n.Send(event(1), event(2))
	n.Send(Event{Kind: "service", Service: "web", Old: "up", New: "down", Reason: "weight 0 is up, want 1"})
	want := ""
	for _, e := range []string{"realserver web 10.0.0.1 up down HTTP status 503, want 200-399",
		"realserver web 10.0.0.2 up down HTTP status 503, want 200-399",
		"service web - up down weight 0 is up, want 1"} {
		want += "own " + e + "|" + e + "\n"
	}
	testkit.Eventually(t, "told", func() bool {
		text, _ := os.ReadFile(file)
		return string(text) == want
	})
	n.Set(Config{Timeout: time.Second})
	n.Send(event(3)) // without a receiver
	n.Set(Config{Command: []string{"/nonexistent/tell"}, Timeout: time.Second})
	n.Send(event(4))
	n.Set(Config{Command: []string{"/bin/sh", "-c", "echo no mail; exit 7"}, Timeout: patience})
	n.Send(event(5))
	testkit.Eventually(t, "its failure is told", func() bool { return len(n.said()) > 0 })
	for _, s := range n.said() {
		if !strings.Contains(s, `service "web": realserver 10.0.0.`) {
			t.Errorf("%q", s)
		}
	}
}

// hook is a web server that keeps what is posted to it.
type hook struct {
	mu     sync.Mutex
	events []Event
	status []int // of the first answers
	asked  int
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	if len(h.status) > 0 {
		w.WriteHeader(h.status[0])
		h.status = h.status[1:]
		return
	}
	var e Event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.Method != http.MethodPost ||
		r.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.events = append(h.events, e)
}

func (h *hook) got() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Event(nil), h.events...)
}

// TestWebhook: each event is posted, in order. Temporary failures are retried. No error contains the URL's path.
func TestWebhook(t *testing.T) {
	t.Parallel()
	h := &hook{status: []int{503}}
	s := httptest.NewServer(h)
	defer s.Close()
	n := newTeller(t, Config{Webhook: s.URL + "/secret", Timeout: patience})
	want := []Event{event(1), event(2), event(3)}
	n.Send(want...)
	testkit.Eventually(t, "posted", func() bool { return len(h.got()) == 3 })
	if diff := cmp.Diff(want, h.got()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := n.said(); got != nil {
		t.Errorf("%q", got)
	}
	h.mu.Lock()
	h.status = []int{404}
	h.mu.Unlock()
	n.Send(event(4))
	testkit.Eventually(t, "refused", func() bool { return len(n.said()) == 1 })
	s.Close()
	n.Set(Config{Webhook: s.URL + "/secret", Timeout: 100 * time.Millisecond})
	n.Send(event(5))
	testkit.Eventually(t, "no server", func() bool { return len(n.said()) == 2 })
	wantFaults := []string{`service "web": realserver 10.0.0.4 down: webhook ` + s.URL + `: HTTP status 404 Not Found`,
		`service "web": realserver 10.0.0.5 down: webhook ` + s.URL + `: `}
	for i, got := range n.said() {
		if !strings.HasPrefix(got, wantFaults[i]) || strings.Contains(got, "secret") {
			t.Errorf("%q, want %q", got, wantFaults[i])
		}
	}
}

// TestNotifyNeverWaits: while a webhook hangs, Send takes thousands of events at once. The oldest are dropped and
// reported. At the end, waiting events have a little time.
func TestNotifyNeverWaits(t *testing.T) {
	t.Parallel()
	hangs := make(chan struct{})
	var once sync.Once
	asked := make(chan struct{}, 1)
	h := &hook{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() {
			asked <- struct{}{}
			<-hangs
		})
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	n := newTeller(t, Config{Webhook: s.URL, Timeout: patience})
	n.Send(event(0))
	<-asked
	const more = 20
	for i := range maxQueue + more {
		n.Send(event(i % 250))
	}
	n.stopWhile(t, func() { close(hangs) })
	if got := h.got(); len(got) < 2 || got[1] != event(more) { // the receiver hung at the first one
		t.Errorf("%d events, the second %+v", len(got), got[:min(len(got), 2)])
	}
	if got := n.said(); len(got) == 0 || got[0] != fmt.Sprintf("%d notifications were never sent: more than %d waited",
		more, maxQueue) {
		t.Errorf("%q", got)
	}
}

// stopWhile stops n, and meanwhile releases the receiver that blocks it.
func (n *teller) stopWhile(t *testing.T, letGo func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.stop()
	}()
	letGo()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

// TestNotifyEnds: a receiver that hangs does not delay the program's end for long.
func TestNotifyEnds(t *testing.T) {
	t.Parallel()
	begun, asked := filepath.Join(t.TempDir(), "begun"), make(chan struct{}, 1)
	hook := listenSilently(t, func() { asked <- struct{}{} })
	n := newTeller(t, Config{Webhook: "http://" + hook.String() + "/", Command: []string{"/bin/sh", "-c",
		"touch " + begun + "; sleep 1000", "sh"}, Timeout: time.Hour})
	n.Send(event(1), event(2), event(3))
	testkit.Eventually(t, "both hang", func() bool {
		_, err := os.Stat(begun)
		return err == nil && len(asked) > 0
	})
	n.stopWhile(t, func() {})
	if got := n.said(); len(got) != 6 {
		t.Errorf("%q", got)
	}
}

package director

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/director/plan"
	"vstun/testdata/testkit"
)

// fakeAnnouncer writes down what it is called for. It leaves when its channel is closed.
type fakeAnnouncer struct {
	id    string
	left  chan struct{}
	mu    *sync.Mutex
	calls *[]string
}

func (a *fakeAnnouncer) note(call string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	*a.calls = append(*a.calls, a.id+" "+call)
}

func (a *fakeAnnouncer) name() string                       { return a.id }
func (a *fakeAnnouncer) set(*plan.Desired) error            { a.note("set"); return nil }
func (a *fakeAnnouncer) announce(_, _ *state) error         { a.note("announce"); return nil }
func (a *fakeAnnouncer) shared() bool                       { return true }
func (a *fakeAnnouncer) standby(bool)                       { a.note("standby") }
func (a *fakeAnnouncer) status(*state, *api.DirectorStatus) {}
func (a *fakeAnnouncer) close() error                       { return nil }

func (a *fakeAnnouncer) leave() error {
	a.note("leaves")
	<-a.left
	a.note("has left")
	return nil
}

// TestLeave: announcers leave side by side, and neighbours are answered until all others have left.
func TestLeave(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	heard := func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(calls, ", ")
	}
	fake := func(id string) *fakeAnnouncer { return &fakeAnnouncer{id, make(chan struct{}), &mu, &calls} }
	lan, vrrp, bgp := fake("lan"), fake("vrrp"), fake("bgp")
	close(lan.left)
	d := &director{announcers: []announcer{lan, vrrp, bgp}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.leave(ctx) }()
	time.Sleep(10 * time.Millisecond)
	if got := heard(); got != "" {
		t.Errorf("before the end: %s", got)
	}
	cancel()
	testkit.Eventually(t, "both leave", func() bool {
		return strings.Contains(heard(), "vrrp leaves") && strings.Contains(heard(), "bgp leaves")
	})
	close(vrrp.left)
	testkit.Eventually(t, "one has left", func() bool { return strings.HasSuffix(heard(), "vrrp has left") })
	close(bgp.left)
	if err := <-ended; err != nil || !strings.HasSuffix(heard(), "bgp has left, lan leaves, lan has left") {
		t.Errorf("%v: %s", err, heard())
	}
}

// TestStandbyAndHold: a standby and the wait for peers are inputs of the plan. They survive other changes.
func TestStandbyAndHold(t *testing.T) {
	cfg := running()
	cfg.Sync.On = true
	o := operate(t, cfg, nil)
	is := func(standby, held bool) {
		t.Helper()
		if in := o.controller.state().inputs; in.Standby != standby || in.Held != held {
			t.Errorf("standby %v, held %v; want %v, %v", in.Standby, in.Held, standby, held)
		}
	}
	is(false, true)
	if _, err := o.standby(nil); err != errAlone {
		t.Errorf("alone: %v", err)
	}
	var mu sync.Mutex
	var calls []string
	o.announcers = []announcer{&fakeAnnouncer{"bgp", nil, &mu, &calls}}
	if _, err := o.standby(nil); err != nil {
		t.Error(err)
	}
	is(true, true)
	o.hold(false)
	is(true, false)
	o.hold(true) // of roles of VRRP alone
	o.hold(false)
	next := running()
	next.Sync.On = true
	if _, _, err := o.configure(next); err != nil {
		t.Error(err)
	}
	is(true, false)
	all := o.announcers
	o.announcers = nil // as after a reload without them
	for _, want := range []error{nil, errAlone} {
		if _, err := o.activate(nil); err != want {
			t.Errorf("alone: %v, want %v", err, want)
		}
		is(false, false)
	}
	o.announcers = all
	if _, err := o.activate(nil); err != nil {
		t.Error(err)
	}
	is(false, false)
	if got := strings.Join(calls, ", "); got != "bgp standby, bgp standby" {
		t.Error(got)
	}
}

package e2e

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

const mostOpen = 5

// attempt is a client's new connection.
type attempt struct {
	begin time.Time
	ok    bool
}

// attempts are a client's new connections, one every 20 ms. None is tried twice.
type attempts struct {
	t       *testing.T
	mu      sync.Mutex
	ended   []attempt
	running sync.WaitGroup
	done    chan struct{}
}

// connect begins attempts.
func (p *pair) connect() *attempts {
	l := &attempts{t: p.t, done: make(chan struct{})}
	l.running.Go(func() {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-l.done:
				return
			case <-ticker.C:
			}
			l.running.Go(func() {
				a := attempt{begin: time.Now()}
				ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond) // one SYN
				defer cancel()
				if c, err := p.Client.DialContext(ctx, "tcp", p.at(80)); err == nil {
					_ = c.SetDeadline(time.Now().Add(2 * time.Second))
					name, err := askName(c, "hello")
					a.ok = err == nil && name == "web1"
					c.Close()
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				l.ended = append(l.ended, a)
			})
		}
	})
	return l
}

// awaitAnswers waits until ten connections that began after since have been answered.
func (l *attempts) awaitAnswers(since time.Time) {
	l.t.Helper()
	testkit.Eventually(l.t, "ten connections are answered", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := 0
		for _, a := range l.ended {
			if a.ok && a.begin.After(since) {
				n++
			}
		}
		return n >= 10
	})
}

// stop ends the attempts, and returns them in the order of their begin.
func (l *attempts) stop() []attempt {
	close(l.done)
	l.running.Wait()
	slices.SortFunc(l.ended, func(a, b attempt) int { return a.begin.Compare(b.begin) })
	return l.ended
}

// startPair starts both directors. The first one is the master.
func (p *pair) startPair(more string) {
	p.t.Helper()
	p.configurePair(p.first, 150, p.addresses()+more)
	p.configurePair(p.second, 100, p.addresses()+more)
	p.first.start()
	p.second.start()
	p.role(p.first, "master")
	p.role(p.second, "backup")
	p.mustServe(p.Client)
}

// needQuiet skips a test that measures times, unless make ha runs it: a busy machine makes them longer.
func needQuiet(t *testing.T) {
	t.Helper()
	needFull(t, "measures times")
}

// TestVRRPFailoverTime: after a kill of the master, the next new connection that is answered begins soon, with 100 ms
// between advertisements and with keepalived's defaults.
func TestVRRPFailoverTime(t *testing.T) {
	needQuiet(t)
	for _, c := range []struct {
		name, interval, more string
		rounds               int
		median, worst        time.Duration
	}{
		{"100ms", "100ms", "", 10, 500 * time.Millisecond, time.Second},
		{"keepalived", "1s", "version = 2\n", 10, 4 * time.Second, 4 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, false)
			p.interval = c.interval
			p.startPair(c.more)
			var took []time.Duration
			for range c.rounds {
				took = append(took, p.failoverTime())
			}
			slices.Sort(took)
			t.Logf("from the kill to the next connection: %v", took)
			if median, worst := took[len(took)/2], took[len(took)-1]; median > c.median || worst > c.worst {
				t.Errorf("median %v, worst %v, want %v and %v", median, worst, c.median, c.worst)
			}
		})
	}
}

// failoverTime kills the master, and returns the time until the begin of the next connection that is answered. It
// starts the master again.
func (p *pair) failoverTime() time.Duration {
	p.t.Helper()
	connections := p.connect()
	connections.awaitAnswers(time.Time{})
	begin := time.Now()
	p.first.kill()
	dead := time.Now()
	p.role(p.second, "master")
	connections.awaitAnswers(dead)
	all := connections.stop()
	at := slices.IndexFunc(all, func(a attempt) bool { return a.ok && a.begin.After(dead) })
	p.first.start()
	p.role(p.second, "backup")
	p.role(p.first, "master")
	return all[at].begin.Sub(begin)
}

// TestVRRPPlannedSwitch: at a planned switch, a stop and a start of the master only the connections fail that are open
// at that moment: directors without [sync] do not share connections. mostOpen is their number on a busy machine.
func TestVRRPPlannedSwitch(t *testing.T) {
	needQuiet(t)
	p := newPair(t, false)
	p.startPair("")
	for _, planned := range []struct {
		name   string
		change func()
		role   string // of the second director
	}{
		{"standby", func() { p.ask("standby") }, "master"},
		{"active", func() { p.ask("active") }, "backup"},
		{"a stop", p.first.stop, "master"},
		{"a start", p.first.start, "backup"},
	} {
		connections := p.connect()
		connections.awaitAnswers(time.Time{})
		planned.change()
		p.role(p.second, planned.role)
		connections.awaitAnswers(time.Now())
		failed, all := 0, connections.stop()
		for _, a := range all {
			if !a.ok {
				failed++
			}
		}
		t.Logf("%s: %d of %d connections failed", planned.name, failed, len(all))
		if failed > mostOpen {
			t.Errorf("%s: %d of %d connections failed", planned.name, failed, len(all))
		}
	}
}

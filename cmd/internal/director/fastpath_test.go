package director

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/fastpath"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/ingress"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// wayQuestions are the addresses that followWays asks for, one list a question. The kernel's answer to each is that of
// answer.
type wayQuestions struct {
	mu     sync.Mutex
	all    [][]netip.Addr
	answer func(to []netip.Addr) error
	ipsec  atomic.Bool
}

func (q *wayQuestions) hasIPsec() (in, out bool, err error) { return true, q.ipsec.Load(), nil }

func (q *wayQuestions) ask(to []netip.Addr) (map[netip.Addr]query.Path, error) {
	q.mu.Lock()
	slices.SortFunc(to, netip.Addr.Compare)
	q.all = append(q.all, to)
	q.mu.Unlock()
	return nil, q.answer(to)
}

// noMarks is a host without rules by mark.
func noMarks(map[netip.Addr]query.Path) (query.Marks, error) { return query.Marks{}, nil }

// noTracking is a host that does not track connections.
func noTracking() (bool, error) { return false, nil }

// about returns the number of questions about n addresses.
func (q *wayQuestions) about(n int) (questions int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, to := range q.all {
		if len(to) == n {
			questions++
		}
	}
	return questions
}

// newFastPath returns a fast path without a program, which follows ways.
func newFastPath(t *testing.T, q *wayQuestions) *fastPath {
	t.Helper()
	routes, err := query.WatchRoutes()
	if err != nil {
		t.Fatal(err)
	}
	f := &fastPath{log: slog.New(slog.DiscardHandler), routes: routes, ask: q.ask, marks: noMarks, tracks: noTracking,
		again: make(chan struct{}, 1), secure: ingress.Policies{Ask: q.hasIPsec}, devices: ingress.New(nil),
		cache: fastpath.New(fastpath.Config{Table: conntab.New(conntab.Config{Max: 64})})}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = f.followWays(ctx) })
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		routes.Close()
	})
	return f
}

// knows puts a state with realservers at these addresses in force.
func (f *fastPath) knows(addrs ...netip.Addr) {
	paths := plan.Paths{}
	for _, a := range addrs {
		paths[a] = query.Path{Link: "eth0", Index: 2, MTU: 1500}
	}
	f.follow(&state{inputs: plan.Inputs{Config: &config.Director{}, Paths: paths}, snapshot: &balancer.Snapshot{}})
}

// TestWaysAskedAgain: if the kernel does not answer the question for the ways to realservers, it is asked again.
func TestWaysAskedAgain(t *testing.T) {
	asked := 0
	q := &wayQuestions{answer: func(to []netip.Addr) error {
		if asked += len(to); asked == 1 {
			return errors.New("no answer")
		}
		return nil
	}}
	newFastPath(t, q).knows(netip.MustParseAddr("10.0.11.2"))
	testkit.Within(t, "a second question", 10*time.Second, func() bool { return q.about(1) > 1 })
}

// TestWaysOfNewRealserver: a realserver that comes while the kernel answers a question about the others gets its way.
func TestWaysOfNewRealserver(t *testing.T) {
	one, two := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("10.0.11.3")
	var f *fastPath
	q := &wayQuestions{}
	q.answer = func(to []netip.Addr) error {
		if len(to) == 1 {
			f.knows(one, two)
		}
		return nil
	}
	f = newFastPath(t, q)
	f.knows(one)
	testkit.Within(t, "a question about both", 10*time.Second, func() bool { return q.about(2) > 0 })
}

// TestIPsec: an IPsec policy that comes later ends the fast path, and status says so.
func TestIPsec(t *testing.T) {
	q := &wayQuestions{answer: func([]netip.Addr) error { return nil }}
	f := newFastPath(t, q)
	f.knows(netip.MustParseAddr("10.0.11.2"))
	off := func() bool { return strings.Contains(f.status().Reason, "IPsec") }
	if off() {
		t.Error("there is no policy")
	}
	for _, has := range []bool{true, false} {
		q.ipsec.Store(has)
		f.askAgain() // as a change of routes does
		testkit.Within(t, "it is noticed", 10*time.Second, func() bool { return off() == has })
		if !f.status().Resumes {
			t.Error("no restart is needed")
		}
	}
}

package health

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Monitor runs the checks of its subjects.
type Monitor struct {
	changed func([]Change)

	mu       sync.Mutex
	subjects []*subject
	targets  map[spot][]*target
	added    []*target // by Set; Begin starts them
	queue    queue
	room     int  // descriptors that checks in flight may have; 0: no bound
	taken    int  // descriptors that checks in flight have
	full     bool // a check that is due waits for room
	pending  []Change
	wake     chan struct{} // the queue has another first target
	deliver  chan struct{} // there are pending changes
}

// subject is a Subject with what its checks have come to.
type subject struct {
	Subject
	targets []*target // of each of Targets; none: it is not checked
	up      bool
	known   bool // see State.Known
	since   time.Time

	noted   bool // the state has been noted at least once
	notedUp bool // up, as it was noted last
}

// spot is what checks must have in common to be one, beside the Check.
type spot struct {
	realserver, to netip.Addr
	port           uint16
	way            string
}

// target is one check in one place, for the subjects that have it in common.
type target struct {
	spot    spot
	config  Check
	checker checker
	path    Path
	users   []*subject

	damper damper
	offset int           // of the realserver's weight, by its last successful check; 0 while that is down
	blind  int           // checks in a row that could not be made
	quick  int           // checks to come that follow each other quickly
	pace   time.Duration // of those
	due    time.Time     // of the next check, or of the one that runs
	index  int           // in the queue; -1: it runs, or is gone
	cancel context.CancelFunc
	gone   bool
	last   result
	checks uint64
	failed uint64
}

// result is how one check went.
type result struct {
	reason string
	streak int // of the damper; 0: the result is inconclusive
	end    time.Time
	took   time.Duration
}

// New is a Monitor without subjects. It calls changed with what has changed, in order and from one goroutine, which may
// take its time: checks go on, and what changes meanwhile comes with the next call.
func New(changed func([]Change)) *Monitor {
	return &Monitor{changed: changed, targets: map[spot][]*target{}, wake: make(chan struct{}, 1),
		deliver: make(chan struct{}, 1)}
}

// Set replaces the subjects. What is checked as before goes on as if nothing had happened. A subject that is checked in
// another way now begins with the state that it had. On an error nothing has changed.
//
// Checks that are new wait for Begin, which the caller calls when the subjects' paths lead to their realservers.
func (m *Monitor) Set(subjects []Subject) error {
	checkers, err := prepare(subjects)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.arrange(subjects, checkers)
	for _, s := range m.subjects {
		for _, t := range s.targets {
			t.users = nil
		}
	}
	for _, s := range next.subjects {
		for _, t := range s.targets {
			t.path = s.Path
			t.users = append(t.users, s)
		}
	}
	for _, list := range m.targets {
		for _, t := range list {
			if len(t.users) == 0 {
				m.drop(t)
			}
		}
	}
	m.subjects, m.targets, m.added = next.subjects, next.targets, append(m.added, next.added...)
	return nil
}

// Preview returns the states that Set would give these subjects now, in their order. Its error is the one of Set. It
// changes nothing.
func (m *Monitor) Preview(subjects []Subject) ([]State, error) {
	checkers, err := prepare(subjects)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return states(m.arrange(subjects, checkers).subjects), nil
}

// arrangement is what Set makes of its subjects.
type arrangement struct {
	subjects []*subject
	targets  map[spot][]*target
	added    []*target // those of targets that are new
}

// arrange finds or makes the targets of subjects, and the states that follow from them. It changes nothing that m has.
// The caller holds m.mu.
func (m *Monitor) arrange(subjects []Subject, checkers map[*Check]checker) arrangement {
	former := make(map[name]*subject, len(m.subjects))
	for _, s := range m.subjects {
		former[s.name()] = s
	}
	next := arrangement{subjects: make([]*subject, 0, len(subjects)),
		targets: make(map[spot][]*target, len(m.targets))}
	for i := range subjects {
		s := &subject{Subject: subjects[i], up: true}
		old := former[s.name()]
		if old != nil {
			s.known, s.since, s.noted, s.notedUp = old.known, old.since, old.noted, old.notedUp
		}
		if s.Check != nil {
			for _, to := range s.Targets {
				t, isNew := m.target(next.targets, s, old, to)
				if isNew {
					t.checker = checkers[s.Check]
					if _, ok := t.checker.(weigher); ok && old != nil {
						t.offset = old.offset()
					}
					next.added = append(next.added, t)
				}
				s.targets = append(s.targets, t)
			}
			s.up = s.allUp()
		}
		s.known = s.known || s.allKnown()
		if old != nil && old.up != s.up { // what it has in common with others now is known already
			s.since = time.Now()
		}
		next.subjects = append(next.subjects, s)
	}
	return next
}

// Begin starts the checks that Set has added, and notes the states that are known without them.
func (m *Monitor) Begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.start(slices.DeleteFunc(m.added, func(t *target) bool { return t.gone }))
	m.added = nil
	now := time.Now()
	for _, s := range m.subjects {
		m.noteState(s, now)
	}
}

// prepare makes what the checks of all subjects are made with.
func prepare(subjects []Subject) (map[*Check]checker, error) {
	checkers := map[*Check]checker{}
	for _, s := range subjects {
		if s.Check == nil || checkers[s.Check] != nil {
			continue
		}
		c, err := s.Check.Probe.prepare()
		if err != nil {
			return nil, fmt.Errorf("service %q: realserver %v: check: %w", s.Service, s.Realserver, err)
		}
		checkers[s.Check] = c
	}
	return checkers, nil
}

// target finds the check of s at one of its targets in next, which s has in common with others, or among those that m
// has, or else makes it. It is in next then.
func (m *Monitor) target(next map[spot][]*target, s, old *subject, to netip.Addr) (_ *target, isNew bool) {
	at := spot{realserver: s.Realserver, to: to, port: s.Port, way: s.Way}
	same := func(t *target) bool { return reflect.DeepEqual(t.config, *s.Check) }
	if i := slices.IndexFunc(next[at], same); i >= 0 {
		return next[at][i], false
	}
	var t *target
	if i := slices.IndexFunc(m.targets[at], same); i >= 0 {
		t = m.targets[at][i]
	} else {
		t, isNew = &target{spot: at, config: *s.Check, index: -1, damper: damper{up: s.Check.Up}, quick: s.Check.Rise},
			true
		if old != nil {
			t.damper.up, t.damper.known = old.up, old.known
			if old.up {
				t.quick = 1
			}
		}
	}
	next[at] = append(next[at], t)
	return t, isNew
}

// name is what a subject is known by.
type name struct {
	service    string
	realserver netip.Addr
}

func (s *subject) name() name { return name{s.Service, s.Realserver} }

func (s *subject) allUp() bool {
	return !slices.ContainsFunc(s.targets, func(t *target) bool { return !t.damper.up })
}

// allKnown reports whether the known states of the targets decide the state of s: all are known, or one is down.
func (s *subject) allKnown() bool {
	all := true
	for _, t := range s.targets {
		if t.damper.known && !t.damper.up {
			return true
		}
		all = all && t.damper.known
	}
	return all
}

// offset returns the offset of the realserver's weight.
func (s *subject) offset() (sum int) {
	for _, t := range s.targets {
		sum += t.offset
	}
	return sum
}

// drop ends what nobody wants to know any more.
func (m *Monitor) drop(t *target) {
	t.gone = true
	if t.index >= 0 {
		heap.Remove(&m.queue, t.index)
	}
	if t.cancel != nil {
		t.cancel()
	}
}

// The first checks of new targets are spread over a second, and over more from startRate targets on: so many begin in a
// second.
const (
	startSpread = time.Second
	startRate   = 1000
)

// start queues new targets.
func (m *Monitor) start(added []*target) {
	now := time.Now()
	n := time.Duration(len(added))
	spread := max(startSpread, n*time.Second/startRate)
	for i, t := range added {
		t.pace = min(t.config.Interval, spread)
		t.due = now.Add(t.pace * time.Duration(i) / n)
		heap.Push(&m.queue, t)
	}
	signal(m.wake)
}

// Run makes the checks until ctx is cancelled. When it returns, none is running any more.
func (m *Monitor) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { m.tell(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		timer.Reset(m.startDue(ctx, &running))
	}
}

// SetRoom bounds the descriptors that checks in flight have together; 0: no bound. Beyond the bound, due checks wait
// for others to end. A check's timeout begins when the check begins.
func (m *Monitor) SetRoom(descriptors int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room = descriptors
	signal(m.wake)
}

// Need returns the number of descriptors that the checks have when all are in flight.
func (m *Monitor) Need() (descriptors int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range m.targets {
		for _, t := range list {
			descriptors += t.descriptors()
		}
	}
	return descriptors
}

// Waiting returns the number of due checks that wait for descriptors.
func (m *Monitor) Waiting() (checks int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.full {
		return 0
	}
	now := time.Now()
	for _, t := range m.queue {
		if t.due.Before(now) {
			checks++
		}
	}
	return checks
}

// descriptors returns the largest number of descriptors that a check of t has.
func (t *target) descriptors() int {
	switch t.config.Probe.(type) {
	case Ping:
		return 0 // all have one socket
	case Exec:
		return 6 // /dev/null, a pipe for the output, one for a failure to start, a pidfd
	}
	return 1
}

// fits reports whether there are descriptors for a check of t. With none in flight there always are.
func (m *Monitor) fits(t *target) bool {
	return m.room == 0 || m.taken == 0 || m.taken+t.descriptors() <= m.room
}

// idle is how long Run waits when there is nothing to check.
const idle = time.Hour

// together is how much too early a check may start, with others: that many fewer times do processors, workers and the
// runtime's own threads wake up. Of its interval it is no more than an earlyShare-th.
const (
	together   = 50 * time.Millisecond
	earlyShare = 20
)

// startDue starts the checks that are due, and says when the next one is.
func (m *Monitor) startDue(ctx context.Context, running *sync.WaitGroup) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.full = false
	for len(m.queue) > 0 {
		t := m.queue[0]
		wait := t.due.Sub(now)
		if wait > min(together, t.config.Interval/earlyShare) {
			return wait
		}
		if !m.fits(t) {
			m.full = true
			return idle // the end of a check wakes Run
		}
		heap.Pop(&m.queue)
		m.taken += t.descriptors()
		if wait > 0 {
			t.due = now // for the next one to be no later than an interval after this one
		}
		var bounded context.Context
		bounded, t.cancel = context.WithTimeout(ctx, t.config.Timeout)
		at := place{path: t.path, to: t.spot.to, port: t.spot.port}
		running.Go(func() { m.run(bounded, t, at) })
	}
	return idle
}

// run makes one check of t, and queues the next one.
func (m *Monitor) run(ctx context.Context, t *target, at place) {
	begin := time.Now()
	reason, offset, err := attempt(ctx, t.checker, at, t.config.Timeout)
	end := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.taken -= t.descriptors(); m.full {
		signal(m.wake)
	}
	aborted := ctx.Err() == context.Canceled
	t.cancel()
	t.cancel = nil
	if t.gone || aborted {
		return
	}
	t.last = result{reason: reason, end: end, took: end.Sub(begin)}
	t.checks++
	if err != nil {
		t.failed++
	}
	if isOwn(err) {
		if t.quick > 0 {
			t.quick++ // that was none: a reload was under way, for instance
		}
		if t.blind++; t.blind == t.config.Fall {
			for _, s := range t.users {
				m.note(Change{Service: s.Service, Realserver: s.Realserver, Checked: true, Up: s.up, Blind: true,
					Reason: s.reason(t), Time: end})
			}
		}
	} else {
		t.blind = 0
		known := t.damper.known
		if t.damper.add(err == nil, t.config.Rise, t.config.Fall) || t.damper.known != known {
			for _, s := range t.users {
				if up := s.allUp(); up != s.up {
					s.up, s.since = up, end
				}
				s.known = s.known || s.allKnown()
				m.noteState(s, end)
			}
		}
		if err != nil && !t.damper.up {
			t.offset = 0
		}
		if err == nil && t.damper.up && offset != t.offset {
			t.offset = offset
			for _, s := range t.users {
				m.note(Change{Service: s.Service, Realserver: s.Realserver, Checked: true, Up: s.up, Weighed: true,
					Offset: s.offset(), Reason: s.reason(t), Time: end})
			}
		}
		t.last.reason, t.last.streak = t.damper.progress(reason, t.config.Rise, t.config.Fall), t.damper.streak
	}
	t.due = t.next(end)
	heap.Push(&m.queue, t)
	if t.index == 0 {
		signal(m.wake)
	}
}

// attempt makes one check and returns in one line how it went, with the offset of the realserver's weight, 0 where c
// gives none.
func attempt(ctx context.Context, c checker, at place, timeout time.Duration) (reason string, offset int, err error) {
	if w, ok := c.(weigher); ok {
		reason, offset, err = w.weigh(ctx)
	} else {
		reason, err = c.check(ctx, at)
	}
	if err != nil {
		reason = explain(err, timeout)
	}
	return oneLine(reason), offset, err
}

// next is when t is checked again.
func (t *target) next(now time.Time) time.Time {
	interval := t.config.Interval
	var due time.Time
	switch t.quick--; {
	case t.quick > 0:
		due = t.due.Add(t.pace)
	case t.quick == 0: // those that began together part
		due = t.due.Add(min(t.pace, interval/10) + rand.N(interval-min(t.pace, interval/10)))
	default:
		t.quick = -1
		due = t.due.Add(interval - rand.N(interval/10+1))
	}
	if due.Before(now) {
		return now
	}
	return due
}

// noteState notes the state of s if it is known, and differs from what was noted last.
func (m *Monitor) noteState(s *subject, now time.Time) {
	if !s.known || s.noted && s.notedUp == s.up {
		return
	}
	c := Change{Service: s.Service, Realserver: s.Realserver, Checked: len(s.targets) > 0, Up: s.up, First: !s.noted,
		Reason: "no check", Time: now}
	if t := s.telling(); t != nil {
		c.Reason = s.reason(t)
	}
	s.noted, s.notedUp = true, s.up
	m.note(c)
}

// note has c told.
func (m *Monitor) note(c Change) {
	m.pending = append(m.pending, c)
	signal(m.deliver)
}

// reason is t's last one, with the place when there are several.
func (s *subject) reason(t *target) string {
	if len(s.targets) > 1 && t.last.reason != "" {
		return t.spot.to.String() + ": " + t.last.reason
	}
	return t.last.reason
}

// tell hands the changes over.
func (m *Monitor) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.deliver:
		}
		m.mu.Lock()
		list := m.pending
		m.pending = nil
		m.mu.Unlock()
		if len(list) > 0 {
			m.changed(list)
		}
	}
}

// States is what is known of the subjects, in the order of Set.
func (m *Monitor) States() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return states(m.subjects)
}

func states(subjects []*subject) []State {
	all := make([]State, 0, len(subjects))
	for _, s := range subjects {
		st := State{Service: s.Service, Realserver: s.Realserver, Checked: len(s.targets) > 0, Up: s.up, Known: s.known,
			Offset: s.offset(), Since: s.since}
		if t := s.telling(); t != nil {
			st.Reason, st.Streak, st.Last, st.Duration = s.reason(t), t.last.streak, t.last.end, t.last.took
		}
		for _, t := range s.targets {
			st.Checks += t.checks
			st.Failures += t.failed
		}
		all = append(all, st)
	}
	return all
}

// telling is the target whose last check says most about s: the first one that is down, or else the one that was
// checked last.
func (s *subject) telling() *target {
	var latest *target
	for _, t := range s.targets {
		if !t.damper.up && !s.up {
			return t
		}
		if latest == nil || t.last.end.After(latest.last.end) {
			latest = t
		}
	}
	return latest
}

// signal makes a waiting goroutine look, once.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// queue is the targets that wait, the next one first: container/heap.
type queue []*target

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is heap's.
func (q *queue) Push(x any) {
	t := x.(*target)
	t.index = len(*q)
	*q = append(*q, t)
}

// Pop is heap's.
func (q *queue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	t.index = -1
	return t
}

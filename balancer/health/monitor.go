package health

import (
	"container/heap"
	"context"
	"fmt"
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
	targets  map[checkKey][]*target
	added    []*target            // by Set; Begin starts them
	before   map[subjectKey]State // of a former process, until the first Set
	queue    queue
	room     int  // bound of taken; 0: no bound
	taken    int  // descriptors of checks in flight
	full     bool // a due check waits for descriptors
	pending  []Change
	wake     chan struct{} // the queue has another first target, or a check may fit now
	deliver  chan struct{} // there are pending changes
}

// subject is a Subject and its state.
type subject struct {
	Subject
	targets []*target // one for each of Targets; none: it is not checked
	up      bool
	known   bool // see State.Known
	since   time.Time

	noted   bool // the state has been noted at least once
	notedUp bool // up when it was last noted
}

// checkKey identifies a check, together with its Check. Subjects with equal keys and Checks share a target.
type checkKey struct {
	realserver, to netip.Addr
	port           uint16
	way            string
}

// target is one check of one address, for the subjects that share it.
type target struct {
	key      checkKey
	config   Check
	checker  checker
	path     Path
	subjects []*subject

	counter       counter
	offset        int // of the realserver's weight, by its last successful check; 0 while it is down
	inconclusive  int // consecutive inconclusive checks
	burst         int // number of checks to come at burstInterval
	burstInterval time.Duration
	due           time.Time // time of the next check, or of the running one
	index         int       // in the queue; -1: its check runs, it waits for Begin, or it is gone
	cancel        context.CancelFunc
	gone          bool
	last          result
	checks        uint64
	failed        uint64
}

// result is the result of one check.
type result struct {
	reason string
	streak int // of the counter; 0: the result is inconclusive
	end    time.Time
	took   time.Duration
}

// New returns a Monitor without subjects. It calls changed with the changes, in order and from one goroutine. changed
// may block: checks go on, and the next call has the changes since.
func New(changed func([]Change)) *Monitor {
	return &Monitor{changed: changed, targets: map[checkKey][]*target{}, wake: make(chan struct{}, 1),
		deliver: make(chan struct{}, 1)}
}

// Remember gives the states with which the checks of the first Set begin, in place of Check.Up. They are not Known
// before a check has confirmed them.
func (m *Monitor) Remember(states []State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = make(map[subjectKey]State, len(states))
	for _, st := range states {
		m.before[subjectKey{st.Service, st.Realserver}] = st
	}
}

// Set replaces the subjects. An unchanged check continues without a break. A subject whose check is new begins with the
// state that it had. On an error Set changes nothing.
//
// New checks wait for Begin. The caller calls Begin when the subjects' paths lead to their realservers.
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
			t.subjects = nil
		}
	}
	for _, s := range next.subjects {
		for _, t := range s.targets {
			t.path = s.Path
			t.subjects = append(t.subjects, s)
		}
	}
	for _, list := range m.targets {
		for _, t := range list {
			if len(t.subjects) == 0 {
				m.drop(t)
			}
		}
	}
	m.subjects, m.targets, m.added = next.subjects, next.targets, append(m.added, next.added...)
	m.before = nil
	return nil
}

// Preview returns the states that Set would give the subjects now, in their order, or Set's error. It changes nothing.
func (m *Monitor) Preview(subjects []Subject) ([]State, error) {
	checkers, err := prepare(subjects)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return states(m.arrange(subjects, checkers).subjects), nil
}

// arrangement is Set's subjects and their targets.
type arrangement struct {
	subjects []*subject
	targets  map[checkKey][]*target
	added    []*target // the new ones of targets
}

// arrange finds or makes the targets of subjects, and derives the subjects' states. It does not change m. The caller
// must hold m.mu.
func (m *Monitor) arrange(subjects []Subject, checkers map[*Check]checker) arrangement {
	former := make(map[subjectKey]*subject, len(m.subjects))
	for _, s := range m.subjects {
		former[s.key()] = s
	}
	next := arrangement{subjects: make([]*subject, 0, len(subjects)),
		targets: make(map[checkKey][]*target, len(m.targets))}
	for i := range subjects {
		s := &subject{Subject: subjects[i], up: true}
		old := former[s.key()]
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
					} else if ok && len(s.Targets) == 1 { // the offset of several is their sum
						t.offset = m.before[s.key()].Offset
					}
					next.added = append(next.added, t)
				}
				s.targets = append(s.targets, t)
			}
			s.up = s.allUp()
		}
		s.known = s.known || s.allKnown()
		if old != nil && old.up != s.up { // it now shares a target that has another state
			s.since = time.Now()
		}
		next.subjects = append(next.subjects, s)
	}
	return next
}

// Begin starts the checks that Set has added, and notes the states that are known already.
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

// prepare returns a checker for each Check of the subjects.
func prepare(subjects []Subject) (map[*Check]checker, error) {
	checkers := map[*Check]checker{}
	for _, s := range subjects {
		if s.Check == nil || checkers[s.Check] != nil {
			continue
		}
		c, err := s.Check.Probe.prepare()
		if err != nil {
			return nil, fmt.Errorf("service %q: realserver %s: check: %w", s.Service, s.name(), err)
		}
		checkers[s.Check] = c
	}
	return checkers, nil
}

// target returns the target for the check of s at the address to, and adds it to next. It is one of next, one of m, or
// a new one. old is the former subject of the same realserver, or nil.
func (m *Monitor) target(next map[checkKey][]*target, s, old *subject, to netip.Addr) (_ *target, isNew bool) {
	at := checkKey{realserver: s.Realserver.Addr(), to: to, port: s.Port, way: s.Way}
	same := func(t *target) bool { return reflect.DeepEqual(t.config, *s.Check) }
	if i := slices.IndexFunc(next[at], same); i >= 0 {
		return next[at][i], false
	}
	var t *target
	if i := slices.IndexFunc(m.targets[at], same); i >= 0 {
		t = m.targets[at][i]
	} else {
		t, isNew = &target{key: at, config: *s.Check, index: -1, counter: counter{up: s.Check.Up}, burst: s.Check.Rise},
			true
		if old != nil {
			t.counter.up, t.counter.known = old.up, old.known
			if old.up {
				t.burst = 1
			}
		} else if st, known := m.before[s.key()]; known {
			if t.counter.up = st.Up; st.Up {
				t.burst = s.Check.Fall // it may have failed meanwhile
			}
		}
	}
	next[at] = append(next[at], t)
	return t, isNew
}

// subjectKey identifies a subject.
type subjectKey struct {
	service    string
	realserver netip.AddrPort
}

func (s *subject) key() subjectKey { return subjectKey{s.Service, s.Realserver} }

func (s *subject) allUp() bool {
	return !slices.ContainsFunc(s.targets, func(t *target) bool { return !t.counter.up })
}

// allKnown reports whether the known states of the targets decide the state of s: all are known, or one is down.
func (s *subject) allKnown() bool {
	all := true
	for _, t := range s.targets {
		if t.counter.known && !t.counter.up {
			return true
		}
		all = all && t.counter.known
	}
	return all
}

// offset returns the offset of the realserver's weight: the sum of its targets' offsets.
func (s *subject) offset() (sum int) {
	for _, t := range s.targets {
		sum += t.offset
	}
	return sum
}

// drop ends the checks of a target without subjects.
func (m *Monitor) drop(t *target) {
	t.gone = true
	if t.index >= 0 {
		heap.Remove(&m.queue, t.index)
	}
	if t.cancel != nil {
		t.cancel()
	}
}

// noteState notes the state of s if it is known and differs from the state noted last.
func (m *Monitor) noteState(s *subject, now time.Time) {
	if !s.known || s.noted && s.notedUp == s.up {
		return
	}
	c := Change{Service: s.Service, Realserver: s.Realserver, Checked: len(s.targets) > 0, Up: s.up, First: !s.noted,
		Reason: "no check", Time: now}
	if t := s.representative(); t != nil {
		c.Reason = s.reason(t)
	}
	s.noted, s.notedUp = true, s.up
	m.note(c)
}

// note queues c for deliverChanges.
func (m *Monitor) note(c Change) {
	m.pending = append(m.pending, c)
	signal(m.deliver)
}

// reason returns t's last reason, with the address if s has several.
func (s *subject) reason(t *target) string {
	if len(s.targets) > 1 && t.last.reason != "" {
		return t.key.to.String() + ": " + t.last.reason
	}
	return t.last.reason
}

// deliverChanges calls m.changed with pending changes until ctx ends.
func (m *Monitor) deliverChanges(ctx context.Context) {
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

// States returns the subjects' states, in the order of Set.
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
		if t := s.representative(); t != nil {
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

// representative returns the target that best explains s's state: if s is down, the first target that is known to be
// down, or the latest of those that may be; else the target whose check is the latest. It returns nil without targets.
func (s *subject) representative() *target {
	var down, latest *target
	for _, t := range s.targets {
		if !s.up && !t.counter.up {
			if t.counter.known {
				return t
			}
			if down == nil || t.last.end.After(down.last.end) {
				down = t
			}
		}
		if latest == nil || t.last.end.After(latest.last.end) {
			latest = t
		}
	}
	if down != nil {
		return down
	}
	return latest
}

// signal wakes the goroutine that waits for c, now or at its next receive.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

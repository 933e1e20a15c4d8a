package health

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// The first checks of n new targets are spread over startSpread, or, if n exceeds startRate, over n/startRate seconds;
// but at most over their interval.
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
		t.burstInterval = min(t.config.Interval, spread)
		t.due = now.Add(t.burstInterval * time.Duration(i) / n)
		heap.Push(&m.queue, t)
	}
	signal(m.wake)
}

// Run makes the checks until ctx is cancelled. It returns nil after all running checks have ended.
func (m *Monitor) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { m.deliverChanges(ctx) })
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

// SetRoom bounds the total number of descriptors of checks in flight; 0: no bound. Beyond the bound, due checks wait
// for others to end. A check's timeout begins when the check begins.
func (m *Monitor) SetRoom(descriptors int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room = descriptors
	signal(m.wake)
}

// Need returns the number of descriptors that all checks together need if they are in flight at once.
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

// descriptors returns the largest number of descriptors that a check of t needs: its checker's number, else 1.
func (t *target) descriptors() int {
	if c, ok := t.checker.(interface{ descriptors() int }); ok {
		return c.descriptors()
	}
	return 1
}

// fits reports whether there are descriptors for a check of t. A check always fits when no other one is in flight.
func (m *Monitor) fits(t *target) bool {
	return m.room == 0 || m.taken == 0 || m.taken+t.descriptors() <= m.room
}

// idle is the time that Run waits if there is nothing to check.
const idle = time.Hour

// A check may start early, by at most together and by at most 1/earlyShare of its interval. Checks that start together
// wake processors, workers and the runtime's own threads less often.
const (
	together   = 50 * time.Millisecond
	earlyShare = 20
)

// startDue starts the due checks, and returns the time until the next one.
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
			return idle // the check that ends next wakes Run
		}
		heap.Pop(&m.queue)
		m.taken += t.descriptors()
		if wait > 0 {
			t.due = now // the next check follows within an interval of this one
		}
		var bounded context.Context
		bounded, t.cancel = context.WithTimeout(ctx, t.config.Timeout)
		at := endpoint{path: t.path, to: t.key.to, port: t.key.port}
		running.Go(func() { m.run(bounded, t, at) })
	}
	return idle
}

// run makes one check of t, and queues the next one.
func (m *Monitor) run(ctx context.Context, t *target, at endpoint) {
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
	if isLocal(err) {
		if t.burst > 0 {
			t.burst++ // this check does not count
		}
		if t.inconclusive++; t.inconclusive == t.config.Fall {
			for _, s := range t.subjects {
				m.note(Change{Service: s.Service, Realserver: s.Realserver, Checked: true, Up: s.up, Inconclusive: true,
					Reason: s.reason(t), Time: end})
			}
		}
	} else {
		t.inconclusive = 0
		known := t.counter.known
		if t.counter.add(err == nil, t.config.Rise, t.config.Fall) || t.counter.known != known {
			for _, s := range t.subjects {
				if up := s.allUp(); up != s.up {
					s.up, s.since = up, end
				}
				s.known = s.known || s.allKnown()
				m.noteState(s, end)
			}
		}
		if err != nil && !t.counter.up {
			t.offset = 0
		}
		if err == nil && t.counter.up && offset != t.offset {
			t.offset = offset
			for _, s := range t.subjects {
				m.note(Change{Service: s.Service, Realserver: s.Realserver, Checked: true, Up: s.up, Weighed: true,
					Offset: s.offset(), Reason: s.reason(t), Time: end})
			}
		}
		t.last.reason, t.last.streak = t.counter.progress(reason, t.config.Rise, t.config.Fall), t.counter.streak
	}
	t.due = t.next(end)
	heap.Push(&m.queue, t)
	if t.index == 0 {
		signal(m.wake)
	}
}

// attempt makes one check. It returns the reason in one line, and the offset of the realserver's weight, which is 0 if
// c is no weigher.
func attempt(ctx context.Context, c checker, at endpoint, timeout time.Duration) (reason string, offset int,
	err error) {
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

// next returns the time of the next check of t.
func (t *target) next(now time.Time) time.Time {
	interval := t.config.Interval
	var due time.Time
	switch t.burst--; {
	case t.burst > 0:
		due = t.due.Add(t.burstInterval)
	case t.burst == 0: // spread checks that began together
		due = t.due.Add(min(t.burstInterval, interval/10) + rand.N(interval-min(t.burstInterval, interval/10)))
	default:
		t.burst = -1
		due = t.due.Add(interval - rand.N(interval/10+1))
	}
	if due.Before(now) {
		return now
	}
	return due
}

// queue is a heap of the waiting targets by due. It implements heap.Interface.
type queue []*target

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	t := x.(*target)
	t.index = len(*q)
	*q = append(*q, t)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	t.index = -1
	return t
}

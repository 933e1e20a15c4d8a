// Package resolve keeps the answers to questions of the DNS: the addresses of names, and the hosts of SRV records
// (RFC 2782) with theirs. It asks again and again. While a question has no new answer, its last one holds.
//
//	Set, Remember → Resolver ⇄ name servers
//	                   └→ Changed, Answers, States
package resolve

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Query is a question.
type Query struct {
	// Name is the name as it is written: the search list of resolv.conf(5) completes one without a dot at its end.
	Name   string
	SRV    bool // asks for SRV records and the addresses of their targets, else for the addresses of Name
	Family Family
	Server netip.AddrPort // name server; the zero value: those of resolv.conf, and without its search list
}

// Family selects addresses.
type Family string

// Any is the IPv4 addresses of a host that has some, else its IPv6 addresses: a host with both has two paths, and is
// one host.
const (
	Any  Family = "any"
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Answer is the last answer to a Query. It is immutable.
type Answer struct {
	Targets []Target // in order of priority, host and port; none: the name says that there is no service
	Time    time.Time
	Cut     int // addresses beyond MaxAddresses, which are left out
}

// Target is a host with its addresses: Query.Name, or the target of a SRV record.
type Target struct {
	Host             string // "": Query.Name
	Port             uint16 // of the SRV record, like Priority and Weight
	Priority, Weight uint16
	Addresses        []netip.Addr // in ascending order, at least one
}

func (t Target) equal(o Target) bool {
	return t.Host == o.Host && t.Port == o.Port && t.Priority == o.Priority && t.Weight == o.Weight &&
		slices.Equal(t.Addresses, o.Addresses)
}

// MaxAddresses is the largest number of addresses of an Answer.
const MaxAddresses = 256

// State is the state of a Query.
type State struct {
	Query
	Answer   *Answer // nil: there has been none
	Failures uint64  // attempts without a complete answer
	Error    string  // why the last attempt has failed, in one line; "": it has not
	Since    time.Time
}

// The pause after an attempt is the answer's TTL, or after a failure soonest, but soonest at least and the interval at
// most. It is shortened at random by up to a tenth, so that many names are not asked for at once.
const soonest = 5 * time.Second

// Resolver keeps answers. All its methods may be called by any number of goroutines.
type Resolver struct {
	conf    string // path of resolv.conf
	changed chan struct{}
	wake    chan struct{}
	slots   chan struct{} // a value for each exchange in flight
	ctx     context.Context
	cancel  context.CancelFunc
	asking  sync.WaitGroup

	mu    sync.Mutex // guards names
	names map[Query]*name
}

// name is a Query of a Resolver.
type name struct {
	state    State
	interval time.Duration
	due      time.Time     // of the next attempt
	asking   bool          // an attempt is going on
	tried    chan struct{} // closed after the first attempt
}

// inFlight bounds the exchanges at a time.
const inFlight = 16

// New returns a Resolver without questions.
func New() *Resolver {
	r := &Resolver{conf: "/etc/resolv.conf", changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		slots: make(chan struct{}, inFlight), names: map[Query]*name{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Changed delivers after changes of answers, and when attempts begin to fail, or fail for another reason, or succeed
// again.
func (r *Resolver) Changed() <-chan struct{} { return r.changed }

// Add adds questions, each with the interval of its attempts. The first attempts begin at once.
func (r *Resolver) Add(queries map[Query]time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for q, interval := range queries {
		n := r.names[q]
		if n == nil {
			n = &name{state: State{Query: q}, tried: make(chan struct{}), interval: interval}
			r.names[q] = n
			r.ask(n)
		}
		if latest := time.Now().Add(interval); n.due.After(latest) {
			n.due = latest
		}
		n.interval = interval
	}
	notify(r.wake)
}

// Set is Add, and removes the other questions with their answers.
func (r *Resolver) Set(queries map[Query]time.Duration) {
	r.mu.Lock()
	maps.DeleteFunc(r.names, func(q Query, _ *name) bool {
		_, stays := queries[q]
		return !stays
	})
	r.mu.Unlock()
	r.Add(queries)
}

// Remember gives questions answers of a former process, until they have newer ones. It adds them: Set removes those
// that are not asked any more.
func (r *Resolver) Remember(answers map[Query]*Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for q, a := range answers {
		n := &name{state: State{Query: q, Answer: a}, tried: make(chan struct{}), interval: soonest}
		close(n.tried)
		r.names[q] = n
	}
}

// Await waits until each question has an answer or a failed attempt, or ctx ends.
func (r *Resolver) Await(ctx context.Context) {
	r.mu.Lock()
	var all []chan struct{}
	for _, n := range r.names {
		all = append(all, n.tried)
	}
	r.mu.Unlock()
	for _, tried := range all {
		select {
		case <-tried:
		case <-ctx.Done():
			return
		}
	}
}

// Answers returns the last answers. A question without one is missing.
func (r *Resolver) Answers() map[Query]*Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[Query]*Answer, len(r.names))
	for q, n := range r.names {
		if n.state.Answer != nil {
			all[q] = n.state.Answer
		}
	}
	return all
}

// States returns the states of all questions, by name.
func (r *Resolver) States() []State {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]State, 0, len(r.names))
	for _, n := range r.names {
		all = append(all, n.state)
	}
	slices.SortFunc(all, func(a, b State) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), compareBool(a.SRV, b.SRV), cmp.Compare(a.Family, b.Family),
			a.Server.Compare(b.Server))
	})
	return all
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Run asks until ctx is cancelled. It returns when no attempt is going on any more.
func (r *Resolver) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.Close()
			return nil
		case <-timer.C:
		case <-r.wake:
		}
		timer.Reset(r.askDue())
	}
}

// Close ends all attempts, and returns when none is going on any more.
func (r *Resolver) Close() {
	r.mu.Lock() // no attempt begins behind Wait
	r.cancel()
	r.mu.Unlock()
	r.asking.Wait()
}

// askDue begins the attempts that are due, and returns the time until the next one.
func (r *Resolver) askDue() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, next := time.Now(), time.Hour
	for _, n := range r.names {
		switch wait := n.due.Sub(now); {
		case n.asking:
		case wait <= 0:
			r.ask(n)
		default:
			next = min(next, wait)
		}
	}
	return next
}

// ask begins an attempt. The caller holds mu.
func (r *Resolver) ask(n *name) {
	if n.asking || r.ctx.Err() != nil {
		return
	}
	n.asking = true
	q, former := n.state.Query, n.state.Answer
	r.asking.Go(func() {
		a, ttl, err := r.lookup(q, former)
		if r.ctx.Err() == nil {
			r.take(n, a, ttl, err)
		}
	})
}

// take notes the result of an attempt: an answer, which may be partial, or an error, or both.
func (r *Resolver) take(n *name, a *Answer, ttl time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, st := time.Now(), &n.state
	changed := false
	if a != nil {
		a.Time = now
		changed = st.Answer == nil || st.Answer.Cut != a.Cut ||
			!slices.EqualFunc(st.Answer.Targets, a.Targets, Target.equal)
		st.Answer = a
	}
	text := ""
	if err != nil {
		text = err.Error()
		if st.Failures++; st.Error == "" {
			st.Since = now
		}
		ttl = soonest
	}
	changed = changed || text != st.Error
	st.Error = text
	n.asking = false
	n.due = now.Add(pause(n.interval, ttl))
	select {
	case <-n.tried:
	default:
		close(n.tried)
	}
	if changed && r.names[st.Query] == n {
		notify(r.changed)
	}
	notify(r.wake)
}

// pause returns the time from an attempt to the next one.
func pause(interval, ttl time.Duration) time.Duration {
	d := min(max(ttl, soonest), interval)
	return d - rand.N(d/10+1)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

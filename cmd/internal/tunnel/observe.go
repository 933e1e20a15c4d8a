package tunnel

import (
	"context"
	"errors"
	"sync"
	"time"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/ping"
)

// observed is what is known about a tunnel's peer.
type observed struct {
	path    path   // to it
	packets uint64 // that had come from it at the last look
	at      time.Time
	probe   probe
}

// probe is the state of a tunnel's probe.
type probe struct {
	of             config.Probe
	next           time.Time // when the next one is due
	busy           bool      // one waits for its answer
	sent, answered uint64
	roundTrip      time.Duration // of the last one that was answered
	failures       int           // in a row
	reason         string        // of the last failure
	up             bool          // one was answered, and not fall in a row have failed since
}

const (
	// fall is the number of failures in a row that make a tunnel down.
	fall = 3

	// observeEvery is the period in which counts are looked at, since workers read no clock, and probes are sent.
	observeEvery = time.Second
)

// see reads or changes what is known about t.
func (t *tunnel) see(fn func(o *observed)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn(&t.seen)
}

// into returns the tunnel into which the route to t's peer leads, "" for none.
func (t *tunnel) into() (name string) {
	t.see(func(o *observed) { name = o.path.into })
	return name
}

// observe looks at the counts, and sends probes, until ctx is cancelled.
func (s *Set) observe(ctx context.Context) error {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	var probes sync.WaitGroup
	defer probes.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for _, t := range *s.all.Load() {
			if t.look(time.Now()) {
				probes.Go(func() { s.probe(ctx, t) })
			}
		}
	}
}

// look notes what has come from the peer since the last look, and reports whether a probe is due.
func (t *tunnel) look(now time.Time) (due bool) {
	n, is := inPackets(t), t.setup.Load().cfg.Probe
	t.see(func(o *observed) {
		if n != o.packets {
			o.packets, o.at = n, now
		}
		p := &o.probe
		if p.of != is {
			*p = probe{of: is, busy: p.busy}
		}
		if due = is.Address.IsValid() && !p.busy && !now.Before(p.next); due {
			p.busy, p.next = true, now.Add(is.Interval)
			p.sent++
		}
	})
	return due
}

// probe sends a ping through t, and notes the result.
func (s *Set) probe(ctx context.Context, t *tunnel) {
	of := t.setup.Load().cfg.Probe
	limited, cancel := context.WithTimeout(ctx, of.Interval)
	defer cancel()
	begin := time.Now()
	from := ping.From{Device: t.index}
	if t.setup.Load().cfg.Bridge != "" { // the bridge has the addresses
		from.Device = 0
	}
	err := s.o.Pinger.PingFrom(limited, of.Address, from)
	if ctx.Err() != nil {
		return
	}
	took := time.Since(begin)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("no answer in " + of.Interval.String())
	}
	var was, is bool
	t.see(func(o *observed) {
		was = o.probe.up
		if o.probe.note(of, took, err); o.probe.of == of {
			is = o.probe.up
		}
	})
	switch {
	case is && !was:
		s.o.Log.Info("tunnel up", "tunnel", t.name, "probe", of.Address, "round_trip", took)
	case was && !is:
		s.o.Log.Warn("tunnel down", "tunnel", t.name, "probe", of.Address, "reason", err)
	}
}

// note notes the result of a probe that was sent to of.
func (p *probe) note(of config.Probe, took time.Duration, err error) {
	p.busy = false
	if p.of != of { // a reload has changed it meanwhile
		return
	}
	if err == nil {
		p.answered++
		p.failures, p.reason, p.up, p.roundTrip = 0, "", true, took
		return
	}
	p.failures++
	p.reason = err.Error()
	p.up = p.up && p.failures < fall
}

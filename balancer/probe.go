package balancer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// A probe takes the path of a client's packets, through the tunnel of the realserver that it checks. Its flow is pinned
// in the connection table before its first packet. The flow's Dest is in no service's list. Weights, thresholds and the
// end of a service don't touch that Dest, and its flows count as no service's connections.

// probed is a target of probes. endedAt is when it was removed, zero before.
type probed struct {
	dest    *Dest
	endedAt time.Time
}

// probe sets the targets. Flows that are pinned to a removed target stay pinned to it until they end.
func (b *Balancer) probe(targets []Target) {
	now := time.Now()
	stays := make(map[Target]bool, len(targets))
	for _, t := range targets {
		stays[t.key()] = true
		p := b.probed[t.key()]
		if p == nil {
			p = &probed{dest: b.newDest("")}
			p.dest.counts.SetState(false, false)
			b.probed[t.key()] = p
		}
		p.endedAt = time.Time{}
		if p.dest.Target() == t {
			continue
		}
		next := *p.dest
		next.reachAs(Realserver{Address: t.Address, Config: t.Config})
		p.dest, b.numbers[next.number] = &next, &next
	}
	for key, p := range b.probed {
		if !stays[key] && p.endedAt.IsZero() {
			p.endedAt = now
		}
	}
}

// probes reports whether targets are the targets in force.
func (b *Balancer) probes(targets []Target) bool {
	n := 0
	for _, p := range b.probed {
		if p.endedAt.IsZero() {
			n++
		}
	}
	return n == len(targets) && !slices.ContainsFunc(targets, func(t Target) bool {
		p := b.probed[t.key()]
		return p == nil || !p.endedAt.IsZero() || p.dest.Target() != t
	})
}

// Errors of Pin. It has another for a target without a route.
var (
	ErrPinned  = errors.New("the flow is in use")            // or was a moment ago; try another port
	ErrUnknown = errors.New("the realserver is not checked") // its target is not, or no longer, in Config.Probed
	ErrFull    = errors.New("no room in the connection table for a check: set a larger connections.max")
)

// Pin directs f, a flow of this host's own, to t until Unpin. With over it replaces a connection of the same flow.
func (b *Balancer) Pin(f packet.Flow, t Target, over bool, now conntab.Ticks) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.probed[t.key()]
	if p == nil || !p.endedAt.IsZero() {
		return ErrUnknown
	}
	if !p.dest.Reachable() {
		return fmt.Errorf("no route to realserver %v", t.Address)
	}
	switch b.table.Pin(f, p.dest.number, over, now) {
	case conntab.Hit:
		return ErrPinned
	case conntab.Full:
		return ErrFull
	}
	return nil
}

// Unpin ends the pinned flow f after rest. Until then its last packets may still be on their way.
func (b *Balancer) Unpin(f packet.Flow, now, rest conntab.Ticks) { b.table.Unpin(f, now, rest) }

// Pinned returns the Dest to which f is pinned, nil if f is not pinned or the Dest is unreachable.
func (s *Snapshot) Pinned(f packet.Flow, now conntab.Ticks) *Dest {
	c, known := s.table.Lookup(f, now)
	if !known || c.State != conntab.Pinned {
		return nil
	}
	if d, _ := s.dest(c.Dest); d != nil && d.Reachable() {
		return d
	}
	return nil
}

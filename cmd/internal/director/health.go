package director

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
)

// standing is what the health of its realservers makes of a service.
type standing struct {
	up       bool // its quorum is reached
	weightUp int
	sorry    bool // its sorry server has the connections
	known    bool // the known states of its realservers decide up, or have decided it before
}

// healthy is the known health of all realservers. A weight that an operator has set has no offset.
func (d *director) healthy() map[seat]health.State {
	if d.monitor == nil {
		return nil
	}
	states, set := d.monitor.States(), d.weights()
	all := make(map[seat]health.State, len(states))
	for _, st := range states {
		at := seat{st.Service, st.Realserver}
		if _, fixed := set[at]; fixed {
			st.Offset = 0
		}
		all[at] = st
	}
	return all
}

// maxWeight is the largest weight that a realserver can be configured with.
const maxWeight = 65535

// weighted is a realserver's weight with the offset that its check gives.
func weighted(weight int, st health.State) int {
	return min(max(weight+st.Offset, 0), maxWeight)
}

// judge takes from the service b, made from s, what its checks say is down, and returns what that makes of it; was is
// what it was before, nil for a service that is new.
func judge(b *balancer.Service, s *config.Service, states map[seat]health.State, was *standing) standing {
	var v standing
	fallen := make([]bool, len(s.Realservers))
	least, most := 0, 0 // bounds of the weight that is up, whatever the realservers' unknown states are
	for i := range s.Realservers {
		r := &s.Realservers[i]
		st, checked := states[seat{s.Name, r.Address}]
		weight := weighted(r.Weight, st)
		b.Realservers[i].Weight = weight
		if up := !checked || st.Up; up {
			v.weightUp += weight
		} else {
			fallen[i] = true
		}
		switch known := !checked || st.Known; {
		case !known:
			most += weight
		case !fallen[i]:
			least, most = least+weight, most+weight
		}
	}
	// nothing is known against a new service
	before := was != nil && was.up || was == nil && !slices.Contains(fallen, true)
	quorum := health.Quorum{Weight: s.Quorum, Hysteresis: s.Hysteresis}
	v.up = quorum.Up(before, v.weightUp)
	v.known = was != nil && was.known || quorum.Up(before, least) == quorum.Up(before, most)
	v.sorry = !v.up && s.SorryServer.IsValid()
	for i := range fallen {
		r := &b.Realservers[i]
		switch {
		case v.sorry && r.Address == s.SorryServer: // whatever its own check says
			r.Weight, r.Upper, r.Lower = max(r.Weight, 1), 0, 0
		case !fallen[i] && !v.sorry:
		case s.Realservers[i].DrainOnFailure:
			r.Weight = 0
		default:
			r.Down = true
		}
	}
	return v
}

// betweenChanges is the least time from one new snapshot, for changes of health, to the next: when a thousand
// realservers fail at once, they do so together.
const betweenChanges = 50 * time.Millisecond

// healthChanged puts in force what the monitor has found, logs it and tells about it. What changes meanwhile comes with
// the next call.
func (d *director) healthChanged(changes []health.Change) {
	found := 0
	for _, c := range changes {
		quiet := c.First && !c.Checked // the configuration says so already
		d.realserverChanged(c, !quiet && found < loggedChanges)
		if !quiet {
			found++
		}
	}
	if n := found - loggedChanges; n > 0 {
		d.log.Warn("more realservers up or down, not logged", "changes", n)
	}
	d.mu.Lock()
	if err := d.bal.Apply(d.balanced(d.inForce())); err != nil {
		d.log.Error("the health of the realservers is not taken over", "error", err)
	}
	d.mu.Unlock()
	time.Sleep(betweenChanges)
}

// realserverChanged tells about a realserver, and logs it if it is to. Of checks that can't be made only the log knows:
// nothing has changed.
func (d *director) realserverChanged(c health.Change, logged bool) {
	switch {
	case !logged:
	case c.Weighed:
		d.log.Info("realserver weight", "service", c.Service, "realserver", c.Realserver, "offset", c.Offset, "check",
			c.Reason)
	case c.Inconclusive:
		d.log.Error("a realserver is not checked any more, and stays "+upDown(c.Up), "service", c.Service, "realserver",
			c.Realserver, "check", c.Reason)
	case c.Up:
		d.log.Info("realserver up", "service", c.Service, "realserver", c.Realserver, "check", c.Reason)
	default:
		d.log.Warn("realserver down", "service", c.Service, "realserver", c.Realserver, "check", c.Reason)
	}
	if c.Inconclusive || c.Weighed {
		return
	}
	old := upDown(!c.Up)
	if c.First {
		old = unknown
	}
	d.tell(notify.Event{Time: c.Time, Kind: "realserver", Service: c.Service, Realserver: c.Realserver.String(),
		Old: old, New: upDown(c.Up), Reason: c.Reason})
}

// unknown is the old state in the first event of a service or realserver.
const unknown = "unknown"

// serviceChanged logs and notifies a change of a service's state; was is nil for a service that is new.
func (d *director) serviceChanged(s *config.Service, was *standing, is standing) {
	reason := fmt.Sprintf("weight %d is up, quorum %d", is.weightUp, s.Quorum)
	if is.sorry {
		reason += fmt.Sprintf("; clients go to the sorry server %v", s.SorryServer)
	}
	old, changed := is.changed(was)
	switch {
	case !changed:
		if was == nil && !is.up {
			d.log.Info("service has no quorum yet", "service", s.Name, "reason", reason)
		}
		return
	case old == unknown && is.up && !watched(s): // the configuration says so already
	case is.up:
		d.log.Info("service up", "service", s.Name, "reason", reason)
	default:
		d.log.Warn("service down", "service", s.Name, "reason", reason)
	}
	d.tell(notify.Event{Time: time.Now(), Kind: "service", Service: s.Name, Old: old, New: upDown(is.up),
		Reason: reason})
}

// changed reports whether the known state of a service differs from its known state before, and returns the latter.
// was is the standing before, nil for a service that is new.
func (is standing) changed(was *standing) (old string, changed bool) {
	old = unknown
	if was != nil && was.known {
		old = upDown(was.up)
	}
	return old, is.known && old != upDown(is.up)
}

// watched reports whether the state of s depends on more than its configuration: a realserver is checked, or there is
// a sorry server.
func watched(s *config.Service) bool {
	return s.SorryServer.IsValid() || slices.ContainsFunc(s.Realservers,
		func(r config.RealserverRef) bool { return r.Check != nil })
}

// tell tells the outside about an event.
func (d *director) tell(e notify.Event) {
	if d.notifier != nil {
		d.notifier.Send(e)
	}
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// healthStatus fills in what the checks of a service have come to. s is the service as it is in force, b as the
// balancer has it: who is down there is told to be down, and not who will be in a moment. d.mu is held.
func (d *director) healthStatus(svc *control.Service, s *config.Service, b *balancer.ServiceStatus,
	states map[seat]health.State, now time.Time) {
	v := d.standings[s.Name]
	svc.Health, svc.Quorum, svc.WeightUp, svc.Sorry = upDown(v.up), s.Quorum, v.weightUp, v.sorry
	configured := make(map[netip.Addr]*config.RealserverRef, len(s.Realservers))
	for i := range s.Realservers {
		configured[s.Realservers[i].Address] = &s.Realservers[i]
	}
	for i := range svc.Realservers {
		r, a := &svc.Realservers[i], b.Realservers[i].Address
		r.Health = "unchecked"
		c := configured[a]
		if c == nil {
			continue // the sorry server
		}
		st := states[seat{s.Name, a}]
		if r.Weight = weighted(c.Weight, st); r.Weight != c.Weight { // the balancer's weight is 0 after a failure
			r.Configured = &c.Weight
		}
		if c.Check == nil {
			continue
		}
		r.Health = upDown(!d.fallen[seat{s.Name, a}])
		r.Check = &control.Check{Type: c.Check.Type, Via: via(c.Check), Reason: cmp.Or(st.Reason, "not checked yet"),
			Streak: st.Streak, Duration: st.Duration.Seconds(), Since: since(st.Since, now), Last: since(st.Last, now)}
	}
}

// since is the seconds from t on, 0 for the zero Time.
func since(t, now time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return now.Sub(t).Seconds()
}

func via(c *config.Check) string {
	if c.Direct {
		return "direct"
	}
	return "tunnel"
}

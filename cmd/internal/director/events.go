package director

import (
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/words"
)

// report logs and notifies the events between the state was, which is nil at the start, and the present one: the health
// changes that were not in force before, and the events of the plan.
func (c *controller) report(was *state, events []plan.Event) {
	logged := 0
	for _, change := range c.unreported {
		expected := change.First && !change.Checked // the state follows from the configuration
		c.reportRealserver(change, !expected && logged < reload.LoggedChanges)
		if !expected {
			logged++
		}
	}
	if n := logged - reload.LoggedChanges; n > 0 {
		c.log.Warn("more realservers up or down, not logged", "changes", n)
	}
	c.unreported = nil
	for _, e := range events {
		c.reportService(e)
	}
	c.reportUnreachable(was)
	c.reportFaults(was)
}

// reportRealserver notifies a change of a realserver, and logs it if logged is set. Changes of offsets, and checks that
// are inconclusive, are logged only: the realserver's state is the same.
func (c *controller) reportRealserver(change health.Change, logged bool) {
	args := []any{"service", change.Service, "realserver", words.Realserver(change.Realserver), "check", change.Reason}
	switch {
	case !logged:
	case change.Weighed:
		c.log.Info("realserver weight", slices.Insert(args, 4, any("offset"), any(change.Offset))...)
	case change.Inconclusive:
		c.log.Error("a realserver is not checked any more, and stays "+plan.UpDown(change.Up), args...)
	case change.Up:
		c.log.Info("realserver up", args...)
	default:
		c.log.Warn("realserver down", args...)
	}
	if change.Inconclusive || change.Weighed {
		return
	}
	old := plan.UpDown(!change.Up)
	if change.First {
		old = plan.Unknown
	}
	c.notify(notify.Event{Time: change.Time, Kind: notify.KindRealserver, Service: change.Service,
		Realserver: words.Realserver(change.Realserver), Old: old, New: plan.UpDown(change.Up), Reason: change.Reason})
}

// reportService logs and notifies an event of a service.
func (c *controller) reportService(e plan.Event) {
	args := []any{"service", e.Service, "reason", e.Reason}
	switch {
	case e.New == plan.Unknown:
		c.log.Info("service has no quorum yet", args...)
		return // the checks have no results yet
	case e.Expected:
	case e.New == plan.Up:
		c.log.Info("service up", args...)
	default:
		c.log.Warn("service down", args...)
	}
	c.notify(notify.Event{Time: time.Now(), Kind: notify.KindService, Service: e.Service, Old: e.Old, New: e.New,
		Reason: e.Reason})
}

// reportUnreachable logs the realservers without a route, if they differ from those in the state was.
func (c *controller) reportUnreachable(was *state) {
	var before []netip.Addr
	if was != nil {
		before = was.Unreachable
	}
	switch is := c.state().Unreachable; {
	case slices.Equal(is, before):
	case len(is) == 0:
		c.log.Info("there is a route to every realserver again")
	default:
		c.log.Warn("no route to realservers: their packets are dropped until there is one", "count", len(is),
			"realservers", names(is[:min(len(is), 10)]))
	}
}

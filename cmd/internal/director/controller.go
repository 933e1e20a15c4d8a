package director

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/balancer/resolve"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/reload"
	"vstun/routing"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// controller owns the director's state. One goroutine, run, changes an input, plans, applies the plan, and then reports
// what has happened:
//
//	reload, names, weights, health, paths, neighbours, devices → plan.Inputs → plan.Plan → apply → state, events
//
// Everything else reads the state, which is replaced in one step.
type controller struct {
	log     *slog.Logger
	plane   *dataPlane
	checks  *checks
	network network
	lan     *lan
	roles   *roles
	tables  *tables // for agents
	ask     questions
	// announcers announce what is in force.
	announcers []announcer
	// neighbours are kept resolved for VS/DR.
	neighbours neighbours
	names      *resolve.Resolver            // keeps the answers for names
	notify     func(events ...notify.Event) // notifies
	note       func(in *plan.Inputs)        // of inputs in force, for the next process
	look       func(devices []query.Device) // at the present devices
	handed     bool                         // the devices, with the routes by them, are a predecessor's

	requests chan func()   // that run calls, one after the other
	ended    chan struct{} // closed when run has ended
	current  atomic.Pointer[state]

	// The following belong to run, and to start before it.
	unreported []health.Change        // that are not in force yet
	failures   map[string]string      // the last error by activity, see logFailure
	places     map[netip.Addr]place   // of realservers of VS/DR
	failing    map[resolve.Query]bool // names that cannot be resolved
	cut        map[resolve.Query]bool // names with too many addresses
	// namesRefused is set while the newest answers could not be applied.
	namesRefused bool
	incomplete   bool             // the peers' connections are not here yet
	takeover     <-chan time.Time // the end of takingOver; nil: this director has got no role just now
}

// network is the part of a routing.Manager that the controller needs.
type network interface {
	Set(s routing.State) error
	Changed() <-chan struct{}
	Leads(dst netip.Prefix) bool
}

// state is the configuration, plan and snapshot in force. It is immutable, except for the counters of its snapshot.
type state struct {
	inputs plan.Inputs
	plan.Desired
	snapshot *balancer.Snapshot
	grace    grace // over: no worker decides by a former snapshot
}

// newController returns a controller without a state. The caller calls start, and then run.
func newController(log *slog.Logger, plane *dataPlane, checks *checks, network network, neighbours neighbours,
	lan *lan) *controller {
	return &controller{log: log, plane: plane, checks: checks, network: network, neighbours: neighbours, lan: lan,
		roles: &roles{}, tables: &tables{}, announcers: []announcer{lan}, ask: newQuestions(plane, lan),
		notify: func(...notify.Event) {}, note: func(*plan.Inputs) {}, look: func([]query.Device) {},
		requests: make(chan func()), ended: make(chan struct{}), failures: map[string]string{}, names: resolve.New()}
}

// start puts the first configuration in force. former are inputs of a former process: the weights that operators have
// set, and what its connections may need, that the configuration does not have. The next trim removes the rest.
func (c *controller) start(cfg *config.Director, former plan.Inputs) error {
	c.names.Remember(former.Answers)
	c.awaitNames(cfg)
	former.Answers = c.names.Answers()
	c.listDevices(&former)
	in := former.Reconfigured(cfg)
	c.incomplete, in.Held = cfg.Sync.On, cfg.Sync.On
	in.Rules = c.ask.rules()
	c.resolvePaths(&in)
	if cfg.TAP { // its workers do not read the answers yet
		c.resolveNeighbours(&in)
	} else {
		c.awaitNeighbours(&in, c.firstWait())
	}
	in.ReplyLinks = c.ask.replyLinks(in)
	if err := c.lan.check(in, c.announced(in, former.RetiredVIPs)); err != nil {
		return err
	}
	err := c.converge(in)
	if err != nil && len(in.RetiredVIPs)+len(in.RetiredNAT) > 0 {
		c.logFailure(slog.LevelError, "cannot keep what connections of a former process need", err)
		in.RetiredVIPs, in.RetiredNAT = nil, nil
		err = c.converge(in)
	}
	if err != nil {
		return err
	}
	c.askNames()
	c.logNames()
	c.logAnswers(nil)
	return nil
}

// announced returns the part of in's announcements that a predecessor has made whose devices were adopted: former VIPs,
// and those whose routes were adopted. The question whether another host has them would take a third of a second, in
// which their packets wait.
func (c *controller) announced(in plan.Inputs, former []netip.Addr) []neigh.Device {
	if !c.handed {
		return nil
	}
	all := plan.Announce(in)
	for i := range all {
		all[i].Addrs = slices.DeleteFunc(slices.Clone(all[i].Addrs), func(a netip.Addr) bool {
			return !slices.Contains(former, a) && !c.network.Leads(netip.PrefixFrom(a, a.BitLen()))
		})
	}
	return all
}

// state returns the state in force, nil before start.
func (c *controller) state() *state { return c.current.Load() }

// betweenChanges is the least time from one snapshot for changes of health to the next, and likewise for changes of
// neighbours: when a thousand realservers fail at once, one snapshot takes them all out.
const betweenChanges = 50 * time.Millisecond

// pathsEvery is the period of refreshes of the paths to the realservers, and the longest pause after a refresh. A
// packet too big for its path causes a further refresh, and a change of routes while a realserver is unreachable or
// there is VS/NAT, whose rules name devices. The pause after a refresh is pathsShare times its duration, but
// pathsAtOnce at least.
const (
	pathsEvery  = 10 * time.Second
	pathsAtOnce = 100 * time.Millisecond
	pathsShare  = 10
)

// devicesAtOnce is the least pause after a look at the host's devices. A look that takes long, among many devices, is
// followed by a pause like that of the paths.
const devicesAtOnce = 20 * time.Millisecond

// run works until ctx is cancelled.
func (c *controller) run(ctx context.Context) error {
	defer close(c.ended)
	ticker := time.NewTicker(pathsEvery)
	defer ticker.Stop()
	var pathsPause, devicesPause, neighboursPause, namesPause <-chan time.Time // nil: there is none
	for {
		due, tooBig, changed := ticker.C, c.plane.shared.TooBig, c.network.Changed()
		if pathsPause != nil {
			due, tooBig, changed = nil, nil, nil
		}
		devices := c.lan.changed()
		if devicesPause != nil {
			devices = nil
		}
		neighbours := c.neighbours.Changed()
		if neighboursPause != nil {
			neighbours = nil
		}
		names := c.names.Changed()
		if namesPause != nil {
			names = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-names:
			namesPause = c.followNames()
		case <-namesPause:
			namesPause = nil
		case fn := <-c.requests:
			fn()
		case <-due:
			pathsPause = c.refresh()
		case <-tooBig:
			pathsPause = c.refresh()
		case <-changed:
			if len(c.state().Unreachable) > 0 || len(c.places) > 0 || c.state().inputs.Translates() {
				pathsPause = c.refresh()
			}
		case <-neighbours:
			neighboursPause = c.takeNeighbours()
		case <-neighboursPause:
			neighboursPause = nil
		case <-pathsPause:
			pathsPause = nil
		case <-devices:
			devicesPause = c.followDevices()
		case <-devicesPause:
			devicesPause = nil
		case <-c.roles.changed():
			c.followRoles()
		case <-c.takeover:
			c.takeover = nil
			c.answerUnknown()
		case <-c.roles.gatewayChanged():
			c.roles.follow(c.state())
		}
	}
}

// do passes fn to run, and returns when fn has returned. If run has ended, it does not call fn and returns
// reload.ErrEnding.
func (c *controller) do(fn func()) error {
	done := make(chan struct{})
	select {
	case c.requests <- func() { defer close(done); fn() }:
		<-done
		return nil
	case <-c.ended:
		return reload.ErrEnding
	}
}

// healthChanged puts the monitor's findings in force through run, and returns after a pause. Meanwhile the monitor
// collects further changes: no change waits in a list while a later state of its realserver is in force.
func (c *controller) healthChanged(list []health.Change) {
	if c.do(func() { c.takeHealth(list) }) != nil {
		return
	}
	select {
	case <-time.After(betweenChanges):
	case <-c.ended:
	}
}

// takeHealth puts the health of the realservers in force.
func (c *controller) takeHealth(changes []health.Change) {
	c.unreported = append(c.unreported, changes...)
	c.logFailure(slog.LevelError, "cannot apply the health of realservers", c.follow(c.state().inputs))
}

// peersComplete notes that the connections of other directors are here, or that some are missing.
func (c *controller) peersComplete(complete bool) {
	_ = c.do(func() {
		c.incomplete = !complete
		c.answerUnknown()
	})
}

// answerUnknown lets packets of unknown connections be answered, unless their connections may still come.
func (c *controller) answerUnknown() {
	if in := c.state().inputs; in.Syncing != (c.incomplete || c.takeover != nil) {
		c.logFailure(slog.LevelError, "cannot change the answer to packets of unknown connections", c.converge(in))
	}
}

// change changes inputs that only the announcement depends on, and puts them in force.
func (c *controller) change(fn func(in *plan.Inputs)) (err error) {
	ending := c.do(func() {
		was := c.state()
		in := was.inputs
		fn(&in)
		if err = c.follow(in); c.state() != was { // in force, if without addresses of VRRP
			c.logFailure(slog.LevelError, "cannot apply a change of the announcement", err)
			err = nil
		}
	})
	return errors.Join(ending, err)
}

// configure puts cfg in force, and returns the states before and after. On an error nothing has changed.
func (c *controller) configure(cfg *config.Director) (was, is *state, err error) {
	c.awaitNames(cfg)
	ending := c.do(func() {
		defer c.askNames()
		was = c.state()
		in := was.inputs
		in.Answers = c.names.Answers()
		in = in.Reconfigured(cfg)
		in.Rules = c.ask.rules()
		c.resolvePaths(&in)
		c.awaitNeighbours(&in, firstAnswer)
		c.listDevices(&in)
		if err = c.converge(in); err != nil {
			c.restoreNeighbours()
			return
		}
		is = c.state()
		c.trim()
	})
	return was, is, errors.Join(ending, err)
}

// refresh puts the kernel's present knowledge of the paths in force, and trims the machine. The channel pause delivers
// when the next refresh may begin. Anyone can forge the ICMP errors that cause a refresh. With thousands of realservers
// they would keep a CPU busy without the pause.
func (c *controller) refresh() (pause <-chan time.Time) {
	begin := time.Now()
	if c.namesRefused {
		c.followNames()
	}
	in := c.state().inputs
	c.resolvePaths(&in)
	c.resolveNeighbours(&in)
	c.logFailure(slog.LevelError, "cannot apply new paths to realservers", c.follow(in))
	c.trim()
	return time.After(pathsPause(time.Since(begin)))
}

// pathsPause returns the pause after a refresh of the duration took.
func pathsPause(took time.Duration) time.Duration {
	return min(max(pathsAtOnce, pathsShare*took), pathsEvery)
}

// converge makes the plan for in, puts the plan in force and reports the events. On an error nothing has changed.
func (c *controller) converge(in plan.Inputs) (err error) {
	c.takeRoles(&in) // one that could not be put in force is tried again
	was := c.state()
	reconfigured := was == nil || was.inputs.Config != in.Config
	var before map[string]plan.ServiceState
	var subjects []health.Subject
	if was != nil {
		before = was.Services
	}
	if reconfigured {
		subjects = plan.Subjects(in.Config, c.path)
		if in.Health, err = c.checks.monitor.Preview(subjects); err != nil {
			return err
		}
	} else {
		in.Health = c.checks.monitor.States()
	}
	desired, events := plan.Plan(in, before)
	moves := was == nil || !in.SameMachine(&was.inputs)
	if moves && in.Translates() { // the rules come before the snapshot
		c.plane.shared.ExpectOthers(true)
	}
	if err := c.apply(was, &desired, moves, in.Paths.SealedMTU); err != nil {
		c.plane.shared.ExpectOthers(was != nil && was.inputs.Translates())
		return err
	}
	if moves {
		c.plane.shared.ExpectOthers(in.Translates())
	}
	if reconfigured { // removed checks end before the state loses their paths
		_ = c.checks.monitor.Set(subjects) // Preview has accepted them
	}
	c.current.Store(&state{inputs: in, Desired: desired, snapshot: c.plane.balancer.Snapshot(),
		grace: newGrace(c.plane.loops())})
	c.report(was, events) // before roles that follow from them
	for _, a := range c.announcers {
		c.logFailure(slog.LevelError, "cannot announce VIPs by "+a.name(), a.announce(was, c.state()))
	}
	c.note(&c.state().inputs)
	c.plane.fast.follow(c.state())
	c.tables.follow(c.state())
	if reconfigured { // the balancer and the state have the paths of new checks now
		c.checks.monitor.Begin()
	}
	return nil
}

// apply puts desired in force in place of was, which is nil at the start. With moves the machine changes, too. mtu is
// plan.Paths.SealedMTU. It is the only place that does so. Routes of new VIPs come first, since they can fail; routes
// of retired VIPs go before the balancer forgets the VIPs. The announcement of VIPs follows. On an error nothing has
// changed.
func (c *controller) apply(was *state, desired *plan.Desired, moves bool, mtu func(netip.Addr) int) error {
	err := c.setAnnouncers(desired)
	if err == nil && moves {
		err = c.network.Set(desired.Machine)
	}
	if err == nil {
		err = c.plane.sealed.set(&desired.Config.WireGuard, mtu)
	}
	if err == nil {
		err = c.plane.balancer.Apply(desired.Balancer)
	}
	if err != nil && was != nil {
		err = errors.Join(err, c.setAnnouncers(&was.Desired))
		if moves {
			err = errors.Join(err, c.network.Set(was.Machine))
		}
	}
	if err != nil {
		return err
	}
	if len(desired.Reroute) > 0 {
		c.plane.balancer.Reroute(desired.Reroute)
	}
	return nil
}

// setAnnouncers puts the part of d in force that an announcer can refuse.
func (c *controller) setAnnouncers(d *plan.Desired) error {
	for _, a := range c.announcers {
		if err := a.set(d); err != nil {
			return err
		}
	}
	return nil
}

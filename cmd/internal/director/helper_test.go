package director

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/forward"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/reload"
	"vstun/routing"
	"vstun/routing/neigh"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// fakeNetwork is a routing.Manager that only remembers.
type fakeNetwork struct {
	mu   sync.Mutex
	sets []routing.State
	set  func(s routing.State) error // nil: it succeeds

	changed chan struct{}
	adopted netip.Prefix // whose route a predecessor has made
}

func (n *fakeNetwork) Leads(dst netip.Prefix) bool { return n.adopted == dst }

func (n *fakeNetwork) Changed() <-chan struct{} { return n.changed }

func (n *fakeNetwork) Set(s routing.State) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sets = append(n.sets, s)
	if n.set == nil {
		return nil
	}
	return n.set(s)
}

// answerBy makes fn answer from now on, also while the controller runs.
func (n *fakeNetwork) answerBy(fn func(routing.State) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set = fn
}

// last returns the state that was set last, and the number of states.
func (n *fakeNetwork) last() (s routing.State, sets int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sets[len(n.sets)-1], len(n.sets)
}

// fakeNeighbours is a neigh.Watcher without a kernel: the states of neighbours are those of a test.
type fakeNeighbours struct {
	mu      sync.Mutex
	states  map[neigh.Neighbour]neigh.State
	asked   []neigh.Neighbour
	changed chan struct{}
}

func (n *fakeNeighbours) Set(all []neigh.Neighbour) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = all
	return nil
}

func (n *fakeNeighbours) States() map[neigh.Neighbour]neigh.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.states)
}

func (n *fakeNeighbours) Changed() <-chan struct{} { return n.changed }

// is makes the state of the neighbour a on device 7.
func (n *fakeNeighbours) is(a netip.Addr, st neigh.State) {
	n.mu.Lock()
	n.states[neigh.Neighbour{Device: 7, Address: a}] = st
	n.mu.Unlock()
	n.changed <- struct{}{}
}

// events collects events.
type events struct {
	mu  sync.Mutex
	all []notify.Event
}

func (e *events) tell(list ...notify.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, list...)
}

// take returns the events since the last call, as "web 10.0.11.1 up down".
func (e *events) take() (lines []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		name := event.Service
		if event.Realserver != "" {
			name += " " + event.Realserver
		}
		lines = append(lines, name+" "+event.Old+" "+event.New)
	}
	e.all = nil
	return lines
}

// operated is a director in a made-up network: a controller with a balancer and checks, without devices and workers.
type operated struct {
	*director
	network    *fakeNetwork
	neighbours *fakeNeighbours
	told       *events
	former     plan.Inputs // of a former process
	end        func()      // ends what runs
}

// operate runs a director with cfg until the test ends. Before it starts, prepare may change it.
func operate(t *testing.T, cfg *config.Director, prepare func(o *operated)) *operated {
	t.Helper()
	o := &operated{network: &fakeNetwork{}, neighbours: &fakeNeighbours{states: map[neigh.Neighbour]neigh.State{},
		changed: make(chan struct{}, 1)}, told: &events{}, director: &director{
		log: slog.New(slog.DiscardHandler), http: metrics.NewServer(),
		plane: dataPlane{start: time.Now(), shared: forward.NewShared(),
			table: conntab.New(conntab.Config{Max: 1024})}}}
	o.plane.balancer = balancer.New(o.plane.table, 1)
	o.controller = newController(o.log, &o.plane, &o.checks, o.network, o.neighbours, &o.lan)
	o.controller.notify = o.told.tell
	o.controller.ask = questions{
		paths: func(to []netip.Addr) (map[netip.Addr]query.Path, error) {
			all := map[netip.Addr]query.Path{}
			for _, a := range to {
				all[a] = query.Path{Link: "eth0", MTU: 1500}
			}
			return all, nil
		},
		local:    func(netip.Addr) (string, bool, error) { return "eth0", true, nil },
		hasRules: func(bool) bool { return true },
		usedVIPs: o.plane.usedVIPs,
		devices: func() ([]query.Device, error) {
			return []query.Device{{Name: "eth0", Index: 7, MAC: [6]byte{2, 7}}}, nil
		},
		usedNAT: o.plane.usedNAT,
		retired: o.plane.retired,
	}
	o.checks.monitor = health.New(o.controller.healthChanged)
	o.checks.notifier = notify.New(func(error) {})
	if prepare != nil {
		prepare(o)
	}
	o.reloader = reload.New("director", o.file, o.plane.start, o.log)
	if err := o.controller.start(cfg, o.former); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = o.controller.run(ctx) })     // it returns nil
	all.Go(func() { _ = o.checks.monitor.Run(ctx) }) // and so does this
	o.end = func() {
		cancel()
		all.Wait()
	}
	t.Cleanup(o.end)
	return o
}

// awaitFirstStates returns when the first states of a director with running have been notified: those of services come
// after those of realservers.
func (o *operated) awaitFirstStates(t *testing.T) {
	t.Helper()
	var told []string
	testkit.Eventually(t, "the first states", func() bool {
		told = append(told, o.told.take()...)
		return slices.Contains(told, "web 10.0.11.2 unknown up") && slices.Contains(told, "dns up down")
	})
}

// withChecks gives the realservers of a service a check that never runs again after its first time.
func withChecks(s *config.Service, c config.Check) {
	c.Interval, c.Timeout, c.Rise, c.Fall = time.Hour, time.Minute, 1, 1
	s.Check = &c
	for i := range s.Realservers {
		s.Realservers[i].Check = s.Check
	}
}

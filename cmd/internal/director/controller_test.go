package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/reload"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/routing"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

var (
	vip1, vip2   = netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("198.51.100.81")
	first        = netip.MustParseAddr("10.0.11.1")
	errRefused   = errors.New("refused")
	firstRefused = health.Change{Service: "web", Realserver: netip.AddrPortFrom(first, 0), Checked: true, Reason: "no"}
)

// TestRefusedConfiguration: a configuration that the balancer or the network refuses changes nothing and causes no
// notification.
func TestRefusedConfiguration(t *testing.T) {
	for name, refuse := range map[string]func(o *operated, cfg *config.Director){
		"balancer": func(_ *operated, cfg *config.Director) { cfg.Services[0].Scheduler = "none" },
		"network": func(o *operated, _ *config.Director) {
			o.network.answerBy(func(s routing.State) error {
				if hasRoute(s, vip2) {
					return errRefused
				}
				return nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := operate(t, running(), nil)
			o.mustSet(t, "service=web&realserver=10.0.11.1&weight=7")
			o.awaitFirstStates(t)
			before, machine := o.controller.state(), o.controller.state().Machine
			next := running()
			next.Services = next.Services[:1]
			next.Services[0].VIPs = []netip.Addr{vip2}
			next.Services[0].Realservers[0].Weight = 0
			next.Services[0].Quorum = 3
			refuse(o, next)
			if _, _, err := o.controller.configure(next); err == nil {
				t.Fatal("no error")
			}
			if is := o.controller.state(); is.Config != before.Config || is.snapshot != before.snapshot ||
				is.snapshot != o.plane.balancer.Snapshot() {
				t.Errorf("the state is another one: %+v", is)
			}
			if set, _ := o.network.last(); !equalStates(set, machine) {
				t.Errorf("the network is %+v, want %+v", set, machine)
			}
			if states := o.checks.monitor.States(); len(states) != 2 || !states[0].Known {
				t.Errorf("the health is %+v", states)
			}
			if got := o.told.take(); got != nil {
				t.Errorf("it tells %q", got)
			}
			if got := o.weightsOf("web"); !slices.Equal(got, []int{7, 1}) {
				t.Errorf("weights %v", got)
			}
		})
	}
}

func hasRoute(s routing.State, a netip.Addr) bool {
	return slices.ContainsFunc(s.Routes, func(r routing.Route) bool { return r.Dst.Addr() == a })
}

func equalStates(a, b routing.State) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// TestEventsNameRealservers: a realserver's name is its address, and its own port, where it has one.
func TestEventsNameRealservers(t *testing.T) {
	for id, want := range map[string]string{"10.0.11.1:0": "10.0.11.1", "10.0.11.1:8080": "10.0.11.1:8080",
		"[2001:db8::1]:0": "2001:db8::1", "[2001:db8::1]:8080": "[2001:db8::1]:8080"} {
		var told []notify.Event
		c := &controller{log: slog.New(slog.DiscardHandler),
			notify: func(events ...notify.Event) { told = append(told, events...) }}
		c.reportRealserver(health.Change{Service: "web", Realserver: netip.MustParseAddrPort(id), Checked: true}, true)
		if len(told) != 1 || told[0].Realserver != want || told[0].New != "down" {
			t.Errorf("%s: %+v, want one of %s", id, told, want)
		}
	}
}

// TestEventsAfterApply: events are notified once the balancer has accepted their change, and not before. Events of a
// refused change are notified with the next accepted one.
func TestEventsAfterApply(t *testing.T) {
	cfg := running()
	cfg.Services = cfg.Services[:1]
	withChecks(
		&cfg.Services[0],
		config.Check{Type: "exec", Direct: true, Command: []string{"/bin/sleep", "30"}, Up: true},
	)
	var inForce []string // at each event
	o := operate(t, cfg, func(o *operated) {
		o.controller.notify = func(list ...notify.Event) {
			for range list {
				inForce = append(inForce, fmt.Sprint(o.weightsOf("web")))
			}
			o.told.tell(list...)
		}
	})
	if got := o.told.take(); got != nil {
		t.Errorf("it tells %q before the first check", got)
	}
	health := func(up bool) (changes []health.Change) {
		change := firstRefused
		change.Up = up
		return append(changes, change)
	}
	cut := func(scheduler string) {
		if err := o.controller.do(func() { cfg.Services[0].Scheduler = scheduler }); err != nil {
			t.Fatal(err)
		}
	}
	scheduler := cfg.Services[0].Scheduler
	cut("none")
	o.controller.healthChanged(health(false))
	o.controller.healthChanged(health(true))
	if err := o.controller.do(func() {}); err != nil {
		t.Fatal(err)
	}
	if got := o.told.take(); got != nil {
		t.Errorf("it tells %q of what the balancer has refused", got)
	}
	cut(scheduler)
	o.mustSet(t, "service=web&realserver=10.0.11.1&weight=7")
	if got, want := o.told.take(), []string{"web 10.0.11.1 up down", "web 10.0.11.1 down up"}; !slices.Equal(
		got,
		want,
	) {
		t.Errorf("it tells %q, want %q", got, want)
	}
	if err := o.controller.do(func() {
		if last := inForce[len(inForce)-1]; last != "[7 1]" {
			t.Errorf("at the event the weights are %s", last)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// TestStatusIsInForce: a realserver whose checks have failed is up in status for as long as it gets connections.
func TestStatusIsInForce(t *testing.T) {
	cfg := running()
	withChecks(&cfg.Services[0], config.Check{Type: "exec", Direct: true, Command: []string{"/bin/false"}, Up: true})
	cfg.Services[0].Realservers[1].Check = nil
	release, held := make(chan struct{}), make(chan struct{})
	o := operate(t, cfg, nil)
	go func() { _ = o.controller.do(func() { close(held); <-release }) }()
	<-held
	testkit.Eventually(t, "the check fails", func() bool { return !o.checks.monitor.States()[0].Up })
	is := func() string {
		r := o.servicesStatus(time.Now())[0].Realservers[0]
		if r.Check.Reason != "exit status 1" {
			t.Errorf("status has %+v, %+v", r, r.Check)
		}
		return fmt.Sprint(r.Health, " ", r.Effective)
	}
	if got := is(); got != "up 1" {
		t.Errorf("status has %s, want up 1", got)
	}
	close(release)
	testkit.Eventually(t, "the realserver is down", func() bool { return is() == "down 0" })
}

// TestSlowKernel: requests that only read are answered while the kernel's answer, or the walk over the connection
// table, takes long.
func TestSlowKernel(t *testing.T) {
	for _, what := range []string{"paths", "table", "network"} {
		t.Run(what, func(t *testing.T) {
			asked, release, slow := make(chan struct{}), make(chan struct{}), false // slow belongs to the controller
			wait := func() {
				if slow {
					slow = false
					close(asked)
					<-release
				}
			}
			o := operate(t, running(), func(o *operated) {
				switch ask := &o.controller.ask; what {
				case "paths":
					paths := ask.paths
					ask.paths = func(to []netip.Addr) (map[netip.Addr]query.Path, error) { wait(); return paths(to) }
				case "table":
					used := ask.usedVIPs
					ask.usedVIPs = func() map[netip.Addr]bool { wait(); return used() }
				case "network":
					o.network.answerBy(func(routing.State) error { wait(); return nil })
				}
			})
			next := running()
			next.Services[0].VIPs, next.Services[1].VIPs = []netip.Addr{vip2}, []netip.Addr{vip2}
			configured := make(chan error)
			if err := o.controller.do(func() { slow = true }); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _, err := o.controller.configure(next)
				configured <- err
			}()
			<-asked
			query := url.Values{"realserver": {"10.0.11.1"}, "service": {"web"}}
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				if list := o.servicesStatus(time.Now()); len(list) != 2 {
					t.Errorf("status has %+v", list)
				}
				if _, err := o.usage(query); err != nil {
					t.Error(err)
				}
				if err := o.checkNames(&api.Filter{Service: "web"}); err != nil {
					t.Error(err)
				}
				o.sourceTo(first)
			}()
			select {
			case <-answered:
			case <-time.After(10 * time.Second):
				t.Error("no answer while the controller waits")
			}
			close(release)
			if err := <-configured; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRetiredVIP: the route of a retired VIP stays as long as the VIP has connections, and the balancer knows the VIP
// as long as the route is there.
func TestRetiredVIP(t *testing.T) {
	used := map[netip.Addr]bool{vip1: true} // belongs to the controller
	o := operate(t, running(), func(o *operated) {
		o.controller.ask.usedVIPs = func() map[netip.Addr]bool { return used }
	})
	next := running()
	for i := range next.Services {
		next.Services[i].VIPs = []netip.Addr{vip2}
	}
	var routesAtApply []bool
	o.network.answerBy(func(s routing.State) error {
		routesAtApply = append(routesAtApply, o.plane.balancer.Snapshot().WasVIP(vip1) || hasRoute(s, vip1))
		return nil
	})
	if _, _, err := o.controller.configure(next); err != nil {
		t.Fatal(err)
	}
	if s, _ := o.network.last(); !hasRoute(s, vip1) || !hasRoute(s, vip2) {
		t.Errorf("routes %+v", s.Routes)
	}
	if !o.plane.balancer.Snapshot().WasVIP(vip1) {
		t.Error("the balancer does not know the VIP")
	}
	_, sets := o.network.last()
	refresh := func() { _ = o.controller.do(func() { o.controller.refresh() }) }
	if refresh(); len(o.controller.state().inputs.RetiredVIPs) != 1 {
		t.Error("it is gone while it has connections")
	}
	if _, n := o.network.last(); n != sets {
		t.Error("a refresh without a change sets the network")
	}
	_ = o.controller.do(func() { used = nil })
	refresh()
	if s, _ := o.network.last(); hasRoute(s, vip1) || len(o.controller.state().inputs.RetiredVIPs) != 0 ||
		o.plane.balancer.Snapshot().WasVIP(vip1) {
		t.Errorf("it stays: routes %+v", s.Routes)
	}
	for i, known := range routesAtApply {
		if !known {
			t.Errorf("set %d: a route without a VIP", i)
		}
	}
}

// masked is running, with VS/NAT for the service web on this port.
func masked(port uint16) *config.Director {
	cfg := running()
	web := &cfg.Services[0]
	web.Ports = []config.PortRange{{First: port, Last: port}}
	for i := range web.Realservers {
		web.Realservers[i].Forward, web.Realservers[i].Tunnel = method.NAT, config.Tunnel{}
	}
	return cfg
}

// TestFirstNAT: from the moment that the rules of the first realservers of VS/NAT are made, the workers send the
// realservers' other packets on. After a refused configuration they do not.
func TestFirstNAT(t *testing.T) {
	o := operate(t, running(), nil)
	expects, refuse := o.plane.shared.ExpectsOthers, true // refuse belongs to the controller, and to the test between
	var asMade []bool
	o.network.answerBy(func(s routing.State) error {
		if len(s.Rules) <= 2 { // of all directors
			return nil
		}
		if asMade = append(asMade, expects()); refuse {
			return errRefused
		}
		return nil
	})
	if _, _, err := o.controller.configure(masked(80)); err == nil || expects() {
		t.Errorf("refused: error %v, other packets are sent on: %v", err, expects())
	}
	refuse = false
	if _, _, err := o.controller.configure(masked(80)); err != nil || !expects() {
		t.Errorf("accepted: error %v, other packets are sent on: %v", err, expects())
	}
	if !slices.Equal(asMade, []bool{true, true}) {
		t.Errorf("when the rules are made, other packets are sent on: %v", asMade)
	}
	if _, _, err := o.controller.configure(running()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "no rules, and no other packets", func() bool {
		_ = o.controller.do(func() { o.controller.refresh() })
		s, _ := o.network.last()
		return len(s.Rules) <= 2 && !expects()
	})
}

// TestRetiredReplies: the rule for the replies of a VS/NAT realserver stays as long as the realserver has connections
// at that port, also if only the service's port has changed.
func TestRetiredReplies(t *testing.T) {
	o := operate(t, masked(80), nil)
	p := &packet.Info{Len: 40, TCPFlags: packet.FlagSYN, Flow: packet.Flow{Src: netip.MustParseAddr("192.0.2.7"),
		SrcPort: 4711, Dst: vip1, DstPort: 80, Proto: packet.ProtoTCP}}
	d, reason := o.plane.balancer.Snapshot().Decide(p, o.plane.now())
	if reason != drop.Accept {
		t.Fatal(reason)
	}
	if _, _, err := o.controller.configure(masked(81)); err != nil {
		t.Fatal(err)
	}
	ports := func() (all []uint16) { // of rules that lead replies of d into the device
		s, _ := o.network.last()
		for _, r := range s.Rules {
			if r.Table != 0 && r.SrcPorts.First != 0 && r.From.Contains(d.Address) {
				all = append(all, r.SrcPorts.First)
			}
		}
		return all
	}
	refresh := func() { _ = o.controller.do(func() { o.controller.refresh() }) }
	if refresh(); !slices.Equal(ports(), []uint16{80, 81}) {
		t.Errorf("with a connection at port 80: rules for ports %v", ports())
	}
	o.plane.table.Sweep(1 << 30)
	if refresh(); !slices.Equal(ports(), []uint16{81}) {
		t.Errorf("without a connection at port 80: rules for ports %v", ports())
	}
}

// TestFormerInputs: the first state of a start has the routes of VIPs, and the rules of servers of VS/NAT, that have
// left the configuration since the former process began: its connections may need them. They go if none does. A start
// that cannot have them goes on without them.
func TestFormerInputs(t *testing.T) {
	for _, refused := range []bool{false, true} {
		former := (&plan.Inputs{Config: masked(80)}).Reconfigured(masked(80))
		former.RetiredVIPs, former.RetiredNAT, former.Config = []netip.Addr{vip1, vip2}, former.AllNATServers(), nil
		o := operate(t, masked(81), func(o *operated) {
			o.former = former
			o.network.set = func(s routing.State) error {
				if refused && hasRoute(s, vip2) {
					return errRefused
				}
				return nil
			}
		})
		at80 := func(s routing.State) bool {
			return slices.ContainsFunc(s.Rules, func(r routing.Rule) bool { return r.SrcPorts.First == 80 })
		}
		if s := o.network.sets[0]; !hasRoute(s, vip1) || !hasRoute(s, vip2) || !at80(s) {
			t.Errorf("the first state is %+v", s)
		}
		if n := len(o.network.sets); (n > 1) != refused {
			t.Errorf("refused %v: %d states", refused, n)
		}
		_ = o.controller.do(func() { o.controller.refresh() })
		if s, _ := o.network.last(); !hasRoute(s, vip1) || hasRoute(s, vip2) || at80(s) {
			t.Errorf("without connections the state is %+v", s)
		}
		o.end()
	}
}

// TestMovedRoute: when the kernel's routes change, the rules for replies of VS/NAT follow at once: they name devices.
func TestMovedRoute(t *testing.T) {
	cfg := masked(80)
	var moved atomic.Bool
	changed := make(chan struct{}, 1)
	o := operate(t, cfg, func(o *operated) {
		o.network.changed = changed
		o.controller.ask.paths = func(to []netip.Addr) (map[netip.Addr]query.Path, error) {
			all := map[netip.Addr]query.Path{}
			for _, a := range to {
				all[a] = query.Path{Link: "eth0", MTU: 1500}
				if moved.Load() {
					all[a] = query.Path{Link: "eth1", MTU: 1500}
				}
			}
			return all, nil
		}
	})
	moved.Store(true)
	changed <- struct{}{}
	testkit.Within(t, "a rule names the new device", pathsEvery/2, func() bool {
		s, _ := o.network.last()
		return slices.ContainsFunc(s.Rules, func(r routing.Rule) bool { return r.In == "eth1" })
	})
}

// TestFailedTrim: routes that cannot be removed are logged once, and tried again; paths and weights go on meanwhile.
func TestFailedTrim(t *testing.T) {
	var log testkit.Log
	o := operate(t, running(), func(o *operated) {
		o.controller.log = slog.New(slog.NewTextHandler(&log, nil))
	})
	next := running()
	next.Services[0].VIPs, next.Services[1].VIPs = []netip.Addr{vip2}, []netip.Addr{vip2}
	fail := true
	o.network.answerBy(func(s routing.State) error {
		if fail && !hasRoute(s, vip1) {
			return errRefused
		}
		return nil
	})
	if _, _, err := o.controller.configure(next); err != nil {
		t.Fatal(err)
	}
	refresh := func() { _ = o.controller.do(func() { o.controller.refresh() }) }
	refresh()
	o.mustSet(t, "service=web&realserver=10.0.11.1&weight=7")
	if got := o.weightsOf("web"); !slices.Equal(got, []int{7, 1}) {
		t.Errorf("weights %v", got)
	}
	_ = o.controller.do(func() { fail = false })
	refresh()
	if s, _ := o.network.last(); hasRoute(s, vip1) {
		t.Error("the route stays")
	}
	if got := log.String(); strings.Count(got, "cannot remove routes") != 1 {
		t.Errorf("the log:\n%s", got)
	}
}

// TestUsageSettles: the answer reports whether a worker may still decide by a former weight.
func TestUsageSettles(t *testing.T) {
	o := operate(t, running(), nil)
	o.awaitFirstStates(t)
	var busy stats.Batches
	busy.Begin(1)
	_ = o.controller.do(func() {
		st := *o.controller.state()
		st.grace = grace{{&busy, 0}}
		o.controller.current.Store(&st)
	})
	settling := func() bool {
		v, err := o.usage(url.Values{"realserver": {"10.0.11.1"}, "service": {"web"}})
		if err != nil {
			t.Fatal(err)
		}
		return v.([]api.RealserverUsage)[0].Settling
	}
	if !settling() {
		t.Error("it has settled while a worker is in its batch")
	}
	time.AfterFunc(settleTime/10, busy.End)
	if settling() {
		t.Error("it has not settled")
	}
}

// TestEnding: after the controller has ended, requests fail, and nothing else does.
func TestEnding(t *testing.T) {
	c := newController(slog.New(slog.DiscardHandler), &dataPlane{}, &checks{}, &fakeNetwork{}, &fakeNeighbours{},
		&lan{})
	c.plane.shared = operate(t, running(), nil).plane.shared
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.do(func() { t.Error("called") }); !errors.Is(err, reload.ErrEnding) {
		t.Error(err)
	}
	c.healthChanged(nil) // returns
}

// TestPathsPause: packets that are too big for their path, or forged ICMP errors about them, keep the director busy for
// a tenth of the time at most.
func TestPathsPause(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                      pathsAtOnce,
		5 * time.Millisecond:   pathsAtOnce,
		300 * time.Millisecond: 3 * time.Second,
		time.Minute:            pathsEvery, // as it is due then
	} {
		if got := pathsPause(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

// TestKernelCantBeAsked: without a descriptor left, the paths that were known before stay.
func TestKernelCantBeAsked(t *testing.T) {
	six := netip.MustParseAddr("::1")
	cfg := &config.Director{Services: []config.Service{{Name: "web", Protocol: "tcp", Quorum: 1,
		Realservers: []config.RealserverRef{{Address: six, Weight: 1, Tunnel: config.Tunnel{Encap: "ipip"}}}}}}
	var log testkit.Log
	plane := &dataPlane{balancer: balancer.New(conntab.New(conntab.Config{Max: 1024}), 1)}
	c := newController(slog.New(slog.NewTextHandler(&log, nil)), plane, nil, nil, nil, &lan{})
	in := plan.Inputs{Config: cfg}
	ask := func() balancer.Realserver {
		c.resolvePaths(&in)
		desired, _ := plan.Plan(in, nil)
		return desired.Balancer.Services[0].Realservers[0]
	}
	starved(t, func() {
		if guess := ask(); guess.MTU != 1500 || guess.Source.IsValid() {
			t.Errorf("before anything is known: %+v", guess)
		}
	})
	before := ask()
	if before.Source != six {
		t.Skip("the machine has no IPv6")
	}
	var after balancer.Realserver
	starved(t, func() { ask(); after = ask() }) // with one line in the log
	if after != before {
		t.Errorf("the realserver is now %+v, was %+v", after, before)
	}
	if lines := strings.Split(log.String(), "\n"); len(lines) != 3 || !strings.Contains(lines[0],
		"taken to be 1500") || !strings.Contains(lines[1], "the former ones stay") {
		t.Errorf("the log says\n%s", log.String())
	}
}

// starved calls f while the process can open no more files.
func starved(t *testing.T, f func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // the lowest that is
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

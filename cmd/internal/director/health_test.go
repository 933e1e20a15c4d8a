package director

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/routing"
)

// TestJudge: what is down is out, or has weight 0; below the quorum a sorry server has everything, and without one
// those that are up go on.
func TestJudge(t *testing.T) {
	sorry := netip.MustParseAddr("10.0.99.2")
	const down, idle = -1, 0 // as what a realserver is left with
	for name, c := range map[string]struct {
		weights []int
		up      []bool
		change  func(s *config.Service)
		was     *standing
		want    standing
		left    []int
	}{
		"all up": {[]int{1, 2}, []bool{true, true}, nil, nil, standing{true, 3, false, true},
			[]int{1, 2}},
		"one down": {[]int{1, 2}, []bool{true, false}, nil, nil, standing{false, 1, false, true},
			[]int{1, down}},
		"one down, was up": {[]int{2, 1}, []bool{true, false}, nil, &standing{up: true},
			standing{true, 2, false, true}, []int{2, down}},
		"drains": {[]int{2, 1}, []bool{true, false},
			func(s *config.Service) { s.DrainOnFailure = true }, &standing{up: true}, standing{true, 2, false, true},
			[]int{2, idle}},
		"below the quorum": {[]int{1, 1}, []bool{true, false}, nil, &standing{up: true},
			standing{false, 1, false, true}, []int{1, down}},
		"below the quorum, sorry": {[]int{1, 1}, []bool{true, false},
			func(s *config.Service) { s.SorryServer = sorry }, &standing{up: true}, standing{false, 1, true, true},
			[]int{down, down}},
		"sorry, and drains": {[]int{1, 1}, []bool{true, false}, func(s *config.Service) {
			s.SorryServer,
				s.DrainOnFailure = sorry, true
		}, &standing{up: true}, standing{false, 1, true, true}, []int{idle, idle}},
		"hysteresis, stays up": {[]int{1, 1}, []bool{true, false}, func(s *config.Service) { s.Hysteresis = 1 },
			&standing{up: true}, standing{true, 1, false, true}, []int{1, down}},
		"hysteresis, stays down": {[]int{1, 1}, []bool{true, true}, func(s *config.Service) { s.Hysteresis = 1 },
			&standing{}, standing{false, 2, false, true}, []int{1, 1}},
		"hysteresis, new, all up": {[]int{1, 1}, []bool{true, true}, func(s *config.Service) { s.Hysteresis = 1 },
			nil, standing{true, 2, false, true}, []int{1, 1}},
		"an operator drains it all": {[]int{0, 0}, []bool{true, true},
			func(s *config.Service) { s.SorryServer = sorry }, &standing{up: true}, standing{false, 0, true, true},
			[]int{down, down}},
		"one of two drains": {[]int{2, 1, 1}, []bool{true, false, false},
			func(s *config.Service) { s.Realservers[1].DrainOnFailure = true }, &standing{up: true},
			standing{true, 2, false, true}, []int{2, idle, down}},
		"sorry is a realserver": {[]int{1, 3}, []bool{true, true},
			func(s *config.Service) { s.SorryServer = s.Realservers[1].Address }, &standing{up: true},
			standing{true, 4, false, true}, []int{1, 3}},
		"a realserver is sorry": {[]int{1, 0}, []bool{true, true},
			func(s *config.Service) { s.SorryServer = s.Realservers[1].Address }, &standing{up: true},
			standing{false, 1, true, true}, []int{down, 1}},
		"a failed one is sorry": {[]int{1, 3}, []bool{true, false},
			func(s *config.Service) { s.SorryServer = s.Realservers[1].Address }, &standing{up: true},
			standing{false, 1, true, true}, []int{down, 3}},
		"a file's offset": {[]int{1, 1}, []bool{true, true},
			func(s *config.Service) { s.Realservers[0].Upper = 4 }, &standing{up: true}, standing{true, 5, false, true},
			[]int{5, 0}},
		"nobody there": {nil, nil, nil, nil, standing{false, 0, false, true}, nil},
	} {
		s := &config.Service{Name: "web", Protocol: "tcp", Quorum: 2, EncapPort: 6080}
		states := map[seat]health.State{}
		for i, w := range c.weights {
			a := netip.AddrFrom4([4]byte{10, 0, 11, byte(i)})
			s.Realservers = append(s.Realservers, config.RealserverRef{Address: a, Weight: w,
				Tunnel: config.Tunnel{Encap: "ipip"}})
			states[seat{"web", a}] = health.State{Up: c.up[i], Known: true}
		}
		if c.change != nil {
			c.change(s)
		}
		if name == "a file's offset" {
			for i, offset := range []int{4, -2} {
				at := seat{"web", s.Realservers[i].Address}
				st := states[at]
				st.Offset = offset
				states[at] = st
			}
		}
		for i := range s.Realservers {
			// as the configuration has it
			s.Realservers[i].DrainOnFailure = s.Realservers[i].DrainOnFailure || s.DrainOnFailure
		}
		b := service(s, config.Sources{}, nil)
		got := judge(&b, s, states, c.was)
		var left []int
		for _, r := range b.Realservers {
			if r.Down {
				left = append(left, down)
			} else {
				left = append(left, r.Weight)
			}
		}
		if got != c.want || !slices.Equal(left, c.left) {
			t.Errorf("%s: %+v with %v, want %+v with %v", name, got, left, c.want, c.left)
		}
	}
}

// TestStatusIsInForce: a realserver whose checks have failed is up in status for as long as it gets connections.
func TestStatusIsInForce(t *testing.T) {
	d := operated(t)
	d.cfg.Services[0].Realservers[0].Check = &config.Check{Type: "exec", Direct: true, Command: []string{"/bin/false"},
		Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1, Up: true}
	told := make(chan struct{})
	d.monitor = health.New(func(changes []health.Change) {
		if slices.ContainsFunc(changes, func(c health.Change) bool { return !c.Up }) {
			close(told)
		}
	})
	if err := d.monitor.Set(subjects(d.cfg, func(*config.Service, *config.RealserverRef) (health.Path,
		string) {
		return health.Direct{}, "direct"
	})); err != nil {
		t.Fatal(err)
	}
	if err := d.bal.Apply(d.balanced(d.cfg)); err != nil {
		t.Fatal(err)
	}
	d.monitor.Begin()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = d.monitor.Run(ctx) }) // which returns nil
	select {
	case <-told:
	case <-time.After(time.Minute):
		t.Fatal("no check fails")
	}
	for _, want := range []string{"up 1", "down 0"} {
		if r := d.servicesStatus(time.Now())[0].Realservers[0]; fmt.Sprint(r.Health, " ", r.Effective) != want ||
			r.Check.Reason != "exit status 1" {
			t.Errorf("status has %+v, %+v, want %s", r, r.Check, want)
		}
		if err := d.bal.Apply(d.balanced(d.cfg)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSourceOfChecks: a VIP is checked from the configured address of its family, or from the one of the way to the
// realserver, or, where that is of the other family, from that of the default route.
func TestSourceOfChecks(t *testing.T) {
	addr := netip.MustParseAddr
	four, six, link := addr("10.0.11.2"), addr("fd00:11::2"), addr("fd00:12::2")
	to := map[netip.Addr]routing.Path{four: {Source: addr("10.0.2.2")}, six: {Source: addr("fd00:2::2")},
		link:       {Source: addr("fe80::1")},
		somewhere4: {Source: addr("10.9.9.9")}, somewhere6: {Source: addr("fd00:9::9")}}
	vip4, vip6 := addr("198.51.100.80"), addr("2001:db8:100::80")
	for _, c := range []struct {
		sources         config.Sources
		vip, realserver netip.Addr
		want            string
	}{
		{config.Sources{}, vip4, four, "10.0.2.2"},
		{config.Sources{}, vip6, six, "fd00:2::2"},
		{config.Sources{}, vip6, four, "fd00:9::9"},
		{config.Sources{}, vip4, six, "10.9.9.9"},
		{config.Sources{}, vip6, link, "invalid IP"},
		{config.Sources{V4: addr("10.0.0.1")}, vip4, six, "10.0.0.1"},
		{config.Sources{V4: addr("10.0.0.1")}, vip6, six, "fd00:2::2"},
		{config.Sources{}, vip4, addr("10.0.77.7"), "invalid IP"},
	} {
		w := &ways{to: to, sources: c.sources}
		if got := w.source(c.vip, c.realserver).String(); got != c.want {
			t.Errorf("%v at %v is checked from %s, want %s", c.vip, c.realserver, got, c.want)
		}
	}
}

// TestTargets: a realserver that several services check through one tunnel is one target; through another tunnel it is
// another.
func TestTargets(t *testing.T) {
	a := netip.MustParseAddr("10.0.11.2")
	ref := func(encap string, check *config.Check) config.RealserverRef {
		return config.RealserverRef{Address: a, Weight: 1, Tunnel: config.Tunnel{Encap: encap}, Check: check}
	}
	tunnel, direct := &config.Check{Type: "tcp"}, &config.Check{Type: "tcp", Direct: true}
	cfg := &config.Director{Services: []config.Service{
		{Name: "a", EncapPort: 6080, Realservers: []config.RealserverRef{ref("ipip", tunnel)}},
		{Name: "b", EncapPort: 6080, Realservers: []config.RealserverRef{ref("ipip", tunnel)}},
		{Name: "c", EncapPort: 6080, Realservers: []config.RealserverRef{ref("gue", tunnel)}},
		{Name: "d", EncapPort: 6080, Realservers: []config.RealserverRef{ref("gre", direct)}},
		{Name: "e", EncapPort: 6080, Realservers: []config.RealserverRef{ref("fou", nil)}},
	}}
	got := (&ways{}).targets(cfg)
	if len(got) != 2 || got[0].Encap.String() != "ipip" || got[1].Encap.String() != "gue" {
		t.Errorf("%+v", got)
	}
	d := &director{bal: balancer.New(conntab.New(conntab.Config{Max: 1024}), 1)}
	_, one := d.wayOf(&cfg.Services[0], &cfg.Services[0].Realservers[0])
	_, same := d.wayOf(&cfg.Services[1], &cfg.Services[1].Realservers[0])
	_, other := d.wayOf(&cfg.Services[2], &cfg.Services[2].Realservers[0])
	if one != same || one == other {
		t.Errorf("ways are named %q, %q and %q", one, same, other)
	}
}

// TestFirstStateOfAService: a service's first state is told once, with the old state "unknown", when no realserver
// whose state is not known yet can change it; after that, each change is told. A '?' is a realserver that begins down
// and that no check has judged yet, '!' is one that begins up.
func TestFirstStateOfAService(t *testing.T) {
	for name, c := range map[string]struct {
		weights    []int
		quorum     int
		hysteresis int
		states     []string // of the realservers, one after the other: + up, - down, ? and !, n no check
		want       string
	}{
		"no check":             {[]int{1, 1}, 1, 0, []string{"nn", "nn"}, "unknown up"},
		"no check, no weight":  {[]int{0}, 1, 0, []string{"n"}, "unknown down"},
		"no realserver":        {nil, 1, 0, []string{"", ""}, "unknown down"},
		"comes up":             {[]int{1, 1}, 1, 0, []string{"??", "+?", "++", "--"}, "unknown up, up down"},
		"is down":              {[]int{1, 1}, 1, 0, []string{"??", "-?", "--", "+-"}, "unknown down, down up"},
		"begins up, is up":     {[]int{1, 1}, 2, 0, []string{"!!", "+!", "++"}, "unknown up"},
		"begins up, is down":   {[]int{1, 1}, 2, 0, []string{"!!", "+!", "+-"}, "unknown down"},
		"begins up, no quorum": {[]int{1, 1}, 2, 0, []string{"!!", "-!"}, "unknown down"},
		"quorum out of reach":  {[]int{1, 1}, 2, 0, []string{"??", "?-", "+-", "++"}, "unknown down, down up"},
		"of weight 0":          {[]int{0, 1}, 1, 0, []string{"??", "?+"}, "unknown up"},
		"one without a check":  {[]int{1, 1}, 1, 0, []string{"n?", "n-"}, "unknown up"},
		"hysteresis": {[]int{1, 1}, 1, 1, []string{"??", "+?", "+-", "++", "+-"},
			"unknown down, down up"},
		"a new one, known service": {[]int{1, 1}, 1, 0, []string{"+", "+?", "-?", "-+"},
			"unknown up, up down, down up"},
	} {
		var told []string
		var was *standing
		for _, of := range c.states {
			s := &config.Service{Name: "web", Protocol: "tcp", Quorum: c.quorum, Hysteresis: c.hysteresis,
				EncapPort: 6080}
			states := map[seat]health.State{}
			for i, r := range of {
				a := netip.AddrFrom4([4]byte{10, 0, 11, byte(i)})
				s.Realservers = append(s.Realservers, config.RealserverRef{Address: a, Weight: c.weights[i],
					Tunnel: config.Tunnel{Encap: "ipip"}})
				if r != 'n' {
					states[seat{"web", a}] = health.State{Checked: true, Up: r == '+' || r == '!', Known: r == '+' ||
						r == '-'}
				}
			}
			b := service(s, config.Sources{}, nil)
			is := judge(&b, s, states, was)
			if old, changed := is.changed(was); changed {
				told = append(told, old+" "+upDown(is.up))
			}
			was = &is
		}
		if got := strings.Join(told, ", "); got != c.want {
			t.Errorf("%s: told %q, want %q", name, got, c.want)
		}
	}
}

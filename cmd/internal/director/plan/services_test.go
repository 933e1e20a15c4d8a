package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap"
)

func TestService(t *testing.T) {
	vip, source, rs := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.2.2"),
		netip.MustParseAddr("10.0.11.2")
	got := service(&config.Service{Name: "phone", VIPs: []netip.Addr{vip}, Protocol: "sctp",
		Ports: []config.PortRange{{}}, Scheduler: "mh",
		Flags: config.SchedulerFlags{Fallback: true}, ByAddress: true, OnePacket: true,
		Persistence: config.Persistence{Timeout: time.Minute, Netmask: 24, Netmask6: 64},
		Realservers: []config.RealserverRef{{Address: rs, Weight: 3, Upper: 10, Lower: 5}}}, config.Sources{V4: source},
		nil)
	want := balancer.Service{Name: "phone", VIPs: []netip.Addr{vip}, Protocol: 132, Ports: []balancer.PortRange{{}},
		Scheduler: "mh",
		Flags:     balancer.Flags{Fallback: true}, ByAddress: true, OnePacket: true,
		Persistence: balancer.Persistence{Timeout: time.Minute, Mask4: 24, Mask6: 64},
		Realservers: []balancer.Realserver{{Address: rs, Weight: 3, Upper: 10, Lower: 5,
			Config: method.Config{Source: source, MTU: 1500}}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOuterSource: the configured address comes first. Else it is the source of the route, where the kernel cannot fill
// it in.
func TestOuterSource(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("fd00:11::2")
	own4, own6, set6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00:2::2"),
		netip.MustParseAddr("fd00:2::3")
	paths := Paths{four: {Source: own4, MTU: 60}, six: {Source: own6, MTU: 60}}
	link := Paths{six: {Source: netip.MustParseAddr("fe80::1"), MTU: 1400}}
	for _, c := range []struct {
		name    string
		to      netip.Addr
		tunnel  config.Tunnel
		sources config.Sources
		paths   Paths
		want    netip.Addr
		mtu     int
	}{
		{"IPv4", four, config.Tunnel{Encap: "ipip"}, config.Sources{V6: set6}, paths, netip.Addr{}, encap.MinMTU +
			encap.MaxOverhead},
		{"IPv4, UDP checksum", four, config.Tunnel{Encap: "gue", Checksum: true}, config.Sources{}, paths, own4,
			encap.MinMTU + encap.MaxOverhead},
		{"IPv4, GRE checksum", four, config.Tunnel{Encap: "gre", Checksum: true}, config.Sources{}, paths, netip.Addr{},
			encap.MinMTU + encap.MaxOverhead},
		{"IPv6", six, config.Tunnel{Encap: "ipip"}, config.Sources{V4: own4}, paths, own6, encap.MinMTU6},
		{"IPv6, configured", six, config.Tunnel{Encap: "ipip"}, config.Sources{V6: set6}, paths, set6, encap.MinMTU6},
		{"IPv6 without route", six, config.Tunnel{Encap: "ipip"}, config.Sources{}, nil, netip.Addr{}, 1500},
		{"IPv6 without an address", six, config.Tunnel{Encap: "ipip"}, config.Sources{}, link, netip.Addr{}, 1400},
	} {
		got := service(&config.Service{EncapPort: 6080, Realservers: []config.RealserverRef{{Address: c.to,
			Tunnel: c.tunnel}}}, c.sources, c.paths).Realservers[0]
		if got.Source != c.want || got.MTU != c.mtu {
			t.Errorf("%s: source %v, MTU %d, want %v, %d", c.name, got.Source, got.MTU, c.want, c.mtu)
		}
	}
}

// TestApplyHealth: a realserver that is down leaves the service, or has weight 0. Below the quorum a sorry server has
// everything; without one those that are up go on.
func TestApplyHealth(t *testing.T) {
	sorry := netip.MustParseAddr("10.0.99.2")
	up := &ServiceState{Up: true}
	const down, idle = -1, 0 // as what a realserver is left with
	for name, c := range map[string]struct {
		weights []int
		up      []bool
		change  func(s *config.Service)
		was     *ServiceState
		want    ServiceState
		left    []int
	}{
		"all up": {[]int{1, 2}, []bool{true, true}, nil, nil, ServiceState{true, 3, false, true},
			[]int{1, 2}},
		"one down": {[]int{1, 2}, []bool{true, false}, nil, nil, ServiceState{false, 1, false, true},
			[]int{1, down}},
		"one down, was up": {[]int{2, 1}, []bool{true, false}, nil, up,
			ServiceState{true, 2, false, true}, []int{2, down}},
		"drains": {[]int{2, 1}, []bool{true, false},
			func(s *config.Service) { s.DrainOnFailure = true }, up, ServiceState{true, 2, false, true},
			[]int{2, idle}},
		"below the quorum": {[]int{1, 1}, []bool{true, false}, nil, up,
			ServiceState{false, 1, false, true}, []int{1, down}},
		"below the quorum, sorry": {[]int{1, 1}, []bool{true, false},
			func(s *config.Service) { s.Sorry.Address = sorry }, up, ServiceState{false, 1, true, true},
			[]int{down, down}},
		"sorry, and drains": {[]int{1, 1}, []bool{true, false}, func(s *config.Service) {
			s.Sorry.Address,
				s.DrainOnFailure = sorry, true
		}, up, ServiceState{false, 1, true, true}, []int{idle, idle}},
		"hysteresis, stays up": {[]int{1, 1}, []bool{true, false}, func(s *config.Service) { s.Hysteresis = 1 },
			up, ServiceState{true, 1, false, true}, []int{1, down}},
		"hysteresis, stays down": {[]int{1, 1}, []bool{true, true}, func(s *config.Service) { s.Hysteresis = 1 },
			&ServiceState{}, ServiceState{false, 2, false, true}, []int{1, 1}},
		"hysteresis, new, all up": {[]int{1, 1}, []bool{true, true}, func(s *config.Service) { s.Hysteresis = 1 },
			nil, ServiceState{true, 2, false, true}, []int{1, 1}},
		"an operator drains it all": {[]int{0, 0}, []bool{true, true},
			func(s *config.Service) { s.Sorry.Address = sorry }, up, ServiceState{false, 0, true, true},
			[]int{down, down}},
		"one of two drains": {[]int{2, 1, 1}, []bool{true, false, false},
			func(s *config.Service) { s.Realservers[1].DrainOnFailure = true }, up,
			ServiceState{true, 2, false, true}, []int{2, idle, down}},
		"sorry is a realserver": {[]int{1, 3}, []bool{true, true},
			func(s *config.Service) { s.Sorry.Address = s.Realservers[1].Address }, up,
			ServiceState{true, 4, false, true}, []int{1, 3}},
		"a realserver is sorry": {[]int{1, 0}, []bool{true, true},
			func(s *config.Service) { s.Sorry.Address = s.Realservers[1].Address }, up,
			ServiceState{false, 1, true, true}, []int{down, 1}},
		"a failed one is sorry": {[]int{1, 3}, []bool{true, false},
			func(s *config.Service) { s.Sorry.Address = s.Realservers[1].Address }, up,
			ServiceState{false, 1, true, true}, []int{down, 3}},
		"a file's offset": {[]int{1, 1}, []bool{true, true},
			func(s *config.Service) { s.Realservers[0].Upper = 4 }, up, ServiceState{true, 5, false, true},
			[]int{5, 0}},
		"no realserver": {nil, nil, nil, nil, ServiceState{false, 0, false, true}, nil},
	} {
		s := &config.Service{Name: "web", Protocol: "tcp", Quorum: 2, EncapPort: 6080}
		states := map[RealserverID]health.State{}
		for i, w := range c.weights {
			a := netip.AddrFrom4([4]byte{10, 0, 11, byte(i)})
			s.Realservers = append(s.Realservers, config.RealserverRef{Address: a, Weight: w,
				Tunnel: config.Tunnel{Encap: "ipip"}})
			states[RealserverID{"web", netip.AddrPortFrom(a, 0)}] = health.State{Up: c.up[i], Known: true}
		}
		if c.change != nil {
			c.change(s)
		}
		if name == "a file's offset" {
			for i, offset := range []int{4, -2} {
				at := RealserverID{"web", s.Realservers[i].ID()}
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
		got := applyHealth(&b, s, states, nil, c.was)
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

// TestFirstStateOfAService: a service's first state is one event with the old state "unknown". It comes when no
// realserver whose state is not known yet can change it. After that, each change is an event. A '?' is a realserver
// that begins down and whose checks have no result yet, '!' is one that begins up.
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
		var was *ServiceState
		for _, of := range c.states {
			s := &config.Service{Name: "web", Protocol: "tcp", Quorum: c.quorum, Hysteresis: c.hysteresis,
				EncapPort: 6080}
			states := map[RealserverID]health.State{}
			for i, r := range of {
				a := netip.AddrFrom4([4]byte{10, 0, 11, byte(i)})
				s.Realservers = append(s.Realservers, config.RealserverRef{Address: a, Weight: c.weights[i],
					Tunnel: config.Tunnel{Encap: "ipip"}})
				if r != 'n' {
					states[RealserverID{"web", netip.AddrPortFrom(a, 0)}] = health.State{
						Checked: true,
						Up:      r == '+' || r == '!',
						Known: r == '+' ||
							r == '-',
					}
				}
			}
			b := service(s, config.Sources{}, nil)
			is := applyHealth(&b, s, states, nil, was)
			if e, happened := event(s, was, is); happened && e.New != Unknown {
				told = append(told, e.Old+" "+e.New)
			}
			was = &is
		}
		if got := strings.Join(told, ", "); got != c.want {
			t.Errorf("%s: told %q, want %q", name, got, c.want)
		}
	}
}

// TestOptions: while connections of peers are missing, packets of unknown connections get no RST, and no hash decides
// for them.
func TestOptions(t *testing.T) {
	for _, syncing := range []bool{false, true} {
		for _, cfg := range []config.Director{{}, {NoResets: true}, {HashUnknown: true}} {
			o := options(&cfg, syncing)
			if o.NoResets != (cfg.NoResets || syncing) || o.HashUnknown != (cfg.HashUnknown && !syncing) {
				t.Errorf("no resets %v, hash %v, syncing %v: %+v", cfg.NoResets, cfg.HashUnknown, syncing, o)
			}
		}
	}
}

// TestHops: with [second_chance] packets name hops where agents get tables of the service, to realservers by gue over
// IPv4.
func TestHops(t *testing.T) {
	ref := func(address string, forward method.Kind, encap string) config.RealserverRef {
		return config.RealserverRef{Address: netip.MustParseAddr(address), Weight: 1, Forward: forward,
			Tunnel: config.Tunnel{Encap: encap}}
	}
	for _, c := range []struct {
		on                  bool
		protocol, scheduler string
		persistence         time.Duration
		to                  config.RealserverRef
		want                bool
	}{
		{true, "tcp", "mh", 0, ref("10.0.11.2", method.TUN, "gue"), true},
		{false, "tcp", "mh", 0, ref("10.0.11.2", method.TUN, "gue"), false},
		{true, "udp", "mh", 0, ref("10.0.11.2", method.TUN, "gue"), false},
		{true, "tcp", "rr", 0, ref("10.0.11.2", method.TUN, "gue"), false},
		{true, "tcp", "mh", time.Minute, ref("10.0.11.2", method.TUN, "gue"), false},
		{true, "tcp", "mh", 0, ref("fd00:11::2", method.TUN, "gue"), false},
		{true, "tcp", "mh", 0, ref("10.0.11.2", method.TUN, "fou"), false},
		{true, "tcp", "mh", 0, ref("10.0.11.2", method.DR, ""), false},
	} {
		cfg := &config.Director{SecondChance: config.SecondChance{On: c.on}, Services: []config.Service{{Name: "web",
			Protocol: c.protocol, Scheduler: c.scheduler, EncapPort: 6080,
			Persistence: config.Persistence{Timeout: c.persistence}, Realservers: []config.RealserverRef{c.to}}}}
		d, _ := Plan(Inputs{File: cfg, Config: cfg}, nil)
		if got := d.Balancer.Services[0].Realservers[0].Hop; got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

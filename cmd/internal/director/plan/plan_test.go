package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/routing"
)

var (
	first, second = netip.MustParseAddr("10.0.11.1"), netip.MustParseAddr("10.0.11.2")
	sorryServer1  = netip.MustParseAddr("10.0.99.2")
	vip, other    = netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("198.51.100.81")
)

// state is the known state of a realserver of web.
func webID(a netip.Addr) RealserverID { return RealserverID{"web", netip.AddrPortFrom(a, 0)} }

func state(a netip.Addr, up bool, offset int) health.State {
	return health.State{Service: "web", Realserver: netip.AddrPortFrom(a, 0), Checked: true, Known: true, Up: up,
		Offset: offset}
}

// plainAddrs lets cmp compare addresses as Go does.
var plainAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

// TestPlan: the effect of each input on the desired state, and its events, from a state in which web is up. A
// realserver of the balancer is written as its weight, with a "!" if it is down.
func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name   string
		before ServiceState
		change func(in *Inputs, web *config.Service)
		web    string // the realservers of web
		want   ServiceState
		events []string
		check  func(d Desired) bool
	}{
		{"nothing", ServiceState{Up: true, Known: true}, func(*Inputs, *config.Service) {}, "1 1",
			ServiceState{Up: true, UpWeight: 2, Known: true}, nil, func(d Desired) bool {
				return len(d.Down)+len(d.Unreachable)+len(d.Reroute)+len(d.Balancer.LeftVIPs) == 0
			}},
		{"connections of peers are missing", ServiceState{Up: true, Known: true}, func(in *Inputs, _ *config.Service) {
			in.Syncing = true
		}, "1 1", ServiceState{Up: true, UpWeight: 2, Known: true}, nil, func(d Desired) bool {
			return d.Balancer.Options.NoResets
		}},
		{"one is down", ServiceState{Up: true, Known: true}, func(in *Inputs, _ *config.Service) {
			in.Health = []health.State{state(first, false, 0), state(second, true, 0)}
		}, "1! 1", ServiceState{Up: true, UpWeight: 1, Known: true}, nil, func(d Desired) bool {
			return len(d.Down) == 1 && d.Down[webID(first)]
		}},
		{"both are down", ServiceState{Up: true, Known: true}, func(in *Inputs, _ *config.Service) {
			in.Health = []health.State{state(first, false, 0), state(second, false, 0)}
		}, "1! 1!", ServiceState{Known: true}, []string{"web up down weight 0 is up, quorum 1"}, nil},
		{"both are down, sorry", ServiceState{Up: true, Known: true}, func(in *Inputs, web *config.Service) {
			in.Health = []health.State{state(first, false, 0), state(second, false, 0)}
			web.Sorry = config.RealserverRef{Address: sorryServer1, Weight: 1}
		}, "1! 1! 1", ServiceState{Sorry: true, Known: true},
			[]string{"web up down weight 0 is up, quorum 1; clients go to the sorry server 10.0.99.2"}, nil},
		{"both are down, and the sorry server is silent", ServiceState{Up: true, Known: true},
			func(in *Inputs, web *config.Service) {
				in.Health = []health.State{state(first, false, 0), state(second, false, 0)}
				web.Sorry = config.RealserverRef{Address: sorryServer1, Forward: method.DR, Weight: 1}
				in.Neighbours = Neighbours{sorryServer1: {Fault: "it does not answer ARP on eth0"}}
			}, "1! 1! 1!", ServiceState{Sorry: true, Known: true},
			[]string{"web up down weight 0 is up, quorum 1; clients go to the sorry server 10.0.99.2"}, nil},
		{"back, sorry", ServiceState{Sorry: true, Known: true}, func(_ *Inputs, web *config.Service) {
			web.Sorry = config.RealserverRef{Address: sorryServer1, Weight: 1}
		}, "1 1 1!", ServiceState{Up: true, UpWeight: 2, Known: true}, []string{"web down up weight 2 is up, quorum 1"},
			nil},
		{"an operator drains one", ServiceState{Up: true, Known: true}, func(in *Inputs, _ *config.Service) {
			in.Weights = Weights{webID(first): {0, 1}}
		}, "0 1", ServiceState{Up: true, UpWeight: 1, Known: true}, nil, func(d Desired) bool {
			return d.Config.Services[0].Realservers[0].Weight == 0
		}},
		{"an offset, but not of a weight that is set", ServiceState{Up: true, Known: true},
			func(in *Inputs, _ *config.Service) {
				in.Weights = Weights{webID(first): {5, 1}}
				in.Health = []health.State{state(first, true, 3), state(second, true, 3)}
			}, "5 4", ServiceState{Up: true, UpWeight: 9, Known: true}, nil, nil},
		{"no route to one", ServiceState{Up: true, Known: true}, func(in *Inputs, _ *config.Service) {
			in.Paths = Paths{first: {}, second: {Link: "eth0", MTU: 1400}}
		}, "1 1", ServiceState{Up: true, UpWeight: 2, Known: true}, nil, func(d Desired) bool {
			r := d.Balancer.Services[0].Realservers
			return slices.Equal(d.Unreachable, []netip.Addr{first}) && r[0].MTU == 1500 && r[1].MTU == 1400
		}},
		{"the kernel has not been asked", ServiceState{Up: true, Known: true}, func(in *Inputs, _ *config.Service) {
			in.Paths = nil
		}, "1 1", ServiceState{Up: true, UpWeight: 2, Known: true}, nil,
			func(d Desired) bool { return len(d.Unreachable) == 0 }},
		{"a retired VIP and a retired realserver", ServiceState{Up: true, Known: true},
			func(in *Inputs, _ *config.Service) {
				in.RetiredVIPs = []netip.Addr{other}
				in.Retired = []netip.Addr{sorryServer1, netip.MustParseAddr("10.0.98.2")}
				in.Paths = Paths{sorryServer1: {Link: "eth0", MTU: 1300, Source: netip.MustParseAddr("10.0.2.2")},
					netip.MustParseAddr("10.0.98.2"): {}}
			}, "1 1", ServiceState{Up: true, UpWeight: 2, Known: true}, nil, func(d Desired) bool {
				path, known := d.Reroute[sorryServer1]
				return slices.Equal(d.Balancer.LeftVIPs, []netip.Addr{other}) && hasRoute(d.Machine, other) &&
					known && len(d.Reroute) == 1 &&
					path == balancer.Path{MTU: 1300, Source: netip.MustParseAddr("10.0.2.2")}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Inputs{Config: running(), Paths: Paths{first: {Link: "eth0", MTU: 1500},
				second: {Link: "eth0", MTU: 1500}}}
			c.change(&in, &in.Config.Services[0])
			former := running()
			c.change(&Inputs{}, &former.Services[0])
			before := map[string]ServiceState{"web": c.before, "dns": {Known: true}, "gone": {Up: true}}
			d, events := Plan(in, before)
			var web, told []string
			for _, r := range d.Balancer.Services[0].Realservers {
				web = append(web, fmt.Sprint(r.Weight)+map[bool]string{true: "!"}[r.Down])
			}
			for _, e := range events {
				told = append(told, strings.Join([]string{e.Service, e.Old, e.New, e.Reason}, " "))
			}
			if got := strings.Join(web, " "); got != c.web || d.Services["web"] != c.want ||
				!slices.Equal(told, c.events) {
				t.Errorf("%s, %+v, events %q; want %s, %+v, %q", got, d.Services["web"], told, c.web, c.want, c.events)
			}
			if c.check != nil && !c.check(d) {
				t.Errorf("%+v", d)
			}
			if _, stays := d.Services["gone"]; stays || len(d.Services) != 2 {
				t.Errorf("services %v", d.Services)
			}
			again, _ := Plan(in, before)
			if diff := cmp.Diff(d, again, plainAddrs); diff != "" {
				t.Errorf("the same inputs give another plan:\n%s", diff)
			}
			if diff := cmp.Diff(former, in.Config, plainAddrs); diff != "" {
				t.Errorf("the configuration is another one now:\n%s", diff)
			}
		})
	}
}

func hasRoute(s routing.State, a netip.Addr) bool {
	return slices.ContainsFunc(s.Routes, func(r routing.Route) bool { return r.Dst.Addr() == a })
}

// TestReconfigured: VIPs that leave are retired and come back, and weights are kept while their configured ones stay.
func TestReconfigured(t *testing.T) {
	in := Inputs{}.Reconfigured(running())
	if len(in.RetiredVIPs) != 0 {
		t.Errorf("at the start %v are retired", in.RetiredVIPs)
	}
	in.Weights = in.Weights.With(in.Config, []RealserverID{webID(first), webID(second)}, 0)
	moved := running()
	moved.Services = moved.Services[:1]
	moved.Services[0].VIPs = []netip.Addr{other}
	moved.Services[0].Realservers[0].Weight = 3
	is := in.Reconfigured(moved)
	if !slices.Equal(is.RetiredVIPs, []netip.Addr{vip}) {
		t.Errorf("%v are retired", is.RetiredVIPs)
	}
	if _, stays := is.Weights[webID(second)]; !stays || len(is.Weights) != 1 {
		t.Errorf("the weights are %v", is.Weights)
	}
	if len(in.Weights) != 2 || len(in.RetiredVIPs) != 0 {
		t.Error("the inputs before have changed")
	}
	none := *moved
	none.Services = nil
	if gone := is.Reconfigured(&none); !slices.Equal(gone.RetiredVIPs, []netip.Addr{vip, other}) {
		t.Errorf("%v are retired", gone.RetiredVIPs)
	}
	if back := is.Reconfigured(running()); !slices.Equal(back.RetiredVIPs, []netip.Addr{other}) {
		t.Errorf("%v are retired", back.RetiredVIPs)
	}
}

// TestMachine: each VIP has a route into the TUN device, an unreachable one behind it, and, where the kernel has rules,
// one into the device for this host's own packets.
func TestMachine(t *testing.T) {
	six := netip.MustParseAddr("2001:db8:100::80")
	cfg := &config.Director{TUN: "vs0", Table: 30322, Services: []config.Service{{VIPs: []netip.Addr{vip, six}}}}
	for _, c := range []struct {
		rules Rules
		want  string
	}{
		{Rules{IPv4: true, IPv6: true}, "vs0 unreachable vs0-local vs0 unreachable vs0-local"},
		{Rules{IPv4: true}, "vs0 unreachable vs0-local vs0 unreachable"},
		{Rules{}, "vs0 unreachable vs0 unreachable"},
	} {
		s := Machine(Inputs{Config: cfg, Rules: c.rules, ReplyLinks: []string{"eth0"}})
		var routes []string
		for _, r := range s.Routes {
			if r.Unreachable {
				r.Link = "unreachable"
			}
			routes = append(routes, r.Link)
		}
		rules := 0
		for _, has := range []bool{c.rules.IPv4, c.rules.IPv6} {
			if has {
				rules++
			}
		}
		if got := strings.Join(routes, " "); got != c.want || len(s.Rules) != rules || !slices.Equal(s.Loose,
			[]string{"eth0"}) {
			t.Errorf("%+v: routes %s, rules %v, loose %v", c.rules, got, s.Rules, s.Loose)
		}
	}
	var keys []string
	for _, s := range Machine(Inputs{Config: cfg}).Sysctls {
		keys = append(keys, s.Key)
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if !slices.Contains(keys, key) {
			t.Errorf("%s is missing in %v", key, keys)
		}
	}
	if s := Machine(Inputs{Config: &config.Director{TUN: "vs0"}}); len(s.Routes)+len(s.Rules) != 0 ||
		len(s.Links) != 2 {
		t.Errorf("without a VIP: %+v", s)
	}
}

// TestReplyLinks: replies to checks come in by the device towards the realserver, and by those that have the checks'
// source addresses; only tunnels and IPv4 VIPs matter.
func TestReplyLinks(t *testing.T) {
	cfg := running()
	paths := Paths{first: {Link: "eth1", Source: netip.MustParseAddr("10.0.2.2")},
		second: {Link: "eth2", Source: netip.MustParseAddr("10.0.3.2")}}
	if links := ReplyLinks(cfg, paths, nil); len(links) != 0 || len(CheckSources(cfg, paths)) != 0 {
		t.Errorf("without checks: %v", links)
	}
	cfg.Services[0].Realservers[0].Check = &config.Check{Type: "tcp"}
	cfg.Services[0].Realservers[1].Check = &config.Check{Type: "tcp", Direct: true}
	if got := CheckSources(cfg, paths); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("10.0.2.2")}) {
		t.Errorf("sources %v", got)
	}
	if got := ReplyLinks(cfg, paths, []string{"lo", "eth0", "vs0", "vs0-local", "eth1"}); !slices.Equal(got,
		[]string{"eth0", "eth1"}) {
		t.Errorf("links %v", got)
	}
	cfg.Services[0].VIPs = []netip.Addr{netip.MustParseAddr("2001:db8:100::80")}
	if got := ReplyLinks(cfg, paths, nil); len(got) != 0 {
		t.Errorf("of an IPv6 VIP: %v", got)
	}
}

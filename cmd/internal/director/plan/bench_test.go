package plan

import (
	"fmt"
	"net/netip"
	"testing"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// BenchmarkPlan plans for 1,000 services with 10 realservers each, as each change of health does.
func BenchmarkPlan(b *testing.B) {
	check := &config.Check{Type: "tcp"}
	cfg, paths := &config.Director{TUN: "vs0"}, Paths{}
	var states []health.State
	for i := range 1000 {
		s := config.Service{Name: fmt.Sprint("s", i), Protocol: "tcp", Scheduler: "wlc", Quorum: 1, Check: check,
			VIPs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})},
			Ports: []config.PortRange{{First: 80, Last: 80}}}
		for j := range 10 {
			a := netip.AddrFrom4([4]byte{10, byte(10 + j), byte(i >> 8), byte(i)})
			s.Realservers = append(s.Realservers, config.RealserverRef{Address: a, Weight: 1, Check: check,
				Tunnel: config.Tunnel{Encap: "ipip"}})
			paths[a] = query.Path{Link: "eth0", MTU: 1500}
			states = append(states, health.State{Service: s.Name, Realserver: netip.AddrPortFrom(a, 0),
				Checked: true, Known: true, Up: true})
		}
		cfg.Services = append(cfg.Services, s)
	}
	in := Inputs{Config: cfg, Paths: paths, Health: states}
	d, _ := Plan(in, nil)
	for b.Loop() {
		d, _ = Plan(in, d.Services)
	}
}

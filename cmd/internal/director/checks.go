package director

import (
	"net/netip"

	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/ping"
	"vstun/cmd/internal/tunneldial"
)

// checks makes the health checks and reports their results.
type checks struct {
	monitor  *health.Monitor
	notifier *notify.Notifier
	pinger   *ping.Pinger
	limit    int // of descriptors, for the program
	room     int // descriptors that checks may have
}

// path returns the path by which r, a realserver of s, is checked.
func (c *controller) path(s *config.Service, r *config.RealserverRef) health.Path {
	if r.CheckedDirectly() {
		return health.Direct{Pinger: c.checks.pinger.Ping}
	}
	address := r.Address
	return &tunneldial.Tunnel{Pins: c.plane.balancer, Pinger: c.checks.pinger, Clock: c.plane.now,
		Target: plan.Target(s, r), Source: func(vip netip.Addr) netip.Addr {
			in := &c.state().inputs
			return in.Paths.Source(in.Config.Source, vip, address)
		}}
}

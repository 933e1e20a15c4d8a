package director

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
)

// Each check in flight has a descriptor, as has each connection to the program: checks that hang must leave some to
// it. The runtime raises the soft limit to the hard one when the program starts.

// reserved is how many descriptors are left for other than checks: connections to the metrics address and the control
// socket, files that a reload reads, netlink sockets, notifications.
const reserved = 384

// descriptorLimit is how many descriptors this process may have.
func descriptorLimit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<30))
}

// roomForChecks is how many of limit descriptors checks in flight may have, where the program has open ones beside
// them. Where the limit is small the reserve is, too.
func roomForChecks(limit, open int) int {
	left := limit - open
	return max(left-reserved, left/4, 1)
}

// openDescriptors is how many this process has.
func openDescriptors() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(fds)
}

// usualDescriptors is how many a director of cfg has open before its first check: for each queue its own, the raw
// sockets of its worker and those for tunnels over UDP, each with an eventfd; and what every director has.
func usualDescriptors(cfg *config.Director) int {
	return cfg.Queues*(2+4+2*udpPorts) + 64
}

// checksOf is what the checks of cfg need of the descriptors of a director that would be started by this process.
func checksOf(cfg *config.Director) (control.Checks, error) {
	m := health.New(nil)
	way := func(s *config.Service, r *config.RealserverRef) (health.Path, string) { return nil, wayName(s, r) }
	if err := m.Set(subjects(cfg, way)); err != nil {
		return control.Checks{}, err
	}
	limit := descriptorLimit()
	return control.Checks{Limit: limit, Room: roomForChecks(limit, usualDescriptors(cfg)), Needed: m.Need()}, nil
}

// checks is the same of this director, with what waits.
func (d *director) checks() control.Checks {
	return control.Checks{Limit: d.limit, Room: d.room, Needed: d.monitor.Need(), Waiting: d.monitor.Waiting()}
}

// warnOfChecks logs that checks need more descriptors than there is room for.
func (d *director) warnOfChecks() {
	if c := d.checks(); c.Short() {
		d.log.Warn("health checks: "+c.Shortage(), "fix", c.Fix())
	}
}

// warning is what check says of cfg, a line; "": nothing.
func warning(file string, cfg *config.Director) (string, error) {
	c, err := checksOf(cfg)
	if err != nil || !c.Short() {
		return "", err
	}
	return fmt.Sprintf("%s: warning: health checks: %s: %s", file, c.Shortage(), c.Fix()), nil
}

package director

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vstun/balancer/health"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// Each check in flight has a descriptor, and so has each connection to the program. Checks that hang must leave enough
// descriptors for the connections. The runtime raises the soft limit to the hard one when the program starts.

// reserved is the number of descriptors that checks don't get. They are for connections to the metrics address and the
// control socket, files that a reload reads, netlink sockets, notifications.
const reserved = 384

// descriptorLimit returns the number of descriptors that this process may have.
func descriptorLimit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<30))
}

// roomForChecks returns the number of descriptors that checks in flight may have, of limit, of which the program uses
// open for other things. With a small limit the reserve is smaller, too.
func roomForChecks(limit, open int) int {
	left := limit - open
	return max(left-reserved, left/4, 1)
}

// openDescriptors returns the number of descriptors that this process has.
func openDescriptors() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(fds)
}

// usualDescriptors returns the number that a director of cfg has open before its first check: for each queue its own,
// the raw sockets of its worker and those for tunnels over UDP, each with an eventfd; and what every director has.
func usualDescriptors(cfg *config.Director) int {
	return cfg.Queues*(2+4+2*udpPorts) + 64
}

// checksOf returns need and number of descriptors for the checks of a director of cfg that this process would start.
func checksOf(cfg *config.Director) (api.Checks, error) {
	m := health.New(nil)
	way := func(s *config.Service, r *config.RealserverRef) (health.Path, string) { return nil, wayName(s, r) }
	if err := m.Set(subjects(cfg, way)); err != nil {
		return api.Checks{}, err
	}
	limit := descriptorLimit()
	return api.Checks{Limit: limit, Room: roomForChecks(limit, usualDescriptors(cfg)), Needed: m.Need()}, nil
}

// checks returns the same for this director, with the number of waiting checks.
func (d *director) checks() api.Checks {
	return api.Checks{Limit: d.limit, Room: d.room, Needed: d.monitor.Need(), Waiting: d.monitor.Waiting()}
}

// warnOfChecks logs that checks need more descriptors than there is room for.
func (d *director) warnOfChecks() {
	if c := d.checks(); c.Short() {
		d.log.Warn("health checks: "+c.Shortage(), "fix", c.Fix())
	}
}

// warning returns the warning of the command check about cfg, one line; "": there is none.
func warning(file string, cfg *config.Director) (string, error) {
	c, err := checksOf(cfg)
	if err != nil || !c.Short() {
		return "", err
	}
	return fmt.Sprintf("%s: warning: health checks: %s: %s", file, c.Shortage(), c.Fix()), nil
}

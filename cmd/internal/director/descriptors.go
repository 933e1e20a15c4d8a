package director

import (
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"vstun/balancer/health"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
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

// roomForChecks returns the number of descriptors that checks in flight may have. The program has limit in all and uses
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

// usualDescriptors returns the number of descriptors that a director of cfg has open before its first check. For each
// queue these are its own, and the worker's two raw sockets, packet socket and sockets for tunnels over UDP, each with
// an eventfd. WireGuard has a socket
// for each IP version. The rest is the same for every director. With a TAP device there is no packet socket.
func usualDescriptors(cfg *config.Director) int {
	const sockets = 2 + 1 + udpPorts
	n := cfg.Queues*(2+2*sockets) + 64
	if cfg.WireGuard.On {
		n += 2 * 2
	}
	return n
}

// checksOf returns the needed and the available descriptors for checks, if this process ran a director with cfg.
func checksOf(cfg *config.Director) (api.Checks, error) {
	m := health.New(nil)
	if err := m.Set(plan.Subjects(cfg, nil)); err != nil {
		return api.Checks{}, err
	}
	limit := descriptorLimit()
	return api.Checks{Limit: limit, Room: roomForChecks(limit, usualDescriptors(cfg)), Needed: m.Need()}, nil
}

// descriptors returns the needed and the available descriptors for this director's checks, and the number of waiting
// checks.
func (c *checks) descriptors() api.Checks {
	return api.Checks{Limit: c.limit, Room: c.room, Needed: c.monitor.Need(), Waiting: c.monitor.Waiting()}
}

// setRoom gives the checks the descriptors that the program does not need for other things.
func (c *checks) setRoom() {
	c.limit = descriptorLimit()
	c.room = roomForChecks(c.limit, openDescriptors())
	c.monitor.SetRoom(c.room)
}

// warnShort logs that checks need more descriptors than there is room for.
func (c *checks) warnShort(log *slog.Logger) {
	if d := c.descriptors(); d.Short() {
		log.Warn("health checks: "+d.Shortage(), "fix", d.Fix())
	}
}

// warning returns the warning that the command check prints about cfg, in one line, or "".
func warning(file string, cfg *config.Director) (string, error) {
	c, err := checksOf(cfg)
	if err != nil || !c.Short() {
		return "", err
	}
	return fmt.Sprintf("%s: warning: health checks: %s: %s", file, c.Shortage(), c.Fix()), nil
}

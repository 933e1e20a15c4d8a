package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vstun/cmd/internal/director/plan"
	"vstun/routing"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// questions are the controller's queries of the kernel and of the connection table. An answer may take long.
type questions struct {
	paths    func(to []netip.Addr) (map[netip.Addr]query.Path, error)
	local    func(a netip.Addr) (device string, local bool, err error)
	hasRules func(ipv6 bool) bool
	devices  func() ([]query.Device, error)
	usedVIPs func() map[netip.Addr]bool
	usedNAT  func() map[plan.NATServer]bool // servers of VS/NAT that have connections, one for each port
	// retired returns the retired realservers that have connections, in ascending order, and those of VS/DR.
	retired func() (all, direct []netip.Addr)
}

func newQuestions(plane *dataPlane, lan *lan) questions {
	return questions{paths: query.Paths, local: query.LocalLink, hasRules: query.HasRules,
		devices: lan.devices, usedVIPs: plane.usedVIPs, usedNAT: plane.usedNAT, retired: plane.retired}
}

// rules returns for which families the kernel has policy rules.
func (q questions) rules() plan.Rules {
	return plan.Rules{IPv4: q.hasRules(false), IPv6: q.hasRules(true)}
}

// replyLinks returns the devices by which the replies to checks come in, and other hosts' packets to servers of VS/NAT
// on this host.
func (q questions) replyLinks(in plan.Inputs) []string {
	var devices []string // that have the addresses that checks come from, and the servers' addresses
	own := in.OwnServers()
	if len(own) > 0 {
		devices = append(devices, in.Paths.DefaultLink())
	}
	for _, a := range append(own, plan.CheckSources(in.Config, in.Paths)...) {
		if device, local, err := q.local(a); err == nil && local {
			devices = append(devices, device)
		}
	}
	return plan.ReplyLinks(in.Config, in.Paths, devices)
}

// resolvePaths asks the kernel for all paths that in needs. If the query fails, the known paths stay.
func (c *controller) resolvePaths(in *plan.Inputs) {
	in.Retired, in.RetiredDirect = c.ask.retired()
	to := append(plan.Destinations(in.Config), in.Retired...)
	for _, n := range in.RetiredNAT {
		to = append(to, n.Address)
	}
	carriers := c.plane.sealed.carriers(&in.Config.WireGuard)
	asked := slices.Clone(to)
	for _, a := range carriers {
		if a.IsValid() {
			asked = append(asked, a)
		}
	}
	answer, err := c.ask.paths(asked)
	message := "cannot ask the kernel for the paths to realservers: the former ones stay"
	if in.Paths == nil {
		message = "the paths to realservers are not known: their MTU is taken to be 1500"
	}
	c.logFailure(slog.LevelWarn, message, err)
	if err != nil {
		return
	}
	in.Paths = make(plan.Paths, len(to))
	for _, a := range to {
		in.Paths[a] = answer[a] // the zero Path: there is no route
	}
	sealPaths(in.Paths, answer, carriers)
	for _, a := range in.Retired {
		if _, inTunnel := carriers[a]; inTunnel && in.Config.WireGuard.Peer(a) == nil {
			delete(in.Paths, a) // its tunnel stays as it is
		}
	}
}

// adopt finds the paths to realservers that are not configured any more, and whose connections are a former process's.
func (c *controller) adopt() {
	in := c.state().inputs
	c.resolvePaths(&in)
	if in.Config.TAP { // its workers do not read the answers yet
		c.resolveNeighbours(&in)
	} else {
		c.awaitNeighbours(&in, c.firstWait())
	}
	c.logFailure(slog.LevelError, "cannot keep what connections of a former process need", c.converge(in))
}

// listDevices asks the kernel for the host's devices. If the query fails, the known ones stay.
func (c *controller) listDevices(in *plan.Inputs) {
	devices, err := c.ask.devices()
	c.logFailure(slog.LevelError, "cannot list the devices, so VIPs are announced as before", err)
	if err == nil {
		in.Devices = devices
	}
}

// followDevices puts the present devices in force. The channel pause delivers when the next look may begin. A VIP that
// gets into a subnet of this host in this way is announced at once: to ask whether another host has it would take a
// third of a second, in which no other change is put in force. The packets of such a host are counted and logged.
func (c *controller) followDevices() (pause <-chan time.Time) {
	begin := time.Now()
	in := c.state().inputs
	c.listDevices(&in)
	c.plane.fast.attach(in.Devices)
	c.look(in.Devices)
	was := &c.state().inputs
	speaker := plan.Speaker(in)
	if !in.SameDevices(was) || !neigh.EqualDevices(plan.Announce(in), c.state().Announce) || !in.SameOwned(was) ||
		!speaker.Equal(&c.state().Speaker) {
		c.logFailure(slog.LevelError, "cannot apply a change of devices", c.follow(in))
	}
	return time.After(max(devicesAtOnce, pathsShare*time.Since(begin)))
}

// takingOver is the time after a director has got a role in which it does not answer packets of unknown connections.
// The former master sends connections that are new, and those whose first packets it gets while its neighbours learn.
const takingOver = 3 * time.Second

// followRoles puts the roles of VRRP in force: the master announces the VIPs, and this host has its addresses.
func (c *controller) followRoles() {
	in := c.state().inputs
	in.Roles = c.roles.now()
	if !in.SameRoles(&c.state().inputs) {
		c.logFailure(slog.LevelError, "cannot apply a role of VRRP", c.follow(in))
	}
}

// takeRoles puts the present roles into in. Where they differ from those in force, it begins what follows for unknown
// connections, here and at the peers.
func (c *controller) takeRoles(in *plan.Inputs) {
	in.Roles = c.roles.now()
	if was := c.state(); was != nil && in.Config.Sync.On {
		if newMaster(in.Roles, was.inputs.Roles) {
			c.takeover = time.After(takingOver)
		}
		if newMaster(was.inputs.Roles, in.Roles) {
			c.roles.lost()
		}
	}
	in.Syncing = c.incomplete || c.takeover != nil
}

// follow is converge for what has happened and cannot be refused. Neighbours learn of VIPs also if this host cannot
// have an address of VRRP: it is tried again with each further call, with the next refresh at the latest.
func (c *controller) follow(in plan.Inputs) error {
	in.Unowned = false
	err := c.converge(in)
	if err == nil || len(in.Config.VRRP) == 0 {
		return err
	}
	in.Unowned = true
	if c.converge(in) == nil {
		err = fmt.Errorf("without the addresses of [[vrrp]] that are no VIPs: %w", err)
	}
	return err
}

// releaseAddresses removes the addresses of VRRP whose role this director has given up. Call it when run has ended.
func (c *controller) releaseAddresses() error {
	in := c.state().inputs
	in.Roles = c.roles.now()
	if in.SameOwned(&c.state().inputs) {
		return nil
	}
	return c.network.Set(plan.Machine(in))
}

// trim removes from the machine the routes of retired VIPs, and the rules of retired servers of VS/NAT, whose last
// connections have ended. It relaxes the reverse-path filters of the devices that replies to checks come in by. A
// failure is tried again with the next refresh.
func (c *controller) trim() {
	in := c.state().inputs
	if len(in.RetiredVIPs) > 0 {
		used := c.ask.usedVIPs()
		unused := func(vip netip.Addr) bool { return !used[vip] }
		in.RetiredVIPs = slices.DeleteFunc(slices.Clone(in.RetiredVIPs), unused)
		if len(in.RetiredVIPs) < len(c.state().inputs.RetiredVIPs) {
			c.logFailure(slog.LevelError, "cannot remove routes of VIPs that are not configured any more; retrying",
				c.converge(in), "vips", c.state().inputs.RetiredVIPs)
		}
	}
	c.trimNAT()
	in = c.state().inputs
	retired, _ := c.ask.retired()
	c.logFailure(slog.LevelError, "cannot remove peers of WireGuard",
		c.plane.sealed.trim(&in.Config.WireGuard, in.Paths.SealedMTU, retired))
	in.ReplyLinks = c.ask.replyLinks(in)
	if !slices.Equal(in.ReplyLinks, c.state().inputs.ReplyLinks) {
		c.logFailure(slog.LevelError, "replies to health checks may be dropped by the reverse-path filter: "+
			"set rp_filter to 2 for these devices", c.converge(in), "devices", in.ReplyLinks)
	}
}

// trimNAT removes the rules of retired servers of VS/NAT. While a worker may still decide by a former snapshot, it
// keeps them: a server may get another connection.
func (c *controller) trimNAT() {
	in := c.state().inputs
	if len(in.RetiredNAT) == 0 || !c.state().grace.over() {
		return
	}
	used := c.ask.usedNAT()
	in.RetiredNAT = slices.DeleteFunc(slices.Clone(in.RetiredNAT),
		func(n plan.NATServer) bool { return !n.In(used) })
	if len(in.RetiredNAT) < len(c.state().inputs.RetiredNAT) {
		c.logFailure(slog.LevelError, "cannot remove rules of realservers that are not configured any more",
			c.converge(in))
	}
}

// logFailure logs the failure of an activity that is repeated. The same error is logged once in a row. An error of the
// director's end is not logged.
func (c *controller) logFailure(level slog.Level, message string, err error, args ...any) {
	if err == nil {
		delete(c.failures, message)
		return
	}
	if errors.Is(err, routing.ErrClosed) || c.failures[message] == err.Error() {
		return
	}
	c.failures[message] = err.Error()
	c.log.Log(context.Background(), level, message, append(args, "error", err)...)
}

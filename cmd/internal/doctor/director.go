package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/tunnel"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// Director describes the director of this machine, whether it runs or not.
type Director struct {
	File   string
	Config *config.Director
	// Obstacles returns the faults that prevent the director's start or, if it runs, its next start; a line each.
	Obstacles func(running bool) error
	// Checks returns the number of descriptors that its health checks need and have.
	Checks func() (api.Checks, error)
}

// Examine examines the machine, and the paths to the realservers.
func (d *Director) Examine(ctx context.Context) (*Report, error) {
	var st api.DirectorStatus
	running, silence, err := status(ctx, d.Config.Control, &st)
	if err != nil {
		return nil, err
	}
	var known *api.DirectorStatus
	if running && silence == nil {
		known = &st
	}
	d, names := d.resolved(ctx, known)
	r := newReport("director", d.File, running)
	v4, v6 := d.families()
	checks := []check{
		{"running", func(_ context.Context, res *result) { res.running(running, "director", d.File) }},
		{"privileges", func(_ context.Context, res *result) { res.privileges(running) }},
		{"start", func(_ context.Context, res *result) { res.start(running, d.Obstacles) }},
		{"forwarding", func(_ context.Context, res *result) { res.forwarding(running, d.Config.TUN, v4, v6) }},
		{"firewall", func(_ context.Context, res *result) { res.directorFirewall(d) }},
		{"rp_filter", func(ctx context.Context, res *result) { res.directorFilters(ctx, d.Config.TUN, v4, &st) }},
		{"neighbours", func(_ context.Context, res *result) { res.neighbours(d.Config, d.vips(), known) }},
		{"ip_vs", func(_ context.Context, res *result) { res.kernelServices(d.vips()) }},
		{"names", func(_ context.Context, res *result) { res.names(names) }},
		{"routes", func(_ context.Context, res *result) { res.realserverRoutes(d.Config) }},
		{"descriptors", func(_ context.Context, res *result) { res.descriptors(d.descriptors(known)) }},
	}
	if running {
		checks = append(checks,
			check{"replies", func(_ context.Context, res *result) { res.replies(d.Config, &st) }},
			check{"device", func(_ context.Context, res *result) {
				res.vipRoutes(d.Config.TUN, d.Config.LocalTUN(), d.vips())
			}})
	}
	if d.Config.TAP {
		checks = d.forTAP(checks, running, known)
	}
	switch {
	case silence != nil:
		checks = append(checks,
			check{"control", func(_ context.Context, res *result) { res.silent("vstun-director", silence) }})
	case running:
		checks = append(checks, d.ofRunning(&st)...)
	}
	r.run(ctx, checks...)
	// The probes come last, since they change the kernel's counters.
	probes := []check{{"tunnels", d.tunnels}}
	if !d.Config.TAP { // whose VIPs have nothing to do with the host's router
		probes = append(probes,
			check{"router", func(ctx context.Context, res *result) { d.router(ctx, res, running, &st) }})
	}
	r.run(ctx, probes...)
	return r.finish(), nil
}

// descriptors returns the descriptors that the checks need and have: of the running director, unless known is nil.
func (d *Director) descriptors(known *api.DirectorStatus) (api.Checks, error) {
	if known == nil {
		return d.Checks()
	}
	return known.Checks, nil
}

// ofRunning returns the checks of what the running director knows.
func (d *Director) ofRunning(st *api.DirectorStatus) []check {
	return []check{
		{"health", func(_ context.Context, res *result) { res.health(st) }},
		{"mail", func(_ context.Context, res *result) { res.mail(st.Mail) }},
		{"vrrp", func(_ context.Context, res *result) { d.elections(res, st) }},
		{"wireguard", func(_ context.Context, res *result) {
			res.wireguard("realserver", &d.Config.WireGuard, st.WireGuard, st.Drops["handshake"])
		}},
		{"point_to_point", func(_ context.Context, res *result) {
			res.pointToPoint(st.Tunnels, tunnel.Overheads(d.Config.Tunnels))
		}},
		{"sync", func(_ context.Context, res *result) { d.exchange(res, st) }},
		{"second_chance", func(_ context.Context, res *result) { d.tables(res, st) }},
		{"bgp", func(_ context.Context, res *result) { res.bgp(st.BGP) }},
		{"fast_path", func(_ context.Context, res *result) { res.directorFastPath(d.Config, &st.FastPath) }},
		{"drops", func(ctx context.Context, res *result) { res.directorDrops(ctx, d.Config.Control, st) }},
	}
}

// status gets the status of the program with this control socket, and reports whether the program runs. silence is the
// error of a program that runs and does not answer.
func status(ctx context.Context, socket string, into any) (running bool, silence, err error) {
	err = api.Get(ctx, socket, "/status", into)
	switch {
	case err == nil:
		return true, nil, nil
	case errors.Is(err, api.ErrSilent):
		return true, err, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED): // no program listens
		return false, nil, nil
	}
	return false, nil, err
}

// running records that a program does not run.
func (res *result) running(running bool, program, file string) {
	if running {
		res.fine("the %s runs", program)
		return
	}
	f := Finding{Severity: Error, What: "the director does not run", Why: "no packet for a VIP gets to a realserver",
		Fix:     fmt.Sprintf("%s run -c %s", program, file),
		Remarks: []string{"the other findings are faults that it would meet"}}
	if program == "realserver" {
		f.What, f.Why = "the agent does not run", "this host refuses or drops the directors' packets"
	}
	if d, err := os.Stat("/run/systemd/system"); err == nil && d.IsDir() { // sd_booted(3)
		f.Fix = "systemctl start vstun-" + program
	}
	res.find(f)
}

// silent records that the program of this unit runs but does not answer.
func (res *result) silent(unit string, err error) {
	res.find(Finding{Severity: Error, What: err.Error(), Why: "packets may stand still, too",
		Fix:     "systemctl restart " + unit,
		Remarks: []string{"its last log lines: journalctl -u " + unit}})
}

// vips returns the VIPs, each once.
func (d *Director) vips() (all []netip.Addr) {
	for _, s := range d.Config.Services {
		for _, vip := range s.VIPs {
			if !slices.Contains(all, vip) {
				all = append(all, vip)
			}
		}
	}
	return all
}

// families reports whether there are VIPs of IPv4, and of IPv6.
func (d *Director) families() (v4, v6 bool) {
	for _, vip := range d.vips() {
		v4, v6 = v4 || vip.Is4(), v6 || vip.Is6()
	}
	return v4, v6
}

// realservers returns the addresses of realservers and sorry servers, each once, and their services' names.
func realservers(cfg *config.Director) (all []netip.Addr, services map[netip.Addr][]string) {
	services = map[netip.Addr][]string{}
	for _, s := range cfg.Services {
		for _, r := range ends(&s) {
			if services[r.Address] == nil {
				all = append(all, r.Address)
			}
			services[r.Address] = append(services[r.Address], role(&s, r))
		}
	}
	return all, services
}

// privileges examines whether the program could start with the privileges of this process.
func (res *result) privileges(running bool) {
	err := daemon.CheckPrivileges()
	switch {
	case err == nil:
		res.fine("CAP_NET_ADMIN, CAP_NET_RAW, /dev/net/tun")
	case running:
		res.skip("the program runs with its own privileges; this command lacks them: %v", err)
	default:
		res.obstacles(err)
	}
}

// start records the faults that prevent the program's start.
func (res *result) start(running bool, obstacles func(running bool) error) {
	if err := obstacles(running); err != nil {
		res.obstacles(err)
		return
	}
	res.fine("addresses and devices")
}

// tunnelEnds returns the addresses of the realservers of VS/TUN.
func tunnelEnds(cfg *config.Director) map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for i := range cfg.Services {
		for _, r := range ends(&cfg.Services[i]) {
			if r.Forward == method.TUN {
				all[r.Address] = true
			}
		}
	}
	return all
}

// realserverRoutes examines whether there is a route to each realserver. That of a tunnel needs a source address and a
// sufficient MTU, too.
func (res *result) realserverRoutes(cfg *config.Director) {
	all, services := realservers(cfg)
	if cfg.TAP {
		direct := plan.Direct(cfg) // in the device's network, without routes
		all = slices.DeleteFunc(all, func(a netip.Addr) bool { return slices.Contains(direct, a) })
	}
	outer := endpoints(cfg)
	asked := slices.Clone(all)
	for _, a := range outer {
		if a.IsValid() {
			asked = append(asked, a)
		}
	}
	paths, err := query.Paths(asked)
	if res.failed(err) {
		return
	}
	tunnels := tunnelEnds(cfg)
	const leastMTU = 1280 + 60 // IPv6's minimum MTU, and the longest tunnel header
	var names []string
	for _, a := range all {
		path, ok := paths[a]
		where := fmt.Sprintf("realserver %s (%s)", a, brief(services[a]))
		if endpoint, inTunnel := outer[a]; inTunnel {
			if endpoint.IsValid() {
				res.sealedRoute(where, endpoint, paths[endpoint])
			}
			continue
		}
		switch {
		case !ok:
			res.find(Finding{Severity: Error, Where: where, What: "there is no route to it",
				Why: "packets for it are dropped",
				Fix: fmt.Sprintf("ip route get %s", a),
				Remarks: []string{fmt.Sprintf("add one: ip route add %s via GATEWAY",
					netip.PrefixFrom(a, a.BitLen()))}})
			continue
		case tunnels[a] && !cfg.Source.For(a).IsValid() && (!path.Source.IsValid() || path.Source.IsLinkLocalUnicast()):
			res.find(Finding{Severity: Error, Where: where, What: fmt.Sprintf("the route to it gives no usable source "+
				"address (%v)", path.Source), Why: "no realserver can recognize the director by it",
				Fix: "director reload", Remarks: []string{"first set source in [director] to an address of this host"}})
			continue
		case tunnels[a] && path.MTU < leastMTU:
			res.find(Finding{Severity: Warning, Where: where,
				What:    fmt.Sprintf("the route to it, by %s, has an MTU of %d", path.Link, path.MTU),
				Why:     "little of it is left for the packets in the tunnel",
				Fix:     fmt.Sprintf("ip link set %s mtu 1500", path.Link),
				Remarks: []string{fmt.Sprintf("or raise the mtu of the route: ip route get %s", a)}})
		}
		names = append(names, fmt.Sprintf("%s by %s, MTU %d", a, path.Link, path.MTU))
	}
	if len(names) > 0 {
		res.fine("%s", brief(names))
	}
}

// brief joins a list for the report and cuts a long one.
func brief(list []string) string {
	const most = 8
	if len(list) > most {
		return fmt.Sprintf("%s, and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

// descriptors examines whether health checks get the descriptors that they need.
func (res *result) descriptors(c api.Checks, err error) {
	switch {
	case res.failed(err):
	case c.Limit == 0:
		res.skip("the running program is of an older release, and does not report what its checks need")
	case c.Short():
		res.find(Finding{Severity: Warning, Where: "health checks", What: c.Shortage(),
			Why: fmt.Sprintf("%d checks wait now", c.Waiting), Fix: "systemctl edit vstun-director",
			Remarks: []string{c.Fix()}})
	default:
		res.fine("health checks need %d, and %d are free", c.Needed, c.Room)
	}
}

// health records the realservers that are down, and the services below their quorum.
func (res *result) health(st *api.DirectorStatus) {
	up := 0
	for _, s := range st.Services {
		for _, r := range s.Realservers {
			if r.Health == "down" {
				res.find(downRealserver(s.Name, &r))
			} else {
				up++
			}
		}
		if s.Health == "down" {
			res.find(Finding{Severity: Error, Where: fmt.Sprintf("service %q", s.Name),
				What: fmt.Sprintf("it is down: weight %d is up, its quorum is %d", s.WeightUp, s.Quorum),
				Why:  "its clients are refused, or get the sorry server", Fix: "director status"})
		}
	}
	if len(res.findings) == 0 {
		res.fine("up, or not checked: %s", words.Count(up, "realserver"))
	}
}

// downRealserver returns the finding about r, a realserver of the named service that is down.
func downRealserver(service string, r *api.Realserver) Finding {
	f := Finding{Severity: Warning, Where: fmt.Sprintf("realserver %s (%s)", r.Name(), service),
		Why: "it gets no connections"}
	reason := ""
	if r.Check != nil {
		reason = fmt.Sprintf(": %s check via %s: %s", r.Check.Type, r.Check.Via, r.Check.Reason)
	}
	switch {
	case r.Unreachable != "":
		f.Severity, f.What = Error, "it is down: "+r.Unreachable
		f.Why = "it gets no connections, since its MAC address is not known"
		f.Fix = fmt.Sprintf("ip route get %s; ip neigh show to %s", r.Address, r.Address)
	case r.ComingUp():
		f.What, f.Why, f.Fix = "it is not up yet"+reason, "it gets no connections until it is up", "director status"
	case r.Forward == method.NAT.String(): // it has no agent
		f.What, f.On, f.Fix = "it is down"+reason, r.Address, "ss -lntu"
		f.Remarks = []string{"look whether its server listens, and whether a firewall there refuses this host"}
	default:
		f.What, f.On, f.Fix = "it is down"+reason, r.Address, "realserver doctor"
		if r.Forward == method.DR.String() {
			f.Remarks = []string{"without an agent there: look whether lo has the VIP"}
		}
	}
	return f
}

// tunnels probes the realservers through their tunnels.
func (d *Director) tunnels(ctx context.Context, res *result) {
	all, _ := realservers(d.Config)
	paths, err := query.Paths(all)
	if res.failed(err) {
		return
	}
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	p, err := newProber()
	if res.failed(err) {
		return
	}
	defer func() { _ = p.close() }()
	own := map[bool]netip.Addr{}
	for _, six := range []bool{false, true} {
		own[six] = ownAddress(d.Config, devices, six)
		if v4, v6 := d.families(); !own[six].IsValid() && (six && v6 || !six && v4) {
			res.skip("this host has no %s address of its own to probe VIPs of that family from",
				map[bool]string{false: "IPv4", true: "IPv6"}[six])
		}
	}
	p.examineTargets(ctx, res, targets(d.Config, paths, func(vip netip.Addr) netip.Addr { return own[vip.Is6()] }))
}

// outside are addresses of the Internet, by whether they are IPv6. They serve to look up the route to clients. No
// packet is sent to them.
var outside = map[bool]netip.Addr{false: netip.MustParseAddr("9.9.9.9"), true: netip.MustParseAddr("2620:fe::fe")}

// ownAddress returns an address of this host for answers: the configured source, else the default route's source, else
// any other.
func ownAddress(cfg *config.Director, devices []query.Device, six bool) netip.Addr {
	if a := cfg.Source.For(outside[six]); a.IsValid() {
		return a
	}
	if hop, ok, err := query.Lookup(outside[six], netip.Addr{}); err == nil && ok && hop.Source.IsGlobalUnicast() {
		return hop.Source
	}
	for _, d := range devices {
		for _, p := range d.Addrs {
			if a := p.Addr(); d.Up && !d.Loopback && a.Is6() == six && a.IsGlobalUnicast() {
				return a
			}
		}
	}
	return netip.Addr{}
}

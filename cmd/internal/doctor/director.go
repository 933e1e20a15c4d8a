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

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// Director is the director of this machine, as it runs or would run.
type Director struct {
	File   string
	Config *config.Director
	// faults that keep it from starting, or, while it runs, from its next start; a line each
	Obstacles func(running bool) error
	Checks    func() (api.Checks, error) // number of descriptors for its checks, and their need
}

// Examine examines the machine, and the ways to the realservers.
func (d *Director) Examine(ctx context.Context) (*Report, error) {
	var st api.DirectorStatus
	running, silence, err := asked(ctx, d.Config.Control, &st)
	if err != nil {
		return nil, err
	}
	r := newReport("director", d.File, running)
	v4, v6 := d.families()
	checks := []check{
		{"running", func(_ context.Context, e *exam) { e.running(running, "director", d.File) }},
		{"privileges", func(_ context.Context, e *exam) { e.privileges(running) }},
		{"start", func(_ context.Context, e *exam) { e.start(running, d.Obstacles) }},
		{"forwarding", func(_ context.Context, e *exam) { e.forwarding(running, d.Config.TUN, v4, v6) }},
		{"firewall", func(_ context.Context, e *exam) { e.directorFirewall(d) }},
		{"rp_filter", func(ctx context.Context, e *exam) { e.directorFilters(ctx, d.Config.TUN, v4, &st) }},
		{"neighbours", func(_ context.Context, e *exam) { e.neighbours(d.vips()) }},
		{"ip_vs", func(_ context.Context, e *exam) { e.kernelServices(d.vips()) }},
		{"routes", func(_ context.Context, e *exam) { e.realserverRoutes(d.Config) }},
		{"descriptors", func(_ context.Context, e *exam) {
			c, err := st.Checks, error(nil)
			if !running || silence != nil {
				c, err = d.Checks()
			}
			e.descriptors(c, err)
		}},
	}
	if running {
		checks = append(checks,
			check{"device", func(_ context.Context, e *exam) {
				e.vipRoutes(d.Config.TUN, d.Config.LocalTUN(),
					d.vips())
			}})
	}
	switch {
	case silence != nil:
		checks = append(checks, check{"control", func(_ context.Context, e *exam) {
			e.silent("vstun-director",
				silence)
		}})
	case running:
		checks = append(checks,
			check{"health", func(_ context.Context, e *exam) { e.health(&st) }},
			check{"drops", func(ctx context.Context, e *exam) { e.directorDrops(ctx, d.Config.Control, &st) }})
	}
	r.run(ctx, checks...)
	// The probes come last: what they do to the kernel's counters is nothing that was wrong.
	r.run(ctx, check{"tunnels", d.tunnels},
		check{"router", func(ctx context.Context, e *exam) { d.router(ctx, e, running, &st) }})
	return r.finish(), nil
}

// asked gets the status of the program whose control socket is at socket, and reports whether there is one that runs,
// and if so, what is there when it does not answer.
func asked(ctx context.Context, socket string, into any) (running bool, silence, err error) {
	err = api.Get(ctx, socket, "/status", into)
	switch {
	case err == nil:
		return true, nil, nil
	case errors.Is(err, api.ErrSilent):
		return true, err, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED): // nobody has it
		return false, nil, nil
	}
	return false, nil, err
}

// running notes that a program does not run.
func (e *exam) running(running bool, program, file string) {
	if running {
		e.fine("the %s runs", program)
		return
	}
	f := Finding{Severity: Error, What: "the director does not run", Why: "no packet for a VIP gets to a realserver",
		Fix:     fmt.Sprintf("%s run -c %s", program, file),
		Remarks: []string{"the other findings are what it would meet"}}
	if program == "realserver" {
		f.What, f.Why = "the agent does not run", "this host refuses or drops what directors send"
	}
	if d, err := os.Stat("/run/systemd/system"); err == nil && d.IsDir() { // sd_booted(3)
		f.Fix = "systemctl start vstun-" + program
	}
	e.find(f)
}

// silent notes that the program, of this unit, runs and does not answer.
func (e *exam) silent(unit string, err error) {
	e.find(Finding{Severity: Error, What: err.Error(), Why: "packets may stand still, too",
		Fix:     "systemctl restart " + unit,
		Remarks: []string{"what it did last: journalctl -u " + unit}})
}

// vips are the VIPs, each once.
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

// families tells which families the VIPs are of.
func (d *Director) families() (v4, v6 bool) {
	for _, vip := range d.vips() {
		v4, v6 = v4 || vip.Is4(), v6 || vip.Is6()
	}
	return v4, v6
}

// realservers are the addresses of realservers and sorry servers, each once, with the names of their services.
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

// privileges examines whether the program could start as the user who asks.
func (e *exam) privileges(running bool) {
	err := daemon.CheckPrivileges()
	switch {
	case err == nil:
		e.fine("CAP_NET_ADMIN, CAP_NET_RAW, /dev/net/tun")
	case running:
		e.skip("the program runs, so it has what it needs; who asks does not: %v", err)
	default:
		e.obstacles(err)
	}
}

// start lets the program itself say what keeps it from starting.
func (e *exam) start(running bool, obstacles func(running bool) error) {
	if err := obstacles(running); err != nil {
		e.obstacles(err)
		return
	}
	e.fine("addresses and devices")
}

// realserverRoutes examines whether there is a route to each realserver, and what it takes.
func (e *exam) realserverRoutes(cfg *config.Director) {
	all, services := realservers(cfg)
	ways, err := query.Paths(all)
	if e.failed(err) {
		return
	}
	const leastMTU = 1280 + 60 // what IPv6 needs, and the longest tunnel header
	var names []string
	for _, a := range all {
		way, ok := ways[a]
		where := fmt.Sprintf("realserver %s (%s)", a, brief(services[a]))
		switch {
		case !ok:
			e.find(Finding{Severity: Error, Where: where, What: "there is no route to it",
				Why: "what is for it is dropped",
				Fix: fmt.Sprintf("ip route get %s", a),
				Remarks: []string{fmt.Sprintf("add one: ip route add %s via GATEWAY",
					netip.PrefixFrom(a, a.BitLen()))}})
			continue
		case !cfg.Source.For(a).IsValid() && (!way.Source.IsValid() || way.Source.IsLinkLocalUnicast()):
			e.find(Finding{Severity: Error, Where: where, What: fmt.Sprintf("the route to it gives no source but %v",
				way.Source), Why: "no realserver can know the director by it",
				Fix: "director reload", Remarks: []string{"first set source in [director] to an address of this host"}})
			continue
		case way.MTU < leastMTU:
			e.find(Finding{Severity: Warning, Where: where, What: fmt.Sprintf("the route to it takes packets of %d "+
				"bytes at most, by %s", way.MTU, way.Link),
				Why: "little is left for what is in the tunnel", Fix: fmt.Sprintf("ip link set %s mtu 1500", way.Link),
				Remarks: []string{fmt.Sprintf("or raise the mtu of the route: ip route get %s", a)}})
		}
		names = append(names, fmt.Sprintf("%s by %s, %d bytes", a, way.Link, way.MTU))
	}
	if len(names) > 0 {
		e.fine("%s", brief(names))
	}
}

// brief is a list for people: of a long one, its beginning.
func brief(list []string) string {
	const most = 8
	if len(list) > most {
		return fmt.Sprintf("%s, and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

// descriptors examines whether health checks get the descriptors that they need.
func (e *exam) descriptors(c api.Checks, err error) {
	switch {
	case e.failed(err):
	case c.Limit == 0:
		e.skip("the program that runs is an older one, and does not say what its checks need")
	case c.Short():
		e.find(Finding{Severity: Warning, Where: "health checks", What: c.Shortage(),
			Why: fmt.Sprintf("%d wait now", c.Waiting), Fix: "systemctl edit vstun-director",
			Remarks: []string{c.Fix()}})
	default:
		e.fine("%d for health checks, and room for %d", c.Needed, c.Room)
	}
}

// health tells which realservers their checks have taken out.
func (e *exam) health(st *api.DirectorStatus) {
	up := 0
	for _, s := range st.Services {
		for _, r := range s.Realservers {
			if r.Health != "down" {
				up++
				continue
			}
			reason := ""
			if r.Check != nil {
				reason = fmt.Sprintf(": %s check via %s: %s", r.Check.Type, r.Check.Via, r.Check.Reason)
			}
			if r.ComingUp() {
				e.find(Finding{Severity: Warning, Where: fmt.Sprintf("realserver %s (%s)", r.Address, s.Name),
					What: "it is not up yet" + reason,
					Why:  "it gets no connections before", Fix: "director status"})
				continue
			}
			e.find(Finding{Severity: Warning, Where: fmt.Sprintf("realserver %s (%s)", r.Address, s.Name),
				What: "it is down" + reason, Why: "it gets no connections",
				On: r.Address, Fix: "realserver doctor"})
		}
		if s.Health == "down" {
			e.find(Finding{Severity: Error, Where: fmt.Sprintf("service %q", s.Name),
				What: fmt.Sprintf("it is down: weight %d is up, its quorum is %d", s.WeightUp, s.Quorum),
				Why:  "its clients are refused, or get the sorry server", Fix: "director status"})
		}
	}
	if len(e.findings) == 0 {
		e.fine("up, or not checked: %s", words.Count(up, "realserver"))
	}
}

// tunnels probes the realservers.
func (d *Director) tunnels(ctx context.Context, e *exam) {
	all, _ := realservers(d.Config)
	ways, err := query.Paths(all)
	if e.failed(err) {
		return
	}
	devices, err := query.Devices()
	if e.failed(err) {
		return
	}
	p, err := newProber()
	if e.failed(err) {
		return
	}
	defer func() { _ = p.close() }()
	own := map[bool]netip.Addr{}
	for _, six := range []bool{false, true} {
		own[six] = ownAddress(d.Config, devices, six)
		if v4, v6 := d.families(); !own[six].IsValid() && (six && v6 || !six && v4) {
			e.skip("this host has no %s address of its own to ask VIPs of that family from",
				map[bool]string{false: "IPv4", true: "IPv6"}[six])
		}
	}
	p.probe(ctx, e, targets(d.Config, ways, func(vip netip.Addr) netip.Addr { return own[vip.Is6()] }))
}

// outside are addresses of the Internet, to see which way a packet there would go. Nothing is sent to them.
var outside = map[bool]netip.Addr{false: netip.MustParseAddr("9.9.9.9"), true: netip.MustParseAddr("2620:fe::fe")}

// ownAddress is an address of this host for answers to come to: the configured source, that of the default route, or
// any.
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

package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/balancer/keep"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/ping"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/replace"
	"vstun/cmd/internal/tunnel"
	"vstun/routing"
)

// director is the running program. It reads the configuration file. The controller puts the configuration in force. The
// data plane forwards packets.
type director struct {
	file       string
	log        *slog.Logger
	level      slog.LevelVar
	flush      func()           // writes the rest of the log
	network    *routing.Manager // of the machine
	control    *api.Server
	http       *metrics.Server
	memory     memory
	plane      dataPlane
	lan        lan
	roles      roles
	routers    routers
	announcers []announcer
	sync       peerSync
	tables     tables // for second chances
	checks     checks
	controller *controller
	reloader   *reload.Reloader
	neighbours resolver   // for VS/DR
	replies    replyWatch // of VS/NAT
	handover   handover   // from the last process, and to the next
}

// open checks that the machine lets cfg run, and only then makes what cfg needs. On an error nothing is left, also of a
// predecessor whose devices are stored: they are taken first.
func open(file string, cfg *config.Director) (_ *director, err error) {
	d := &director{file: file, http: metrics.NewServer(), plane: dataPlane{start: time.Now()}}
	d.level.Set(cfg.Log)
	d.log, d.flush = daemon.Logger(&d.level)
	d.reloader = reload.New("director", file, d.plane.start, d.log)
	d.routers.Speaker = newSpeaker(d.log)
	d.announcers = d.newAnnouncers()
	d.handover = handover{log: d.log, allowed: daemon.Handover()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close(cfg))
		}
	}()
	if err := d.handover.take(daemon.TakeStored(), cfg, &d.plane); err != nil {
		return nil, err
	}
	if err := daemon.CheckPrivileges(); err != nil {
		return nil, err
	}
	// This comes first: it reports whether another director runs here, and adopts the changes that a former one has
	// left.
	if d.network, err = d.handover.openNetwork(journalPath(cfg.Control)); err != nil {
		if used, ok := errors.AsType[*routing.InUseError](err); ok {
			return nil, fmt.Errorf("a director runs already (process %s, control socket %s): stop it, or set "+
				"another path as control", used.PID, cfg.Control)
		}
		return nil, fmt.Errorf("control %s: %w", cfg.Control, err) // the key by which it is moved elsewhere
	}
	if err := preflight(cfg, d.handover.adopted); err != nil {
		return nil, err
	}
	if d.control, err = api.Listen(cfg.Control); err != nil {
		return nil, err
	}
	if err := d.openHTTP(cfg); err != nil {
		return nil, err
	}
	if err := d.memory.open(cfg, d.log); err != nil {
		return nil, err
	}
	if err := d.openPlane(cfg); err != nil {
		return nil, err
	}
	if err := d.lan.open(d.log, d.plane.ethernet); err != nil {
		return nil, err
	}
	if d.neighbours, err = d.plane.openNeighbours(); err != nil {
		return nil, err
	}
	if err := d.roles.open(cfg, d.log, &d.lan); err != nil {
		return nil, err
	}
	if err := d.sync.open(&cfg.Sync, &d.plane, d.log); err != nil {
		return nil, err
	}
	d.wire(cfg)
	if err := d.start(cfg); err != nil {
		return nil, err
	}
	d.handover.store(&d.plane)
	d.confine(file, cfg)
	d.checks.setRoom()
	d.checks.warnShort(d.log)
	limitGarbage()
	return d, nil
}

// openPlane opens what packets pass through: of services, and of point-to-point tunnels.
func (d *director) openPlane(cfg *config.Director) (err error) {
	if err := d.plane.open(cfg, d.memory.sections(), d.log); err != nil {
		return err
	}
	if err := d.plane.allows(cfg); err != nil {
		return err
	}
	if d.checks.pinger, err = ping.NewPinger(); err != nil {
		return err
	}
	err = d.plane.tunnels.open(cfg, &d.plane.sealed, tunnel.Options{Log: d.log, Pinger: d.checks.pinger,
		Keeper: d.handover.keeper()})
	if err == nil && len(cfg.WireGuard.TunnelPeers) > 0 { // the host sends by a device as soon as it is there
		err = d.plane.sealed.set(&cfg.WireGuard, func(netip.Addr) int { return 0 })
	}
	if err == nil { // [sync] and [[vrrp]] may name a tunnel's device
		err = d.plane.tunnels.apply(cfg)
	}
	return err
}

// wire makes the controller, the checks and the notifier, and connects them.
func (d *director) wire(cfg *config.Director) {
	d.controller = newController(d.log, &d.plane, &d.checks, d.network, d.neighbours, &d.lan)
	d.checks.monitor = health.New(d.controller.healthChanged)
	d.checks.notifier = notify.New(func(err error) { d.log.Error("notification failed", "error", err) })
	d.checks.notifier.Set(cfg.Notify)
	d.controller.notify, d.roles.notify = d.checks.notifier.Send, d.checks.notifier.Send
	d.tables.open(d.log, func(service string, f balancer.Former) { d.plane.balancer.SetFormer(service, f) })
	d.controller.tables = &d.tables
	d.controller.roles, d.roles.rejoined = &d.roles, d.sync.rejoin
	d.controller.announcers = d.announcers
	d.controller.handed, d.controller.look = d.handover.adopted, d.sync.followDevices
	d.roles.give, d.routers.give, d.roles.lost = d.sync.giveTable, d.sync.giveTable, d.sync.switched
	d.roles.hold(cfg.Sync.On)
}

// confine gives up the capabilities that only open needs, and logs what cfg could be warned about. file is the
// configuration's file.
func (d *director) confine(file string, cfg *config.Director) {
	// The sockets are open. Routes, addresses and sysctls change with every reload, and at the end.
	var err error
	if d.plane.fast.needsCapability() {
		err = daemon.KeepOnly(unix.CAP_NET_ADMIN, unix.CAP_BPF)
	} else {
		err = daemon.KeepOnly(unix.CAP_NET_ADMIN)
	}
	if err != nil {
		d.log.Warn("cannot drop all capabilities", "refused", err)
	}
	daemon.WarnUnreadable(d.log, "the configuration file", file)
	replace.Clean(file)
	for _, f := range keyFiles(cfg) {
		daemon.WarnUnreadable(d.log, f.key+" of "+f.label, f.path)
	}
	if m := cfg.Notify.Mail; m != nil && m.PasswordFile != "" {
		daemon.WarnUnreadable(d.log, "password_file of notify.mail", m.PasswordFile)
	}
	daemon.LogWarnings(d.log, slices.Concat(cfg.Warnings, deviceWarnings(cfg, d.controller.state().inputs.Devices)))
}

// start puts the first configuration in force, and takes over what a former process has left.
func (d *director) start(cfg *config.Director) error {
	former, states := d.memory.recall()
	d.checks.monitor.Remember(states)
	d.controller.note = d.memory.note
	if err := d.controller.start(cfg, former); err != nil {
		return err
	}
	if d.memory.adopt(&d.plane) {
		d.controller.adopt()
	}
	return nil
}

// garbage is the memory that the program may take, in bytes, in addition to what it needs at the start and after a
// reload, before the limit makes it collect garbage.
const garbage = 256 << 20

// limitGarbage keeps the garbage from growing as large as the connection table, which lies in the heap too if it does
// not outlive the process. If GOMEMLIMIT is set, it changes nothing.
func limitGarbage() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	runtime.GC() // present garbage does not raise the limit
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapIdle) + garbage)
}

// Each tick of sweepEvery looks for expired connections in a part of the table. A pass over the table takes a second.
// In a large table it takes longer, since a tick looks at no more than sweepSlots slots, a small share of a CPU.
const (
	sweepEvery = 100 * time.Millisecond
	sweepSlots = 300_000
)

// saveEvery is the period in which counts are copied to the memory that outlives the process.
const saveEvery = time.Second

// run works until ctx is cancelled or something fails. It leaves the machine as it was before open, or as the next
// start adopts it.
func (d *director) run(ctx context.Context, hangup func(fn func()) daemon.Task) error {
	p := &d.plane
	d.handover.begin(p)
	// The workers go on until all else has ended: in the devices packets wait for the next start only from then on.
	tasks := []daemon.Task{func(ctx context.Context) error {
		err := d.runControl(ctx, hangup)
		return errors.Join(err, p.fast.end(), d.handover.endNetwork(d.network), p.stop())
	}}
	for _, w := range p.workers {
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	for _, r := range p.relays {
		tasks = append(tasks, func(context.Context) error { return r.Run() })
	}
	err := daemon.Run(ctx, tasks...)
	d.notifyManager("STOPPING=1")
	return errors.Join(err, d.close(d.controller.state().Config))
}

// runControl runs all but the workers and relays, until ctx is cancelled or something fails. Unless a successor adopts
// them, it removes the routes that lead to the workers.
func (d *director) runControl(ctx context.Context, hangup func(fn func()) daemon.Task) error {
	d.serveControl()
	updatePage := d.serveHTTP()
	p := &d.plane
	sweeper := p.table.NewSweeper()
	slots := min(p.table.Slots()*int(sweepEvery)/int(time.Second)+1, sweepSlots)
	watched, announced := make(chan struct{}), make(chan struct{})
	succeeded := make(chan struct{})
	tasks := []daemon.Task{
		daemon.LogStop(d.log),
		d.control.Run,
		d.http.Run,
		updatePage,
		daemon.Watchdog(d.log, d.control.CheckAlive, daemon.Standstill(p.overruns, p.loops()...)),
		func(ctx context.Context) error {
			defer close(watched)
			return d.network.Watch(ctx)
		},
		func(ctx context.Context) error {
			defer close(announced)
			return d.lan.run(after(ctx, succeeded))
		},
		hangup(func() { _, _ = d.reload() }), // the sender of the signal reads the log
		daemon.Every(sweepEvery, func() {
			sweeper.Sweep(p.now(), slots)
			p.shared.Sweep(p.now())
			p.shared.SendResolved(p.balancer.Snapshot(), p.now())
		}),
		d.memory.run,
		daemon.Every(saveEvery, func() { d.memory.save(p) }),
		daemon.Every(repliesEvery, d.followReplies),
		behind(succeeded, p.fast.run), // packets come until then
		behind(succeeded, p.sealed.run),
		behind(succeeded, d.plane.tunnels.run),
		d.tables.run,
		behind(succeeded, d.neighbours.Run),
		behind(succeeded, d.controller.names.Run),
		func(ctx context.Context) error {
			defer close(succeeded)
			return d.leave(ctx)
		},
		behind(succeeded, d.roles.run),
		d.controller.run,
		behind(succeeded, d.exchange), // the last connections are for the successor
		d.checks.monitor.Run,
		behind(succeeded, d.checks.notifier.Run), // it tells of roles, too
		// Before the routes are removed, the neighbours' requests stay without answers, another director has the roles
		// of VRRP, and routers send packets elsewhere.
		func(ctx context.Context) error {
			<-ctx.Done()
			<-announced
			<-watched
			<-succeeded
			<-d.controller.ended
			if d.handover.end(d.file, d.controller.state().Config.Control); d.handover.leaves {
				p.tunnels.Leave()
				return d.controller.releaseAddresses()
			}
			return d.network.Close()
		},
	}
	cfg := d.controller.state().Config
	d.log.Info("ready", "version", daemon.Version(), "tun", p.device.Name(), "queues", cfg.Queues, "offloads",
		p.device.Offloads(), "services", len(cfg.Services), "control", cfg.Control, "metrics",
		metrics.Name(cfg.Metrics))
	if d.sync.Sync == nil { // otherwise the peers' connections come first
		d.notifyManager("READY=1")
	}
	return daemon.Run(ctx, tasks...)
}

// exchange exchanges connections with other directors until ctx is cancelled.
func (d *director) exchange(ctx context.Context) error {
	return d.sync.run(ctx, syncing{complete: d.controller.peersComplete, hold: d.hold,
		backup: d.roles.isBackup, ready: func() {
			d.log.Info("connections of peers are here", "connections", d.plane.table.Len())
			d.notifyManager("READY=1")
		}})
}

// after returns a context that is cancelled when ctx is, and done is closed.
func after(ctx context.Context, done <-chan struct{}) context.Context {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		<-ctx.Done()
		<-done
		cancel()
	}()
	return later
}

// behind returns the task with the context that after returns.
func behind(ended <-chan struct{}, task daemon.Task) daemon.Task {
	return func(ctx context.Context) error { return task(after(ctx, ended)) }
}

// notifyManager sends the program's state to the service manager.
func (d *director) notifyManager(state string) {
	if err := daemon.Notify(state); err != nil {
		d.log.Warn("sd_notify failed", "state", state, "error", err)
	}
}

// serveControl registers the handlers of the control socket.
func (d *director) serveControl() {
	d.control.Handle("GET /status", api.JSON(func(url.Values) (any, error) { return d.status(), nil }))
	d.control.Handle("GET /alive", api.Alive(func() {
		d.status()
		_ = d.controller.do(func() {}) // waits for the controller
	}))
	d.control.Handle("GET /connections", api.JSONLines(d.connections))
	d.control.Handle("POST /reload", api.JSON(func(url.Values) (any, error) {
		changed, err := d.reload()
		return api.Reload{Changes: changed}, err
	}))
	d.control.Handle("GET /configuration", api.Text("application/toml", d.configuration))
	d.control.Handle("PUT /configuration", api.Uploads(config.MaxFileSize, d.putConfiguration))
	const realserver = " /services/{service}/realservers/{realserver}"
	d.control.Handle("GET"+realserver, api.Uploads(maxRealserver, d.getRealserver))
	d.control.Handle("PUT"+realserver, api.Uploads(maxRealserver, d.putRealserver))
	d.control.Handle("DELETE"+realserver, api.Uploads(maxRealserver, d.deleteRealserver))
	d.control.Handle("GET /openapi.yaml", api.Text("application/yaml", openAPI))
	d.control.Handle("POST /weight", api.JSON(d.setWeight))
	d.control.Handle("POST /standby", api.JSON(d.standby))
	d.control.Handle("POST /active", api.JSON(d.activate))
	d.control.Handle("GET /peers", api.JSON(func(url.Values) (any, error) { return d.peers(), nil }))
	d.control.Handle("GET /load", api.JSON(d.usage))
	d.control.Handle("GET /explain", api.JSON(d.explain))
	d.control.Handle("GET /capture", api.Stream("application/x-pcapng", d.capture))
	d.control.Handle("POST /capture/end", api.JSON(d.endCapture))
}

// close undoes open, also if open has failed half-way. cfg is the configuration. Routes go before the device, so that
// the kernel never answers for a VIP. If the process leaves its devices and changes, they stay.
func (d *director) close(cfg *config.Director) error {
	d.tables.close()
	errs := []error{d.closeAnnouncers(), d.sync.close()}
	if d.network != nil {
		errs = append(errs, d.handover.endNetwork(d.network))
	}
	errs = append(errs, d.plane.fast.close(), d.plane.close(), d.handover.close(cfg))
	if d.neighbours != nil {
		errs = append(errs, d.neighbours.Close())
	}
	if d.controller != nil {
		d.controller.names.Close()
	}
	if d.checks.pinger != nil {
		errs = append(errs, d.checks.pinger.Close())
	}
	if d.control != nil {
		errs = append(errs, d.control.Close())
	}
	d.http.Close()
	errs = append(errs, d.memory.close(&d.plane))
	if d.handover.moved && cfg.Connections.KeepBeside {
		errs = append(errs, keep.Remove(d.memory.path))
	}
	d.flush()
	return errors.Join(errs...)
}

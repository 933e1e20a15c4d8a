package director

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/forward"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/tunneldial"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/tundev"
)

// director is the running program.
type director struct {
	file    string
	log     *slog.Logger
	level   slog.LevelVar
	flush   func() // of the log
	start   time.Time
	network *routing.Manager
	control *control.Server
	http    *metrics.Server
	table   *conntab.Table
	device  *tundev.Device
	local   *tundev.Device // for this host's own packets to VIPs
	errors  []io.Closer    // ICMP errors about tunnel packets, for the kernel to learn from
	senders []io.Closer
	shared  *forward.Shared
	bal     *balancer.Balancer
	workers []*forward.Worker // one for each queue of device, then that of local
	relays  []*forward.Relay  // of ICMP errors about tunnel packets

	reloads  sync.Mutex                            // one after the other
	read     atomic.Pointer[control.Configuration] // what came of the last reload; nil: there was none
	mu       sync.Mutex                            // of what a reload changes
	cfg      *config.Director
	leftVIPs []netip.Addr // not configured any more, but with connections; in ascending order
	// to the realservers, as the kernel knew them when it was asked last; nil: never
	ways      map[netip.Addr]routing.Path
	lost      []netip.Addr        // those to which there is none
	unasked   string              // why the kernel couldn't be asked the last time; "": it could
	standings map[string]standing // of the services
	fallen    map[seat]bool       // the realservers that are down
	loose     []string            // devices whose reverse-path filter must not be strict

	monitor  *health.Monitor
	limit    int // of descriptors
	room     int // of them for checks
	notifier *notify.Notifier
	pinger   *tunneldial.Pinger
	known    atomic.Pointer[ways] // for probes

	override atomic.Pointer[weights] // nil: none; stored with mu
}

// open checks that the machine lets cfg run, and then, only then, makes what it needs. On an error nothing is left.
func open(file string, cfg *config.Director) (_ *director, err error) {
	if err := daemon.CheckPrivileges(); err != nil {
		return nil, err
	}
	d := &director{file: file, start: time.Now(), cfg: cfg, shared: forward.NewShared(), http: metrics.NewServer()}
	d.level.Set(cfg.Log)
	d.log, d.flush = daemon.Logger(&d.level)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	// First of all, since it reports whether another director runs here, and clears away what a killed one has left.
	if d.network, err = routing.Open(strings.TrimSuffix(cfg.Control, ".sock")+".journal", d.log); err != nil {
		if used, ok := errors.AsType[*routing.InUseError](err); ok {
			return nil, fmt.Errorf("a director runs already (process %s, control socket %s): stop it, or set "+
				"another path as control", used.PID, cfg.Control)
		}
		return nil, fmt.Errorf("control %s: %w", cfg.Control, err) // the key by which it is moved elsewhere
	}
	if err := preflight(cfg); err != nil {
		return nil, err
	}
	if d.control, err = control.Listen(cfg.Control); err != nil {
		return nil, err
	}
	if err := d.openHTTP(); err != nil {
		return nil, err
	}
	d.table = conntab.New(tableConfig(cfg.Connections))
	d.bal = balancer.New(d.table, cfg.Queues+1)
	if err = d.openRelays(); err != nil {
		return nil, err
	}
	if d.pinger, err = tunneldial.NewPinger(); err != nil {
		return nil, err
	}
	if d.device, err = tundev.Open(cfg.TUN, tundev.Options{Queues: cfg.Queues, Plain: !cfg.Offload}); err != nil {
		return nil, err
	}
	for _, protocol := range []int{packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE, packet.ProtoUDP} {
		e, err := wire.LearnPathMTU(protocol)
		if err != nil {
			return nil, err
		}
		d.errors = append(d.errors, e)
	}
	for i, q := range d.device.Queues() {
		s, err := wire.NewSender()
		if err != nil {
			return nil, err
		}
		d.senders = append(d.senders, s)
		u, err := wire.NewUDPSender(udpPorts)
		if err != nil {
			return nil, err
		}
		d.senders = append(d.senders, u)
		d.workers = append(d.workers, forward.NewWorker(forward.WorkerConfig{ID: i, Source: q, Raw: s, UDP: u,
			UDPPorts: u.Ports(), Balancer: d.bal, Shared: d.shared, Clock: d.now}))
	}
	if err = d.openLocal(); err != nil {
		return nil, err
	}
	d.monitor = health.New(d.healthChanged)
	d.notifier = notify.New(func(err error) {
		d.log.Error("somebody is not told of a change of health", "error",
			err)
	})
	d.notifier.Set(cfg.Notify)
	if err := d.monitor.Set(subjects(cfg, d.wayOf)); err != nil {
		return nil, err
	}
	if err := d.bal.Apply(d.services(cfg)); err != nil {
		return nil, err
	}
	d.monitor.Begin()
	d.loose = d.known.Load().answersBy(cfg)
	if err := d.network.Set(d.machine(cfg, vips(cfg))); err != nil {
		return nil, err
	}
	// The sockets are open. Routes, addresses and sysctls change with every reload, and at the end.
	if err := daemon.KeepOnly(unix.CAP_NET_ADMIN); err != nil {
		d.log.Warn("more privileges are left than the director needs", "refused", err)
	}
	daemon.WarnUnreadable(d.log, file)
	daemon.LogWarnings(d.log, cfg.Warnings)
	d.limit = descriptorLimit()
	d.room = roomForChecks(d.limit, openDescriptors())
	d.monitor.SetRoom(d.room)
	d.warnOfChecks()
	limitGarbage()
	return d, nil
}

// openRelays makes a relay for each family's ICMP errors. What they send clients goes by senders of their own.
func (d *director) openRelays() error {
	receivers, err := wire.NewErrorReceivers()
	if err != nil {
		return err
	}
	for _, r := range receivers {
		d.errors = append(d.errors, r)
	}
	for _, r := range receivers {
		s, err := wire.NewSender()
		if err != nil {
			return err
		}
		d.senders = append(d.senders, s)
		d.relays = append(d.relays, forward.NewRelay(r, s, d.bal, d.shared, d.now))
	}
	return nil
}

// garbage is the memory that the program may take beside what it has at its start, in bytes, before it collects
// garbage.
const garbage = 256 << 20

// limitGarbage keeps the garbage from growing as large as the connection table, which lies in the heap too. An
// operator's GOMEMLIMIT comes first.
func limitGarbage() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + garbage)
}

// udpPorts is the number of source ports that a worker has for tunnels over UDP: routers and network cards on the way
// spread flows by them.
const udpPorts = 16

// now is the time in the connection table's unit.
func (d *director) now() conntab.Ticks {
	return conntab.Ticks(time.Since(d.start) / (time.Second / conntab.PerSecond))
}

// Expired connections are looked for in parts of the table: all of it once a second, or, if it is large, so many slots
// a tick that this takes a small share of a CPU.
const (
	sweepEvery = 100 * time.Millisecond
	sweepSlots = 300_000
)

// pathsEvery is how often the ways to the realservers are asked for again; pathsAtOnce how often at the most when a
// packet turns out to be too big for its way, if that takes no more than a pathsShare-th of the time.
const (
	pathsEvery  = 10 * time.Second
	pathsAtOnce = 100 * time.Millisecond
	pathsShare  = 10
)

// run works until ctx is cancelled or something fails, and leaves the machine as it was before open.
func (d *director) run(ctx context.Context, hangup func(fn func()) daemon.Task) error {
	d.control.Answer("/status", func() (any, error) { return d.status(), nil })
	d.control.Lives(func() { d.status() })
	d.control.Stream("/connections", d.connections)
	d.control.Do("/reload", func() (any, error) {
		changed, err := d.reload()
		return control.Reload{Changes: changed}, err
	})
	d.control.DoQuery("/weight", d.setWeight)
	d.control.AnswerQuery("/load", d.load)
	d.control.AnswerQuery("/explain", d.explain)
	d.control.Feed("/capture", "application/x-pcapng", d.capture)
	d.control.Do("/capture/end", d.endCapture)
	updatePage := d.serveHTTP()
	sweeper, slots := d.table.NewSweeper(), min(d.table.Slots()*int(sweepEvery)/int(time.Second)+1, sweepSlots)
	watched := make(chan struct{})
	tasks := []daemon.Task{
		daemon.LogStop(d.log),
		d.control.Run,
		d.http.Run,
		updatePage,
		daemon.Watchdog(d.log, d.control.Alive, daemon.Standstill(d.overruns, d.loops()...)),
		func(ctx context.Context) error {
			defer close(watched)
			return d.network.Watch(ctx)
		},
		hangup(func() { _, _ = d.reload() }), // who has sent the signal reads the log
		daemon.Every(sweepEvery, func() {
			sweeper.Sweep(d.now(), slots)
			d.shared.Sweep(d.now())
		}),
		d.watchPaths,
		d.monitor.Run,
		d.notifier.Run,
		func(ctx context.Context) error { // ends the workers, but first the routes that lead to them
			<-ctx.Done()
			<-watched
			return errors.Join(d.network.Close(), d.closeIO())
		},
	}
	for _, w := range d.workers {
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	for _, r := range d.relays {
		tasks = append(tasks, func(context.Context) error { return r.Run() })
	}
	d.log.Info("ready", "version", daemon.Version(), "tun", d.device.Name(), "queues", d.cfg.Queues, "offloads",
		d.device.Offloads(), "services", len(d.cfg.Services), "control", d.cfg.Control, "metrics",
		metrics.Name(d.cfg.Metrics))
	if err := daemon.Notify("READY=1"); err != nil {
		d.log.Warn("service manager not told that we are ready", "error", err)
	}
	err := daemon.Run(ctx, tasks...)
	if notify := daemon.Notify("STOPPING=1"); notify != nil {
		d.log.Warn("service manager not told that we stop", "error", notify)
	}
	return errors.Join(err, d.close())
}

// closeIO ends the workers.
func (d *director) closeIO() error {
	var errs []error
	if d.device != nil {
		errs = append(errs, d.device.Close())
	}
	if d.local != nil {
		errs = append(errs, d.local.Close())
	}
	for _, s := range d.senders {
		errs = append(errs, s.Close())
	}
	d.senders = nil
	for _, e := range d.errors {
		errs = append(errs, e.Close())
	}
	d.errors = nil
	return errors.Join(errs...)
}

// close undoes open, as far as open came. Routes go before the device, so that the kernel never answers for a VIP.
func (d *director) close() error {
	var errs []error
	if d.network != nil {
		errs = append(errs, d.network.Close())
	}
	errs = append(errs, d.closeIO())
	if d.pinger != nil {
		errs = append(errs, d.pinger.Close())
	}
	if d.control != nil {
		errs = append(errs, d.control.Close())
	}
	d.http.Close()
	d.flush()
	return errors.Join(errs...)
}

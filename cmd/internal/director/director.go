package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/forward"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/tundev"
)

// director is the running program.
type director struct {
	file    string
	log     *slog.Logger
	start   time.Time
	control *control.Server
	network *routing.Manager
	device  *tundev.Device
	senders []*wire.Sender
	table   *conntab.Table
	bal     *balancer.Balancer
	workers []*forward.Worker

	mu  sync.Mutex // reload
	cfg *config.Director
}

// open checks that the machine lets cfg run, and then, only then, makes what it needs. On an error nothing is left.
func open(file string, cfg *config.Director) (_ *director, err error) {
	if err := preflight(cfg); err != nil {
		return nil, err
	}
	d := &director{file: file, log: daemon.Logger(cfg.Log), start: time.Now(), cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.control, err = control.Listen(cfg.Control); err != nil {
		return nil, err
	}
	if d.network, err = routing.Open(strings.TrimSuffix(cfg.Control, ".sock")+".journal", d.log); err != nil {
		return nil, err
	}
	if d.device, err = tundev.Open(cfg.TUN, tundev.Options{Queues: cfg.Queues, Plain: !cfg.Offload}); err != nil {
		return nil, err
	}
	c := cfg.Connections
	d.table = conntab.New(conntab.Config{Max: c.Max, SloppyTCP: c.SloppyTCP, Timeouts: conntab.Timeouts(c.Timeouts)})
	d.bal = balancer.New(d.table, cfg.Queues)
	for i, q := range d.device.Queues() {
		s, err := wire.NewSender()
		if err != nil {
			return nil, err
		}
		d.senders = append(d.senders, s)
		d.workers = append(d.workers, forward.NewWorker(i, q, s, d.bal, d.now))
	}
	if err := d.bal.Apply(services(cfg)); err != nil {
		return nil, err
	}
	if err := d.network.Set(network(cfg)); err != nil {
		return nil, err
	}
	return d, nil
}

// preflight finds what would stop the director, without touching the machine.
func preflight(cfg *config.Director) error {
	if err := daemon.CheckPrivileges(); err != nil {
		return err
	}
	if taken, err := routing.LinkExists(cfg.TUN); err != nil {
		return err
	} else if taken {
		return fmt.Errorf("TUN device %s: there is a device of this name: set another one as tun, or remove it (ip link del %s)", cfg.TUN, cfg.TUN)
	}
	return checkVIPs(cfg)
}

// checkVIPs refuses VIPs that are addresses of this host: the kernel would take their packets itself.
func checkVIPs(cfg *config.Director) error {
	var errs []error
	for _, s := range cfg.Services {
		for _, vip := range s.VIPs {
			if link, local, err := routing.LocalAddr(vip); err != nil {
				errs = append(errs, err)
			} else if local {
				errs = append(errs, fmt.Errorf("service %q: VIP %s is an address of this host, on %s, so that its packets never reach the director: remove it there (ip addr del %s dev %s)", s.Name, vip, link, vip, link))
			}
		}
	}
	return errors.Join(errs...)
}

// network is the state of the machine that cfg needs: the VIPs lead into the TUN device. Its MTU is the largest, since the director itself
// knows what fits each tunnel.
func network(cfg *config.Director) routing.State {
	s := routing.State{
		Sysctls: []routing.Sysctl{
			{Key: "net/ipv4/ip_forward", Value: "1"},                                        // what comes in for a VIP goes on into the device
			{Key: "net/ipv6/conf/" + cfg.TUN + "/disable_ipv6", Value: "1", Optional: true}, // else the kernel greets neighbours that are not there
		},
		Links: []routing.Link{{Name: cfg.TUN, MTU: 65535, TxQueueLen: 1000, Up: true}},
	}
	seen := map[netip.Addr]bool{}
	for _, svc := range cfg.Services {
		for _, vip := range svc.VIPs {
			if !seen[vip] {
				seen[vip] = true
				s.Routes = append(s.Routes, routing.Route{Dst: netip.PrefixFrom(vip, vip.BitLen()), Link: cfg.TUN})
			}
		}
	}
	return s
}

// now is the time in the connection table's unit.
func (d *director) now() conntab.Ticks {
	return conntab.Ticks(time.Since(d.start) / (time.Second / conntab.PerSecond))
}

// sweepEvery is how often expired connections are looked for.
const sweepEvery = time.Second

// pathsEvery is how often the ways to the realservers are asked for again.
const pathsEvery = 10 * time.Second

// run works until ctx is cancelled, a signal comes or something fails, and leaves the machine as it was before open.
func (d *director) run(ctx context.Context) error {
	d.control.Answer("/status", func() (any, error) { return d.status(), nil })
	tasks := []daemon.Task{
		d.control.Run,
		d.network.Watch,
		daemon.OnHangup(d.reload),
		daemon.Every(sweepEvery, func() { d.table.Sweep(d.now()) }),
		daemon.Every(pathsEvery, d.refreshPaths),
		func(ctx context.Context) error { // ends the workers
			<-ctx.Done()
			d.closeIO()
			return nil
		},
	}
	for _, w := range d.workers {
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	d.log.Info("ready", "version", daemon.Version(), "tun", d.device.Name(), "queues", d.cfg.Queues, "offloads", d.device.Offloads(), "services", len(d.cfg.Services), "control", d.cfg.Control)
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
	for _, s := range d.senders {
		errs = append(errs, s.Close())
	}
	d.senders = nil
	return errors.Join(errs...)
}

// close undoes open, as far as open came. Routes go before the device, so that the kernel never answers for a VIP.
func (d *director) close() error {
	var errs []error
	if d.network != nil {
		errs = append(errs, d.network.Close())
	}
	errs = append(errs, d.closeIO())
	if d.control != nil {
		errs = append(errs, d.control.Close())
	}
	return errors.Join(errs...)
}

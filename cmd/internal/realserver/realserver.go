package realserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/tundev"
)

// agent is the running program.
type agent struct {
	cfg       *config.Realserver
	log       *slog.Logger
	flush     func() // of the log
	start     time.Time
	control   *control.Server
	network   *routing.Manager
	device    *tundev.Device
	receivers []receiver
	workers   []*endpoint.Worker
	mss       atomic.Int64 // what SYN-ACKs may advertise now
	quiet     bool         // the kernel's own driver is kept so
	noisy     bool         // that failed
}

// open checks that the machine lets cfg run, and then, only then, makes what it needs. On an error nothing is left.
func open(cfg *config.Realserver) (_ *agent, err error) {
	if err := daemon.CheckPrivileges(); err != nil {
		return nil, err
	}
	a := &agent{cfg: cfg, start: time.Now()}
	a.log, a.flush = daemon.Logger(cfg.Log)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	// First of all, since it tells whether another agent runs here, and clears away what a killed one has left.
	if a.network, err = routing.Open(strings.TrimSuffix(cfg.Control, ".sock")+".journal", a.log); err != nil {
		return nil, fmt.Errorf("control %s: %w", cfg.Control, err) // the key by which it is moved elsewhere
	}
	if err := preflight(cfg); err != nil {
		return nil, err
	}
	if a.control, err = control.Listen(cfg.Control); err != nil {
		return nil, err
	}
	if a.device, err = tundev.Open(cfg.TUN, tundev.Options{Queues: cfg.Queues * len(cfg.Encaps), Plain: !cfg.Offload}); err != nil {
		return nil, err
	}
	// From here on the kernel doesn't answer tunnel packets with "protocol unreachable"; they wait in the socket.
	policy := endpoint.NewPolicy(cfg.Directors, cfg.VIPs)
	for _, name := range cfg.Encaps {
		kind, _ := encap.ParseKind(name)
		receivers, err := receive(kind, cfg)
		if err != nil {
			return nil, err
		}
		for _, r := range receivers {
			queue := a.device.Queues()[len(a.workers)]
			a.receivers = append(a.receivers, r)
			a.workers = append(a.workers, endpoint.NewWorker(r, encap.Exit{Kind: kind}, queue, policy, &a.mss))
		}
	}
	a.keepQuiet()
	a.mss.Store(int64(mss(cfg)))
	if err := a.network.Set(network(cfg, int(a.mss.Load()))); err != nil {
		return nil, err
	}
	return a, nil
}

// receiver is a socket that tunnel packets come from.
type receiver interface {
	endpoint.Source
	Overruns() uint64
	Close() error
}

// receive opens the sockets for tunnels of a kind, as many as there are queues, each with its share of the flows. GRE has one: which bytes of a
// packet are the flow's, depends on its options.
func receive(kind encap.Kind, cfg *config.Realserver) (all []receiver, err error) {
	if kind.UDP() {
		udp, err := wire.NewUDPReceivers(cfg.EncapPort, cfg.Queues)
		for _, r := range udp {
			all = append(all, r)
		}
		return all, err
	}
	protocol, n := packet.ProtoIPIP, cfg.Queues
	if kind == encap.KindGRE {
		protocol, n = encap.ProtoGRE, 1
	}
	raw, err := wire.NewReceivers(protocol, n)
	for _, r := range raw {
		all = append(all, r)
	}
	return all, err
}

// preflight finds what would stop the agent, without touching the machine.
func preflight(cfg *config.Realserver) error {
	if taken, err := routing.LinkExists(cfg.TUN); err != nil {
		return err
	} else if taken {
		return fmt.Errorf("TUN device %s: there is a device of this name: set another one as tun, or remove it (ip link del %s)", cfg.TUN, cfg.TUN)
	}
	tunnels, err := routing.KernelTunnels()
	if err != nil {
		return err
	}
	for _, t := range tunnels {
		if t.Up {
			return fmt.Errorf("kernel tunnel %s is up and takes protocol 4, so that each packet would come in twice: set it down (ip link set %s down)", t.Name, t.Name)
		}
	}
	var errs []error
	for _, vip := range cfg.VIPs {
		if link, local, err := routing.LocalAddr(vip); err != nil {
			errs = append(errs, err)
		} else if local {
			errs = append(errs, fmt.Errorf("VIP %s is already an address of this host, on %s: the agent gives it to %s itself: remove it there (ip addr del %s dev %s)",
				vip, link, cfg.TUN, vip, link))
		}
	}
	return errors.Join(errs...)
}

// mss is what the host's SYN-ACKs may advertise, in bytes, so that clients' packets fit the tunnel.
func mss(cfg *config.Realserver) int {
	if cfg.MSS > 0 {
		return cfg.MSS
	}
	const headers = 20 + 20 // IPv4 and TCP, without options
	var directors []netip.Addr
	for _, d := range cfg.Directors {
		a := d.Addr()
		if !d.IsSingleIP() {
			a = a.Next() // the prefix's own address is no host's
		}
		directors = append(directors, a)
	}
	// What the way to a director takes is the best guess for what the way back takes. An error is no reason to stop: Ethernet's is taken.
	ways, _ := routing.Paths(directors)
	least := 0
	for _, way := range ways {
		if least == 0 || way.MTU < least {
			least = way.MTU
		}
	}
	if least == 0 {
		least = 1500
	}
	overhead := 0
	for _, name := range cfg.Encaps {
		kind, _ := encap.ParseKind(name)
		overhead = max(overhead, kind.Overhead4())
	}
	return max(least-overhead-headers, 88)
}

// network is the state of the machine that cfg needs.
func network(cfg *config.Realserver, mss int) routing.State {
	s := routing.State{
		Sysctls: []routing.Sysctl{
			{Key: "net/ipv6/conf/" + cfg.TUN + "/disable_ipv6", Value: "1", Optional: true}, // else the kernel greets neighbours that are not there
			// Clients' packets come in by the device, and the way back to the clients is another: loose. The kernel takes the larger
			// value of this and conf/all, and 2 is the largest.
			{Key: "net/ipv4/conf/" + cfg.TUN + "/rp_filter", Value: "2"},
			// Where director and realserver share a subnet, only the director may answer for the VIP.
			{Key: "net/ipv4/conf/all/arp_ignore", Value: "1", AtLeast: true},
			{Key: "net/ipv4/conf/all/arp_announce", Value: "2", AtLeast: true},
		},
		Links: []routing.Link{{Name: cfg.TUN, Up: true}},
	}
	if cfg.MSS != config.MSSOff {
		s.Replies = &routing.Replies{From: cfg.VIPs, Table: cfg.Table, Priority: cfg.Table, AdvMSS: mss}
	}
	for _, vip := range cfg.VIPs {
		s.Addrs = append(s.Addrs, routing.Addr{Link: cfg.TUN, Prefix: netip.PrefixFrom(vip, vip.BitLen())})
	}
	return s
}

// pathsEvery is how often the ways to the directors are asked for again.
const pathsEvery = 10 * time.Second

// run works until ctx is cancelled or something fails, and leaves the machine as it was before open.
func (a *agent) run(ctx context.Context) error {
	a.control.Answer("/status", func() (any, error) { return a.status(), nil })
	a.log.Info("ready", "version", daemon.Version(), "tun", a.device.Name(), "queues", a.cfg.Queues, "offloads", a.device.Offloads(), "vips", a.cfg.VIPs, "directors", a.cfg.Directors, "mss", a.mss.Load(), "control", a.cfg.Control)
	if err := daemon.Notify("READY=1"); err != nil {
		a.log.Warn("service manager not told that we are ready", "error", err)
	}
	watched := make(chan struct{})
	tasks := []daemon.Task{
		a.control.Run,
		func(ctx context.Context) error {
			defer close(watched)
			return a.network.Watch(ctx)
		},
		daemon.Every(pathsEvery, func() {
			a.refreshMSS()
			a.keepQuiet()
		}),
		func(ctx context.Context) error { // ends the workers
			<-ctx.Done()
			<-watched
			return errors.Join(a.network.Close(), a.closeIO())
		},
	}
	for _, q := range a.device.Queues() {
		tasks = append(tasks, func(context.Context) error { return discard(q) })
	}
	for _, w := range a.workers {
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	err := daemon.Run(ctx, tasks...)
	if notify := daemon.Notify("STOPPING=1"); notify != nil {
		a.log.Warn("service manager not told that we stop", "error", notify)
	}
	return errors.Join(err, a.close())
}

// discard reads what this host sends into its own device, where nothing goes on, until the device is closed; or removed, which it is the first
// to see.
func discard(q *tundev.Queue) error {
	bufs := packet.NewBufs(1)
	for {
		if _, err := q.ReadBatch(bufs); errors.Is(err, os.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// refreshMSS takes over what the kernel has learned about the ways to the directors.
func (a *agent) refreshMSS() {
	if now := mss(a.cfg); int64(now) != a.mss.Load() {
		if err := a.network.Set(network(a.cfg, now)); err != nil {
			a.log.Error("new MSS not taken over", "mss", now, "error", err)
			return
		}
		a.log.Info("the ways to the directors have changed", "mss", now)
		a.mss.Store(int64(now))
	}
}

func (a *agent) status() control.RealserverStatus {
	var t packet.Tally
	overruns := uint64(0)
	for i, w := range a.workers {
		w.Read(&t)
		overruns += a.receivers[i].Overruns()
	}
	st := control.RealserverStatus{Program: "realserver", Version: daemon.Version(), Pid: os.Getpid(), Uptime: time.Since(a.start).Seconds(),
		TUN: a.device.Name(), Queues: len(a.workers), Offloads: a.device.Offloads(), MSS: int(a.mss.Load()),
		In:  control.Traffic{Packets: t.InPackets, Bytes: t.InBytes},
		Out: control.Traffic{Packets: t.OutPackets, Bytes: t.OutBytes}, Drops: control.Drops(&t), Overruns: overruns}
	for _, v := range a.cfg.VIPs {
		st.VIPs = append(st.VIPs, v.String())
	}
	for _, d := range a.cfg.Directors {
		st.Directors = append(st.Directors, d.String())
	}
	return st
}

// closeIO ends the workers.
func (a *agent) closeIO() error {
	var errs []error
	for _, r := range a.receivers {
		if err := r.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if a.device != nil {
		errs = append(errs, a.device.Close())
	}
	return errors.Join(errs...)
}

// close undoes open, as far as open came.
func (a *agent) close() error {
	var errs []error
	if a.network != nil {
		errs = append(errs, a.network.Close())
	}
	errs = append(errs, a.closeIO(), a.endQuiet())
	if a.control != nil {
		errs = append(errs, a.control.Close())
	}
	a.flush()
	return errors.Join(errs...)
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/reload"
	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/tundev"
)

// agent is the running program.
type agent struct {
	file      string
	log       *slog.Logger
	level     slog.LevelVar
	flush     func() // of the log
	start     time.Time
	control   *control.Server
	http      *metrics.Server
	network   *routing.Manager
	device    *tundev.Device
	receivers wire.Receivers
	senders   []io.Closer                     // of answers
	policy    atomic.Pointer[endpoint.Policy] // made from setup and own
	workers   []*endpoint.Worker
	answers   []*endpoint.AnswerWorker
	questions chan endpoint.Asked // of directors
	directors heard               // packets by outer source
	strangers heard               // refused packets by outer source
	absent    heard               // refused packets by inner destination
	reloader  *reload.Reloader

	mu     sync.Mutex // of a reload, and of what is done when the machine has changed
	setup  atomic.Pointer[setup]
	own    []netip.Addr // addresses of this host
	quiet  bool         // keepQuiet silences the kernel's own driver
	warned string       // the last warning about drivers that it can't silence
}

// setup is the configuration in force, and the MSS that SYN-ACKs may advertise under it. It is immutable.
type setup struct {
	cfg        *config.Realserver
	mss4, mss6 int
}

// open checks that the machine lets cfg run, and then, only then, makes what it needs. On an error nothing is left.
func open(file string, cfg *config.Realserver) (_ *agent, err error) {
	if err := daemon.CheckPrivileges(); err != nil {
		return nil, err
	}
	a := &agent{file: file, start: time.Now(), http: metrics.NewServer(),
		directors: heard{of: (*endpoint.Worker).Directors},
		strangers: heard{of: (*endpoint.Worker).Strangers}, absent: heard{of: (*endpoint.Worker).Destinations}}
	a.level.Set(cfg.Log)
	a.log, a.flush = daemon.Logger(&a.level)
	a.reloader = reload.New("agent", file, a.start, a.log)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	// First of all, since it reports whether another agent runs here, and clears away what a killed one has left.
	if a.network, err = routing.Open(strings.TrimSuffix(cfg.Control, ".sock")+".journal", a.log); err != nil {
		if used, ok := errors.AsType[*routing.InUseError](err); ok {
			return nil, fmt.Errorf("an agent runs already (process %s, control socket %s): stop it, or set another "+
				"path as control", used.PID, cfg.Control)
		}
		return nil, fmt.Errorf("control %s: %w", cfg.Control, err) // the key by which it is moved elsewhere
	}
	if err := preflight(cfg); err != nil {
		return nil, err
	}
	if a.control, err = control.Listen(cfg.Control); err != nil {
		return nil, err
	}
	l, err := a.http.Bind(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	a.http.Use(l, cfg.Metrics)
	if a.device, err = tundev.Open(cfg.TUN, tundev.Options{Queues: cfg.Queues, Plain: !cfg.Offload}); err != nil {
		return nil, err
	}
	// From here on the kernel doesn't answer tunnel packets with "protocol unreachable"; they wait in the sockets.
	if a.receivers, err = wire.NewReceivers(cfg.Queues, sockets(cfg)...); err != nil {
		return nil, err
	}
	// A reload may need them, and can open no raw socket itself.
	if err := a.receivers.Spare(spareSockets()...); err != nil {
		return nil, err
	}
	a.questions = make(chan endpoint.Asked, questionsWaiting)
	for i, r := range a.receivers {
		a.workers = append(a.workers, endpoint.NewWorker(r, a.device.Queues()[i], &a.policy, a.device.Offloads() != ""))
		a.workers[i].SendQuestions(a.questions)
	}
	if err := a.openAnswers(); err != nil {
		return nil, err
	}
	// an agent that was killed has left it, and this one may have no use for it
	if err := routing.Unquiet(); err != nil {
		return nil, err
	}
	if a.own, err = routing.LocalAddrs(); err != nil {
		return nil, err
	}
	v4, v6, _ := mss(cfg)
	a.enforce(&setup{cfg, v4, v6})
	a.keepQuiet()
	if err := a.network.Set(network(cfg, v4, v6)); err != nil {
		return nil, err
	}
	// The sockets are open. Routes and addresses still change: by a reload, when others change them, and at the end.
	if err := daemon.KeepOnly(unix.CAP_NET_ADMIN); err != nil {
		a.log.Warn("cannot drop all capabilities", "refused", err)
	}
	daemon.WarnUnreadable(a.log, file)
	daemon.LogWarnings(a.log, cfg.Warnings)
	return a, nil
}

// openAnswers opens a worker for each queue of the device. Their sockets are of both families, whatever the VIPs are.
func (a *agent) openAnswers() error {
	port, socket, err := wire.DevicePort(a.device.Name())
	if err != nil {
		return err
	}
	a.senders = append(a.senders, socket)
	sent := endpoint.NewSent()
	for _, q := range a.device.Queues() {
		s, err := wire.NewAnswerSender()
		if err != nil {
			return err
		}
		a.senders = append(a.senders, s)
		a.answers = append(a.answers, endpoint.NewAnswerWorker(q, s, q.Writer(), &a.policy, sent, port))
	}
	return nil
}

// enforce puts s in force for the workers and the status. The caller sets the machine. After the start a.mu is held.
func (a *agent) enforce(s *setup) {
	a.setup.Store(s)
	a.policy.Store(endpoint.NewPolicy(endpoint.Rules{Directors: s.cfg.Directors, VIPs: s.cfg.VIPs,
		Decapsulators: decapsulators(s.cfg), Port: s.cfg.EncapPort, LocalAddrs: a.own, MSS4: s.mss4, MSS6: s.mss6}))
}

// needsIPv6 is the first VIP or director in cfg with an IPv6 address, "" where there is none.
func needsIPv6(cfg *config.Realserver) string {
	for _, vip := range cfg.VIPs {
		if vip.Is6() {
			return fmt.Sprintf("VIP %s", vip)
		}
	}
	for a := range directors(cfg) {
		if a.Is6() {
			return fmt.Sprintf("director %s", a)
		}
	}
	return ""
}

// decapsulators returns a decapsulator for each kind of tunnel of cfg.
func decapsulators(cfg *config.Realserver) (all []encap.Decapsulator) {
	for _, name := range cfg.Encaps {
		kind, _ := encap.ParseKind(name)
		e := encap.Decapsulator{Kind: kind}
		if kind == encap.KindGRE {
			e.Key, e.HasKey = cfg.Key, cfg.HasKey
		}
		all = append(all, e)
	}
	return all
}

// hasFamilies tells which families addrs are of.
func hasFamilies(addrs iter.Seq[netip.Addr]) (v4, v6 bool) {
	for a := range addrs {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return v4, v6
}

// directors are the addresses and prefixes' addresses in cfg.
func directors(cfg *config.Realserver) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, d := range cfg.Directors {
			if !yield(d.Addr()) {
				return
			}
		}
	}
}

// sockets are what the tunnels of cfg come by: over the directors' families, and with protocols 4 and 41 for the VIPs'.
func sockets(cfg *config.Realserver) (all []wire.Socket) {
	vip4, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	over4, over6 := hasFamilies(directors(cfg))
	for _, six := range []bool{false, true} {
		if six && !over6 || !six && !over4 {
			continue
		}
		for _, e := range decapsulators(cfg) {
			switch {
			case e.Kind.UDP():
				all = append(all, wire.Socket{Protocol: packet.ProtoUDP, Over6: six, Port: cfg.EncapPort})
			case e.Kind == encap.KindGRE:
				all = append(all, wire.Socket{Protocol: packet.ProtoGRE, Over6: six})
			default:
				if vip4 {
					all = append(all, wire.Socket{Protocol: packet.ProtoIPIP, Over6: six})
				}
				if vip6 {
					all = append(all, wire.Socket{Protocol: packet.ProtoIPv6, Over6: six})
				}
			}
		}
	}
	return all
}

// spareSockets are the raw sockets of all tunnels.
func spareSockets() (all []wire.Socket) {
	for _, over6 := range []bool{false, true} {
		for _, protocol := range []uint8{packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE} {
			all = append(all, wire.Socket{Protocol: protocol, Over6: over6})
		}
	}
	return all
}

// kernelTunnels are the kernel's devices that take what is for the sockets of cfg.
func kernelTunnels(cfg *config.Realserver) ([]routing.Tunnel, error) {
	protocols := map[bool][]uint8{}
	for _, s := range sockets(cfg) {
		protocols[s.Over6] = append(protocols[s.Over6], s.Protocol)
	}
	var all []routing.Tunnel
	for _, over6 := range []bool{false, true} {
		list, err := routing.KernelTunnels(over6, protocols[over6]...)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// preflight finds what would stop the agent, without touching the machine.
func preflight(cfg *config.Realserver) error {
	if taken, err := routing.LinkExists(cfg.TUN); err != nil {
		return err
	} else if taken {
		return fmt.Errorf("TUN device %s: there is a device of this name: set another one as tun, or remove it (ip "+
			"link del %s)", cfg.TUN, cfg.TUN)
	}
	return checkMachine(cfg, nil)
}

// checkMachine returns what on this machine conflicts with cfg. The agent already owns the VIPs in had.
func checkMachine(cfg *config.Realserver, had []netip.Addr) error {
	if need := needsIPv6(cfg); need != "" && !routing.HasIPv6() {
		return fmt.Errorf("%s: this kernel has no IPv6: leave it out, or boot without ipv6.disable=1", need)
	}
	if err := otherTunnels(cfg); err != nil {
		return err
	}
	var errs []error
	for _, vip := range cfg.VIPs {
		if slices.Contains(had, vip) {
			continue
		}
		if link, local, err := routing.LocalAddr(vip); err != nil {
			errs = append(errs, err)
		} else if local {
			errs = append(errs, fmt.Errorf("VIP %s is already an address of this host, on %s: the agent gives it to "+
				"%s itself: remove it there (ip addr del %s dev %s)",
				vip, link, cfg.TUN, vip, link))
		}
	}
	return errors.Join(errs...)
}

// otherTunnels refuses a tunnel device of the kernel that takes the same packets as the agent.
func otherTunnels(cfg *config.Realserver) error {
	tunnels, err := kernelTunnels(cfg)
	if err != nil {
		return err
	}
	for _, t := range tunnels {
		if t.Up && (!t.Remote.IsValid() || slices.ContainsFunc(cfg.Directors,
			func(d netip.Prefix) bool { return d.Contains(t.Remote) })) {
			return fmt.Errorf("kernel tunnel %s is up and takes protocol %d, so that each packet would come in "+
				"twice: set it down (ip link set %s down)",
				t.Name, t.Protocols[0], t.Name)
		}
	}
	return nil
}

// obstacles is what preflight finds; while an agent runs, which has the device and the VIPs, what it would find beside
// them.
func obstacles(cfg *config.Realserver, running bool) error {
	if running {
		return otherTunnels(cfg)
	}
	return preflight(cfg)
}

// mss is what the host's SYN-ACKs may advertise over IPv4 and over IPv6, in bytes, so that clients' packets fit the
// tunnel. known is false for a guess: that the ways to the directors, none of which is known, are Ethernet's.
func mss(cfg *config.Realserver) (v4, v6 int, known bool) {
	if cfg.MSS > 0 {
		return cfg.MSS, cfg.MSS, true
	}
	const headers4, headers6 = 20 + 20, 40 + 20 // IP and TCP, without options
	var asked []netip.Addr
	for _, d := range cfg.Directors {
		a := d.Addr()
		if !d.IsSingleIP() {
			a = a.Next() // the prefix's own address is no host's
		}
		asked = append(asked, a)
	}
	// What the way to a director takes is the best guess for what the way back takes. An error is no reason to stop.
	ways, _ := routing.Paths(asked)
	least := 0
	for _, a := range asked {
		mtu := 1500
		if way, ok := ways[a]; ok {
			mtu = way.MTU
		} else if len(ways) > 0 {
			continue
		}
		if room := mtu - overhead(cfg, a.Is6()); least == 0 || room < least {
			least = room
		}
	}
	const smallest = 88 // TCP_MIN_MSS of Linux
	return max(least-headers4, smallest), max(least-headers6, smallest), len(ways) > 0
}

// overhead is the most that the tunnels of cfg add to a packet, in bytes. Directors may give GRE a checksum.
func overhead(cfg *config.Realserver, over6 bool) (n int) {
	for _, e := range decapsulators(cfg) {
		n = max(n, e.Kind.Overhead4())
		if e.Kind == encap.KindGRE {
			n = max(n, e.Kind.Overhead4()+greOption)
			if e.HasKey {
				n = max(n, e.Kind.Overhead4()+2*greOption)
			}
		}
	}
	if over6 {
		n += packet.IPv6HeaderLen - packet.IPv4HeaderLen
	}
	return n
}

// greOption is the length of GRE's checksum, and of its key, in bytes (RFC 2784, RFC 2890).
const greOption = 4

// network is the state of the machine that cfg needs.
func network(cfg *config.Realserver, mss4, mss6 int) routing.State {
	_, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	s := routing.State{Links: []routing.Link{{Name: cfg.TUN, Up: true}}}
	if conf := "net/ipv6/conf/" + cfg.TUN; vip6 {
		s.Sysctls = append(s.Sysctls,
			// no link-local address, and no router solicitations
			routing.Sysctl{Key: conf + "/addr_gen_mode", Value: "1", Cosmetic: true},
			routing.Sysctl{Key: conf + "/accept_ra", Value: "0", Cosmetic: true},
			routing.Sysctl{Key: conf + "/disable_ipv6", Value: "0"})
	} else {
		s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: conf + "/disable_ipv6", Value: "1", Optional: true,
			Cosmetic: true})
	}
	s.Loose = []string{cfg.TUN} // clients' packets come in by the device, and the way back to the clients is another
	s.Sysctls = append(s.Sysctls,
		// Where director and realserver share a subnet, only the director may answer for the VIP. IPv6 answers for none
		// but the device's own.
		routing.Sysctl{Key: "net/ipv4/conf/all/arp_ignore", Value: "1", AtLeast: true},
		routing.Sysctl{Key: "net/ipv4/conf/all/arp_announce", Value: "2", AtLeast: true})
	if cfg.MSS != config.MSSOff {
		s.Replies = &routing.Replies{From: cfg.VIPs, Table: cfg.Table, Priority: cfg.Table, AdvMSS: mss4, AdvMSS6: mss6,
			Bound: cfg.TUN}
		s.Routes = boundRoutes(cfg, mss4, mss6)
	}
	for _, vip := range cfg.VIPs {
		s.Addrs = append(s.Addrs, routing.Addr{Link: cfg.TUN, Prefix: netip.PrefixFrom(vip, vip.BitLen())})
	}
	return s
}

// boundRoutes lead the answers of sockets that are bound to the device into it. Without a route the kernel learns no
// path MTU of their clients, and over IPv6 sends nothing.
func boundRoutes(cfg *config.Realserver, mss4, mss6 int) (all []routing.Route) {
	const mtu = 1500 // of a TUN device
	to := routing.Route{Link: cfg.TUN, Table: cfg.Table + 1}
	vip4, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	if vip4 {
		to.Dst, to.AdvMSS = netip.PrefixFrom(netip.IPv4Unspecified(), 0), min(mss4, mtu-40)
		all = append(all, to)
	}
	if vip6 {
		to.Dst, to.AdvMSS = netip.PrefixFrom(netip.IPv6Unspecified(), 0), min(mss6, mtu-60)
		all = append(all, to)
	}
	return all
}

// pathsEvery is how often the ways to the directors, and this host's addresses, are asked for again when the kernel
// reports no change.
const pathsEvery = 10 * time.Second

// run works until ctx is cancelled or something fails, and leaves the machine as it was before open.
func (a *agent) run(ctx context.Context, hangup func(fn func()) daemon.Task) error {
	a.control.Answer("/status", func() (any, error) { return a.status(), nil })
	a.control.Lives(func() { a.status() })
	a.control.Do("/reload", func() (any, error) {
		lines, err := a.reload()
		return control.Reload{Changes: lines}, err
	})
	a.serveHTTP()
	s := a.setup.Load()
	a.log.Info("ready", "version", daemon.Version(), "tun", a.device.Name(), "queues", s.cfg.Queues,
		"offloads", a.device.Offloads(), "vips", s.cfg.VIPs, "directors", s.cfg.Directors,
		"mss", s.mss4, "mss6", s.mss6, "control", s.cfg.Control, "metrics", metrics.Name(s.cfg.Metrics))
	if err := daemon.Notify("READY=1"); err != nil {
		a.log.Warn("service manager not told that we are ready", "error", err)
	}
	watched := make(chan struct{})
	// A socket counts as overruns also what has a wrong checksum: they tell nothing of the workers.
	tasks := []daemon.Task{
		daemon.LogStop(a.log),
		a.control.Run,
		a.http.Run,
		daemon.Watchdog(a.log, a.control.Alive, daemon.Standstill(nil, a.loops()...)),
		func(ctx context.Context) error {
			defer close(watched)
			return a.network.Watch(ctx)
		},
		a.watch,
		daemon.Every(heardEvery, a.hear),
		func(ctx context.Context) error { return answerQuestions(ctx, a.questions, a.status) },
		hangup(func() { _, _ = a.reload() }), // the log has the result
		func(ctx context.Context) error { // ends the workers
			<-ctx.Done()
			<-watched
			return errors.Join(a.network.Close(), a.closeIO())
		},
	}
	for _, w := range a.workers {
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	for _, w := range a.answers { // the first to see that the device has been removed
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	err := daemon.Run(ctx, tasks...)
	if notify := daemon.Notify("STOPPING=1"); notify != nil {
		a.log.Warn("service manager not told that we stop", "error", notify)
	}
	return errors.Join(err, a.close())
}

// watch refreshes when the machine has changed, so that a new address of this host is soon nobody else's.
func (a *agent) watch(ctx context.Context) error {
	t := time.NewTicker(pathsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-a.network.Changed(): // once a second at the most
		}
		a.mu.Lock()
		a.refresh()
		a.keepQuiet()
		a.mu.Unlock()
	}
}

// refresh takes over the MTU of the paths to the directors, and the addresses of this host. a.mu is held.
func (a *agent) refresh() {
	if own, err := routing.LocalAddrs(); err != nil {
		a.log.Error("this host's addresses not taken over", "error", err)
	} else {
		a.own = own
	}
	is := *a.setup.Load()
	defer func() { a.enforce(&is) }()
	v4, v6, known := mss(is.cfg)
	if !known || v4 == is.mss4 && v6 == is.mss6 {
		return
	}
	if err := a.network.Set(network(is.cfg, v4, v6)); err != nil {
		a.log.Error("new MSS not taken over", "mss", v4, "mss6", v6, "error", err)
		return
	}
	a.log.Info("the ways to the directors have changed", "mss", v4, "mss6", v6)
	is.mss4, is.mss6 = v4, v6
}

// hear updates the times of addresses whose packets have come since its last call.
func (a *agent) hear() {
	for _, h := range []*heard{&a.directors, &a.strangers, &a.absent} {
		h.look(a.workers, time.Now())
	}
}

func (a *agent) status() control.RealserverStatus {
	var t, answers stats.Tally
	var merged, questions uint64
	for _, w := range a.workers {
		w.Read(&t)
		merged += w.Merged()
		questions += w.Questions()
	}
	now, s := time.Now(), a.setup.Load()
	st := control.RealserverStatus{Program: "realserver", Version: daemon.Version(), Pid: os.Getpid(),
		Uptime: time.Since(a.start).Seconds(),
		TUN:    a.device.Name(), Queues: len(a.workers), Offloads: a.device.Offloads(), MSS: s.mss4, MSS6: s.mss6,
		Configuration: a.reloader.Configuration(),
		In:            control.Traffic{Packets: t.InPackets, Bytes: t.InBytes},
		Out:           control.Traffic{Packets: t.OutPackets, Bytes: t.OutBytes}, Merged: merged,
		Overruns: a.overruns(),
		Encap:    s.cfg.Encaps, Questions: questions, FromDirectors: a.directors.look(a.workers, now),
		RefusedSources: a.strangers.look(a.workers, now), RefusedDestinations: a.absent.look(a.workers, now)}
	for _, w := range a.answers {
		w.Read(&answers)
		if err := w.LastError(); err != nil {
			st.SendError = err.Error()
		}
	}
	st.Answers = control.Traffic{Packets: answers.OutPackets, Bytes: answers.OutBytes}
	for d, n := range answers.Drops {
		t.Drops[d] += n
	}
	st.Drops = control.Drops(&t)
	if slices.ContainsFunc(decapsulators(s.cfg), func(e encap.Decapsulator) bool { return e.Kind.UDP() }) {
		st.EncapPort = s.cfg.EncapPort
	}
	for _, v := range s.cfg.VIPs {
		st.VIPs = append(st.VIPs, v.String())
	}
	for _, d := range s.cfg.Directors {
		st.Directors = append(st.Directors, d.String())
	}
	return st
}

// overruns is the packets that the kernel dropped because no worker took them, from the sockets or from the device.
func (a *agent) overruns() uint64 {
	n, _ := routing.Dropped(a.device.Name()) // an error: the device is gone
	for _, r := range a.receivers {
		n += r.Overruns()
	}
	return n
}

// loops are the workers' for the watchdog.
func (a *agent) loops() (all []daemon.Loop) {
	for _, w := range a.workers {
		all = append(all, w.Batches())
	}
	for _, w := range a.answers {
		all = append(all, w.Batches())
	}
	return all
}

// closeIO ends the workers.
func (a *agent) closeIO() error {
	errs := []error{a.receivers.Close()}
	for _, s := range a.senders {
		if err := s.Close(); !errors.Is(err, os.ErrClosed) {
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
	a.http.Close()
	a.flush()
	return errors.Join(errs...)
}

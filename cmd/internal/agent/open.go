package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/ping"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/tunnel"
	"vstun/encap/endpoint"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/routing/query"
	"vstun/tundev"
)

// open checks that the agent can run with cfg on this host, and then opens and sets up what cfg needs. On an error it
// leaves nothing behind.
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
	// This comes first: it fails if another agent runs here, and undoes the changes of one that was killed.
	if a.network, err = routing.Open(strings.TrimSuffix(cfg.Control, ".sock")+".journal", a.log); err != nil {
		if used, ok := errors.AsType[*routing.InUseError](err); ok {
			return nil, fmt.Errorf("an agent runs already (process %s, control socket %s): stop it, or set another "+
				"path as control", used.PID, cfg.Control)
		}
		return nil, fmt.Errorf("control %s: %w", cfg.Control, err) // the journal lies beside the socket
	}
	if err := preflight(cfg); err != nil {
		return nil, err
	}
	if a.control, err = api.Listen(cfg.Control); err != nil {
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
	if err := a.openReceivers(cfg); err != nil {
		return nil, err
	}
	if err := a.openTunnels(cfg); err != nil {
		return nil, err
	}
	a.openWorkers(cfg)
	if err := a.openAnswers(); err != nil {
		return nil, err
	}
	if a.own, err = query.HostAddrs(); err != nil {
		return nil, err
	}
	a.fast.load(a.log, cfg)
	if err := a.openChances(cfg); err != nil {
		return nil, err
	}
	v4, v6, _ := mss(cfg, nil)
	a.enforce(&setup{cfg, v4, v6})
	if err := a.network.Set(network(cfg, v4, v6)); err != nil {
		return nil, err
	}
	a.fast.follow() // the device is up
	if err := a.startTunnels(cfg); err != nil {
		return nil, err
	}
	a.warnLoudDrivers()
	a.dropPrivileges()
	a.warnOf(cfg, file)
	return a, nil
}

// openReceivers opens the sockets of tunnels. From here on the kernel doesn't answer tunnel packets with "protocol
// unreachable"; they wait in the sockets. A reload may need spare ones, and has no right to open raw sockets.
func (a *agent) openReceivers(cfg *config.Realserver) (err error) {
	if a.receivers, err = wire.NewReceivers(cfg.Queues, allSockets(cfg)...); err != nil {
		return err
	}
	return a.receivers.Spare(tunnel.SpareSockets()...)
}

// warnOf logs what cfg could be warned about. file is the configuration's file.
func (a *agent) warnOf(cfg *config.Realserver, file string) {
	daemon.WarnUnreadable(a.log, "the configuration file", file)
	if cfg.WireGuard.On {
		daemon.WarnUnreadable(a.log, "private_key of wireguard", cfg.WireGuard.KeyFile)
	}
	if cfg.SecondChance.On {
		daemon.WarnUnreadable(a.log, "key of second_chance", cfg.SecondChance.KeyFile)
	}
	daemon.LogWarnings(a.log, cfg.Warnings)
}

// dropPrivileges gives up what open needed. The sockets are open. Routes, addresses and the fast path's devices still
// change: by a reload, with the host's network, and at the end.
func (a *agent) dropPrivileges() {
	var err error
	if a.fast.needsCapability() {
		err = daemon.KeepOnly(unix.CAP_NET_ADMIN, unix.CAP_BPF)
	} else {
		err = daemon.KeepOnly(unix.CAP_NET_ADMIN)
	}
	if err != nil {
		a.log.Warn("cannot drop all capabilities", "refused", err)
	}
}

// openTunnels opens what point-to-point tunnels need, and the sockets of WireGuard.
func (a *agent) openTunnels(cfg *config.Realserver) (err error) {
	if err := a.sealed.open(&cfg.WireGuard, a.device.Queues()[0], a.device.Offloads() != ""); err != nil {
		return err
	}
	if a.pinger, err = ping.NewPinger(); err != nil {
		return err
	}
	a.tunnels, err = tunnel.Open(tunnel.Options{Log: a.log, Control: cfg.Control, Queues: cfg.Queues,
		Offload: cfg.Offload, Sources: cfg.Queues + 1, Learn: true, Sealed: a.sealed.device, Pinger: a.pinger})
	if err != nil {
		return err
	}
	a.sealed.inbound.Store(a.tunnels.Inbound(cfg.Queues, nil))
	return nil
}

// startTunnels puts the peers of WireGuard in force, and point-to-point tunnels.
func (a *agent) startTunnels(cfg *config.Realserver) error {
	if err := a.sealed.set(&cfg.WireGuard); err != nil {
		return err
	}
	return a.tunnels.Apply(cfg.Tunnels, encapPort(cfg))
}

// openWorkers makes a worker for each receiver, and one for the packets that WireGuard brings. Packets of
// point-to-point tunnels do not get to them.
func (a *agent) openWorkers(cfg *config.Realserver) {
	a.questions = make(chan endpoint.Asked, questionsWaiting)
	merge := a.device.Offloads() != ""
	for i, r := range a.receivers {
		w := endpoint.NewWorker(a.tunnels.Inbound(i, r), a.device.Queues()[i], &a.policy, merge)
		w.SendQuestions(a.questions)
		a.workers = append(a.workers, w)
	}
	if a.sealed.device != nil {
		a.workers = append(a.workers, a.sealed.worker)
	}
}

// openChances makes the workers of the sockets give second chances, if cfg has them, also after a reload. They send by
// the sockets of the answer workers.
func (a *agent) openChances(cfg *config.Realserver) error {
	device, err := net.InterfaceByName(a.device.Name())
	if err != nil {
		return err
	}
	c := &a.chances
	c.log, c.device, c.own = a.log, device.Index, a.own
	for i := range a.receivers {
		c.workers = append(c.workers, a.workers[i])
		c.senders = append(c.senders, a.answerSenders[i].Share())
	}
	return c.set(cfg.SecondChance, cfg.EncapPort)
}

// openAnswers opens an answer worker for each queue of the device. Their sockets are of both families, whatever the
// VIPs are.
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
		a.senders, a.answerSenders = append(a.senders, s), append(a.answerSenders, s)
		a.answers = append(a.answers, endpoint.NewAnswerWorker(q, s, q.Writer(), &a.policy, sent, port))
	}
	return nil
}

// closeIO ends the workers.
func (a *agent) closeIO() error {
	errs := []error{a.receivers.Close(), a.sealed.close()}
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

// close undoes open, also if open has failed half-way.
func (a *agent) close() error {
	a.fast.close()
	var errs []error
	if a.network != nil {
		errs = append(errs, a.network.Close())
	}
	if a.tunnels != nil {
		errs = append(errs, a.tunnels.Close())
	}
	if a.pinger != nil {
		errs = append(errs, a.pinger.Close())
	}
	errs = append(errs, a.closeIO(), a.chances.close())
	if a.control != nil {
		errs = append(errs, a.control.Close())
	}
	a.http.Close()
	a.flush()
	return errors.Join(errs...)
}

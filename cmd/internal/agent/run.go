package agent

import (
	"context"
	"errors"
	"net/url"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/encap/bpf"
	"vstun/routing/query"
)

// pathsEvery is how often the agent looks up the paths to the directors and this host's addresses when the kernel
// reports no change.
const pathsEvery = 10 * time.Second

// run works until ctx is cancelled or a task fails. It leaves the host's network as it was before open.
func (a *agent) run(ctx context.Context, hangup func(fn func()) daemon.Task) error {
	a.control.Handle("GET /status", api.JSON(func(url.Values) (any, error) { return a.status(), nil }))
	a.control.Handle("GET /alive", api.Alive(func() { a.status() }))
	a.control.Handle("POST /reload", api.JSON(func(url.Values) (any, error) {
		lines, err := a.reload()
		return api.Reload{Changes: lines}, err
	}))
	a.serveHTTP()
	s := a.setup.Load()
	a.log.Info("ready", "version", daemon.Version(), "tun", a.device.Name(), "queues", s.cfg.Queues,
		"offloads", a.device.Offloads(), "vips", s.cfg.VIPs, "directors", s.cfg.Directors,
		"mss", s.mss4, "mss6", s.mss6, "fast_path", a.fast.status(bpf.Taken{}).On, "control", s.cfg.Control,
		"metrics", metrics.Name(s.cfg.Metrics))
	if err := daemon.Notify("READY=1"); err != nil {
		a.log.Warn("sd_notify failed", "error", err)
	}
	watched := make(chan struct{})
	// A socket counts packets with a wrong checksum as overruns, too: overruns do not show that workers are stuck.
	tasks := []daemon.Task{
		daemon.LogStop(a.log),
		a.control.Run,
		a.http.Run,
		daemon.Watchdog(a.log, a.control.CheckAlive, daemon.Standstill(nil, a.loops()...)),
		func(ctx context.Context) error {
			defer close(watched)
			return a.network.Watch(ctx)
		},
		a.watch,
		a.fast.run,
		a.sealed.run,
		a.tunnels.Run,
		daemon.Every(heardEvery, a.hear),
		func(ctx context.Context) error { return answerQuestions(ctx, a.questions, a.status) },
		hangup(func() { _, _ = a.reload() }), // the log has the result
		func(ctx context.Context) error { // ends the workers
			<-ctx.Done()
			<-watched
			a.fast.close() // before the VIPs and the device go
			return errors.Join(a.network.Close(), a.closeIO())
		},
	}
	for _, w := range a.workers {
		if w != a.sealed.worker {
			tasks = append(tasks, func(context.Context) error { return w.Run() })
		}
	}
	for _, w := range a.answers { // the first to see that the device has been removed
		tasks = append(tasks, func(context.Context) error { return w.Run() })
	}
	err := daemon.Run(ctx, tasks...)
	if notify := daemon.Notify("STOPPING=1"); notify != nil {
		a.log.Warn("sd_notify failed", "error", notify)
	}
	return errors.Join(err, a.close())
}

// loops returns the workers' loops for the watchdog.
func (a *agent) loops() (all []daemon.Loop) {
	for _, w := range a.workers {
		all = append(all, w.Batches())
	}
	for _, w := range a.answers {
		all = append(all, w.Batches())
	}
	return all
}

// watch refreshes when the host's network has changed, so that a new address of this host soon counts as its own.
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
		a.warnLoudDrivers()
		a.mu.Unlock()
	}
}

// refresh looks up the MTU of the paths to the directors and the addresses of this host, and applies them. a.mu is
// held.
func (a *agent) refresh() {
	if own, err := query.HostAddrs(); err != nil {
		a.log.Error("cannot list this host's addresses", "error", err)
	} else {
		a.own = own
	}
	a.chances.follow(a.own)
	is := *a.setup.Load()
	defer func() { a.enforce(&is) }()
	v4, v6, known := mss(is.cfg, a.sealed.endpoints())
	if !known || v4 == is.mss4 && v6 == is.mss6 {
		return
	}
	if err := a.network.Set(network(is.cfg, v4, v6)); err != nil {
		a.log.Error("cannot apply a new MSS", "mss", v4, "mss6", v6, "error", err)
		return
	}
	a.log.Info("paths to the directors changed", "mss", v4, "mss6", v6)
	is.mss4, is.mss6 = v4, v6
}

// hear updates the times of the addresses with packets since its last call, and gives the fast path the directors among
// them.
func (a *agent) hear() {
	for _, h := range []*heard{&a.strangers, &a.absent} {
		h.look(a.workers, nil, time.Now())
	}
	directors := a.directors.look(a.workers, a.taken(), time.Now())
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fast.hear(directors)
}

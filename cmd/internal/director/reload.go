package director

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/routing"
)

// reload reads the configuration file again and puts it in force, and returns what has changed. A fault changes
// nothing. The log says the same.
func (d *director) reload() ([]control.Change, error) {
	d.reloads.Lock()
	defer d.reloads.Unlock()
	read := time.Now()
	was, set := d.cfg, d.weights() // only a reload changes the one, and it keeps operators from changing the other
	cfg, err := load(d.file)
	if err == nil {
		err = checkAddresses(cfg)
	}
	if err == nil {
		err = d.apply(cfg)
	}
	if errors.Is(err, routing.ErrClosed) {
		d.log.Info("reload given up: the director is ending")
		return nil, errors.New("nothing changed: the director is ending")
	}
	if err != nil {
		d.log.Error("reload: nothing changed", "file", d.file, "error", err)
		d.read.Store(&control.Configuration{Read: d.configuration().Read, Error: err.Error()})
		return nil, err
	}
	d.read.Store(&control.Configuration{Read: read})
	changed := append(changes(was, cfg), dropped(set, d.weights())...)
	for i, c := range changed {
		if i == loggedChanges {
			d.log.Info("reload: more changes, not logged", "changes", len(changed)-i)
			break
		}
		d.log.Info("reload: " + c.Text)
	}
	daemon.LogWarnings(d.log, cfg.Warnings)
	d.log.Info("reloaded", "file", d.file, "services", len(cfg.Services), "changes", len(changed))
	return changed, nil
}

// configuration is what came of reading the file.
func (d *director) configuration() control.Configuration {
	if c := d.read.Load(); c != nil {
		return *c
	}
	return control.Configuration{Read: d.start}
}

// loggedChanges is the most lines that a reload writes to the log: no more than the log takes at once.
const loggedChanges = 100

// apply puts cfg in force: first what can fail, the address of metrics and the routes of new VIPs; then the checks;
// then the services with [connections], in one step. The health of realservers that leave is forgotten with their
// checks. The routes of VIPs that leave stay while they have connections.
func (d *director) apply(cfg *config.Director) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.sameProgram(cfg); err != nil {
		return err
	}
	endMove, err := d.http.Move(cfg.Metrics)
	if err != nil {
		return err
	}
	defer func() { endMove(err) }()
	was := unique(append(vips(d.cfg), d.leftVIPs...))
	want := vips(cfg)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.network.Set(d.machine(d.cfg, unique(was))))
		}
	}()
	if err := d.network.Set(d.machine(cfg, unique(slices.Concat(was, want)))); err != nil {
		return err
	}
	// not before all that: it forgets what it knows of realservers that leave
	if err := d.monitor.Set(subjects(cfg, d.wayOf)); err != nil {
		return err
	}
	set, leftBefore := d.weights().still(cfg), d.leftVIPs
	d.leftVIPs = slices.DeleteFunc(slices.Clone(was), func(vip netip.Addr) bool { return slices.Contains(want, vip) })
	former := d.override.Swap(&set) // before services: a weight that is set has no offset
	if err := d.bal.Apply(d.services(effective(cfg, set))); err != nil {
		d.override.Store(former)
		d.leftVIPs = leftBefore
		err = errors.Join(err, d.monitor.Set(subjects(d.cfg, d.wayOf)))
		d.monitor.Begin() // what the first Set has taken away
		return err
	}
	d.monitor.Begin() // not before the balancer and probes know the paths to new realservers
	d.cfg = cfg
	d.level.Set(cfg.Log)
	d.notifier.Set(cfg.Notify)
	d.releaseVIPs()
	d.loosen()
	d.warnOfChecks()
	return nil
}

// sameProgram returns an error that names the keys which a reload can't change, if cfg changes any.
func (d *director) sameProgram(cfg *config.Director) error {
	keys := d.cfg.NeedsRestart(cfg)
	if len(keys) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s changed, which a reload can't do: restart the director, or change it back",
		d.file, strings.Join(keys, ", "))
}

package director

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/tunnel"
)

// reload reads the configuration file again and puts it in force, and returns the changes. On an error nothing has
// changed. It logs the changes or the error.
func (d *director) reload() ([]api.Change, error) {
	return d.reloader.Reload(func() (reload.Result, error) {
		cfg, err := load(d.file)
		if err != nil {
			return reload.Result{}, err
		}
		if err := errors.Join(checkAddresses(cfg), d.plane.allows(cfg)); err != nil {
			return reload.Result{}, err
		}
		was, is, err := d.configure(cfg)
		if err != nil {
			return reload.Result{}, err
		}
		return result(was.inputs, is.inputs), nil
	})
}

// result returns the changes between the files of two inputs of the plan.
func result(was, is plan.Inputs) reload.Result {
	before, now := was.File, is.File
	return reload.Result{
		Changes: slices.Concat(changes(before, now),
			tunnel.Changes(before.Tunnels, now.Tunnels, &before.WireGuard, &now.WireGuard),
			droppedWeights(was.Weights, is.Weights)),
		Summary:  []any{"services", len(now.Services)},
		Warnings: slices.Concat(now.Warnings, deviceWarnings(now, is.Devices)),
	}
}

// configure puts cfg in force, and returns the states before and after. On an error nothing has changed.
func (d *director) configure(cfg *config.Director) (was, is *state, err error) {
	if err := sameProgram(d.file, d.controller.state().inputs.Config, cfg); err != nil {
		return nil, nil, err
	}
	if err := d.checkConflicts(cfg); err != nil {
		return nil, nil, err
	}
	endMove, err := d.http.Move(cfg.Metrics)
	if err != nil {
		return nil, nil, err
	}
	revert, err := d.plane.tunnels.change(d.controller.state().inputs.Config, cfg)
	if err == nil {
		was, is, err = d.controller.configure(cfg)
	}
	endMove(err)
	if err != nil {
		return nil, nil, errors.Join(err, revert())
	}
	d.level.Set(cfg.Log)
	d.checks.notifier.Set(cfg.Notify)
	d.checks.warnShort(d.log)
	limitGarbage() // tunnels or services may have come
	return was, is, nil
}

// checkConflicts is lan.check for the VIPs that cfg adds on the present devices. The controller does not wait for it.
func (d *director) checkConflicts(cfg *config.Director) error {
	before := d.controller.state()
	in := before.inputs.Reconfigured(cfg)
	if err := d.controller.do(func() { d.controller.listDevices(&in) }); err != nil {
		return err
	}
	return d.lan.check(in, before.Announce)
}

// sameProgram returns an error if cfg changes keys that a reload can't change. The error names them.
func sameProgram(file string, was, cfg *config.Director) error {
	keys := was.NeedsRestart(cfg)
	if len(keys) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s changed, which a reload can't do: restart the director, or change it back",
		file, strings.Join(keys, ", "))
}

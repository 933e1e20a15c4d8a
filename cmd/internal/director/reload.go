package director

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"

	"vstun/cmd/internal/config"
)

// reload reads the configuration file again and puts it in force, and says what has changed, a line each. A fault changes nothing. The log says
// the same.
func (d *director) reload() ([]string, error) {
	d.reloads.Lock()
	defer d.reloads.Unlock()
	was := d.cfg // only a reload changes it
	cfg, err := load(d.file)
	if err == nil {
		err = checkAddresses(cfg)
	}
	if err == nil {
		err = d.apply(cfg)
	}
	if err != nil {
		d.log.Error("reload: nothing changed", "file", d.file, "error", err)
		return nil, err
	}
	lines := changes(was, cfg)
	for _, line := range lines {
		d.log.Info("reload: " + line)
	}
	d.log.Info("reloaded", "file", d.file, "services", len(cfg.Services), "changes", len(lines))
	return lines, nil
}

// apply puts cfg in force: first the routes of new VIPs, which can fail, then the services, in one step. The routes of VIPs that leave stay for
// as long as connections do that have left.
func (d *director) apply(cfg *config.Director) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.sameProgram(cfg); err != nil {
		return err
	}
	was := append(vips(d.cfg), d.leftVIPs...)
	want := vips(cfg)
	if err := d.network.Set(network(cfg.TUN, unique(slices.Concat(was, want)))); err != nil {
		return errors.Join(err, d.network.Set(network(d.cfg.TUN, unique(was))))
	}
	if err := d.bal.Apply(services(cfg, d.log)); err != nil {
		return errors.Join(err, d.network.Set(network(d.cfg.TUN, unique(was))))
	}
	d.cfg = cfg
	d.leftVIPs = slices.DeleteFunc(unique(was), func(vip netip.Addr) bool { return slices.Contains(want, vip) })
	d.releaseVIPs()
	return nil
}

// sameProgram refuses changes of what is only read at the start.
func (d *director) sameProgram(cfg *config.Director) error {
	was, is := *d.cfg, *cfg
	was.Services, is.Services = nil, nil
	was.Source, is.Source = netip.Addr{}, netip.Addr{}
	if !reflect.DeepEqual(was, is) {
		return errors.New("only services and source can change while the director runs; for the other keys of [director] and for [connections] restart it")
	}
	return nil
}

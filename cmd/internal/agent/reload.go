package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/tunnel"
	"vstun/routing"
)

// reload reads the configuration file again, puts it in force, and returns the changes. On an error nothing has
// changed. It logs the changes or the error.
func (a *agent) reload() ([]api.Change, error) {
	return a.reloader.Reload(func() (reload.Result, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		was := a.setup.Load().cfg
		cfg, err := load(a.file)
		if err != nil {
			return reload.Result{}, err
		}
		if cfg.AnyTUN { // whether a director has come or gone
			cfg.TUN = was.TUN
		}
		if err := a.apply(cfg); err != nil {
			return reload.Result{}, err
		}
		return reload.Result{Changes: changes(was, cfg), Summary: []any{"vips", len(cfg.VIPs)},
			Warnings: cfg.Warnings}, nil
	})
}

// apply puts cfg in force. The steps that can fail come first: the address of metrics, new sockets, and the network
// with the VIPs of both configurations. Then one pointer changes the workers' policy. Removed VIPs leave the host last:
// a packet for a VIP that the host no longer has would be routed back to the director.
func (a *agent) apply(cfg *config.Realserver) (err error) {
	was := a.setup.Load()
	if keys := was.cfg.NeedsRestart(cfg); len(keys) > 0 {
		return fmt.Errorf("%s: %s changed, which a reload can't do: restart the agent, or change it back",
			a.file, strings.Join(keys, ", "))
	}
	if err := checkMachine(cfg, owned(was.cfg)); err != nil {
		return err
	}
	endMove, err := a.http.Move(cfg.Metrics)
	if err != nil {
		return err
	}
	defer func() { endMove(err) }()
	opened, err := a.receivers.Open(allSockets(cfg)...)
	if errors.Is(err, unix.EACCES) { // CAP_NET_BIND_SERVICE has been given up
		return fmt.Errorf("%s: encap_port: a running agent can't open %d, below 1024: restart the agent, "+
			"or set another one here and at the directors", a.file, cfg.EncapPort)
	}
	if err != nil {
		return err
	}
	defer opened.Close()
	v4, v6, _ := mss(cfg, a.sealed.endpoints())
	is := &setup{cfg, v4, v6}
	both := *cfg
	both.VIPs = slices.Concat(cfg.VIPs, without(was.cfg.VIPs, cfg.VIPs))
	before, after := network(was.cfg, was.mss4, was.mss6), network(&both, v4, v6)
	after.QuietIPIP = after.QuietIPIP || before.QuietIPIP
	steps := []routing.State{after}
	if cfg.Table != was.cfg.Table { // the second table of one configuration can be the first of the other
		steps = []routing.State{unbound(before), unbound(after), after}
	}
	for _, s := range steps {
		if err := a.network.Set(s); err != nil {
			return errors.Join(err, a.network.Set(before))
		}
	}
	if err := a.sealed.set(&cfg.WireGuard); err != nil {
		return errors.Join(err, a.network.Set(before))
	}
	if err := a.tunnels.Apply(cfg.Tunnels, encapPort(cfg)); err != nil {
		return errors.Join(err, a.sealed.set(&was.cfg.WireGuard),
			a.tunnels.Apply(was.cfg.Tunnels, encapPort(was.cfg)), a.network.Set(before))
	}
	if err := a.chances.set(cfg.SecondChance, cfg.EncapPort); err != nil {
		return errors.Join(err, a.sealed.set(&was.cfg.WireGuard),
			a.tunnels.Apply(was.cfg.Tunnels, encapPort(was.cfg)), a.network.Set(before))
	}
	a.enforce(is)
	if err := opened.Use(); err != nil {
		return err // the agent is ending
	}
	a.level.Set(cfg.Log)
	if now := network(cfg, v4, v6); len(both.VIPs) > len(cfg.VIPs) || now.QuietIPIP != after.QuietIPIP {
		err := a.network.Set(now)
		if err != nil && !errors.Is(err, routing.ErrClosed) { // it is tried again
			a.log.Error("cannot undo what is not configured any more; retrying", "error", err)
		}
	}
	a.warnLoudDrivers()
	return nil
}

// owned returns the VIPs that the agent's device has.
func owned(cfg *config.Realserver) []netip.Addr {
	if cfg.ForeignVIPs {
		return nil
	}
	return cfg.VIPs
}

// unbound is s without the second table of replies.
func unbound(s routing.State) routing.State {
	if s.Replies != nil {
		replies := *s.Replies
		replies.Bound, s.Replies = "", &replies
		s.Routes = slices.DeleteFunc(slices.Clone(s.Routes),
			func(r routing.Route) bool { return r.Table == replies.Table+1 })
	}
	return s
}

// without returns the elements of all that are not in some.
func without[T comparable](all, some []T) []T {
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return slices.Contains(some, v) })
}

// changes returns the differences between two configurations of a running agent.
func changes(was, is *config.Realserver) (all []api.Change) {
	compare := func(key string, was, is any) {
		if was != is {
			all = append(all, api.Change{Key: key, Old: was, New: is,
				Text: fmt.Sprintf("%s %s -> %s", key, shown(was), shown(is))})
		}
	}
	compareLists(&all, "vips", "vip", addrNames(was.VIPs), addrNames(is.VIPs))
	compare("own_vips", !was.ForeignVIPs, !is.ForeignVIPs)
	compareLists(&all, "directors", "director", directorNames(was), directorNames(is))
	if !slices.Equal(was.Encaps, is.Encaps) {
		all = append(all, api.Change{Key: "encap", Old: was.Encaps, New: is.Encaps,
			Text: fmt.Sprintf("encap %s -> %s", cmp.Or(strings.Join(was.Encaps, ","), "none"),
				cmp.Or(strings.Join(is.Encaps, ","), "none"))})
	}
	sealedChanges(&all, &was.WireGuard, &is.WireGuard)
	chanceChanges(&all, &was.SecondChance, &is.SecondChance)
	all = append(all, tunnel.Changes(was.Tunnels, is.Tunnels, &was.WireGuard, &is.WireGuard)...)
	compare("encap_port", was.EncapPort, is.EncapPort)
	compare("encap_key", keyValue(was), keyValue(is))
	compare("mss", mssValue(was), mssValue(is))
	compare("table", was.Table, is.Table)
	compare("fast_path", fastPathValue(was), fastPathValue(is))
	compareLists(&all, "fast_path_devices", "fast path device", was.FastPath.Devices, is.FastPath.Devices)
	compare("metrics", metricsValue(was), metricsValue(is))
	compare("log", strings.ToLower(was.Log.String()), strings.ToLower(is.Log.String()))
	return all
}

// compareLists adds to all a change for each element that was added to the list of a key, or removed from it.
func compareLists(all *[]api.Change, key, element string, was, is []string) {
	for _, name := range without(is, was) {
		*all = append(*all, api.Change{Key: key, New: name, Text: fmt.Sprintf("%s %s: added", element, name)})
	}
	for _, name := range without(was, is) {
		*all = append(*all, api.Change{Key: key, Old: name, Text: fmt.Sprintf("%s %s: removed", element, name)})
	}
}

func addrNames(addrs []netip.Addr) (names []string) {
	for _, a := range addrs {
		names = append(names, a.String())
	}
	return names
}

func directorNames(cfg *config.Realserver) (names []string) {
	for _, d := range cfg.Directors {
		names = append(names, prefixName(d))
	}
	return names
}

// prefixName returns a host, or a network of several.
func prefixName(d netip.Prefix) string {
	if d.IsSingleIP() {
		return d.Addr().String()
	}
	return d.String()
}

// shown returns a value as a line of the log has it; nil is an absent key.
func shown(v any) string {
	if v == nil {
		return "none"
	}
	return fmt.Sprint(v)
}

func keyValue(cfg *config.Realserver) any {
	if !cfg.HasKey {
		return nil
	}
	return cfg.Key
}

func mssValue(cfg *config.Realserver) any {
	switch cfg.MSS {
	case 0:
		return "auto"
	case config.MSSOff:
		return "off"
	}
	return cfg.MSS
}

func fastPathValue(cfg *config.Realserver) any {
	if cfg.FastPath.Off {
		return "off"
	}
	return "auto"
}

func metricsValue(cfg *config.Realserver) any {
	if !cfg.Metrics.IsValid() {
		return nil
	}
	return cfg.Metrics.String()
}

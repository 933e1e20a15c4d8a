package director

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/words"
)

// weights are those that operators have set while the director runs. They go before the configuration's, until that one
// changes. The map doesn't change: a new one takes its place.
type weights map[seat]override

// override is a weight in place of the configured one.
type override struct{ weight, configured int }

// of is the weight of a realserver that is configured with another one, or with the same.
func (w weights) of(s seat, configured int) int {
	if o, set := w[s]; set {
		return o.weight
	}
	return configured
}

// still is what remains of w under a configuration: the weights of realservers that are there, with the weight that
// they were configured with.
func (w weights) still(cfg *config.Director) weights {
	left := weights{}
	for s, r := range realservers(cfg) {
		if o, set := w[s]; set && o.configured == r.Weight {
			left[s] = o
		}
	}
	return left
}

// note adds to a service's status which weights are not the configured ones.
func (w weights) note(s *control.Service) {
	if len(w) == 0 {
		return
	}
	for i := range s.Realservers {
		r := &s.Realservers[i]
		if a, err := netip.ParseAddr(r.Address); err == nil {
			if o, set := w[seat{s.Name, a}]; set {
				r.Configured = &o.configured
			}
		}
	}
}

// realservers are all of cfg.
func realservers(cfg *config.Director) map[seat]config.RealserverRef {
	all := map[seat]config.RealserverRef{}
	for i := range cfg.Services {
		for _, r := range cfg.Services[i].Realservers {
			all[seat{cfg.Services[i].Name, r.Address}] = r
		}
	}
	return all
}

// effective is cfg as it is to be in force: with the weights that operators have set.
func effective(cfg *config.Director, set weights) *config.Director {
	if len(set) == 0 {
		return cfg
	}
	c := *cfg
	c.Services = slices.Clone(cfg.Services)
	for i := range c.Services {
		s := &c.Services[i]
		s.Realservers = slices.Clone(s.Realservers)
		for j := range s.Realservers {
			r := &s.Realservers[j]
			r.Weight = set.of(seat{s.Name, r.Address}, r.Weight)
		}
	}
	return &c
}

// inForce is the configuration with what operators have set since. d.mu is held.
func (d *director) inForce() *config.Director { return effective(d.cfg, d.weights()) }

// setWeight answers POST /weight: the realserver of that address in a service, or in all, has that weight from now on;
// without one the configured.
func (d *director) setWeight(q url.Values) (any, error) {
	weight := -1
	if q.Has("weight") {
		var err error
		if weight, err = control.ParseWeight(q.Get("weight")); err != nil {
			return nil, err
		}
	}
	d.reloads.Lock()
	defer d.reloads.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	seats, err := findSeats(d.cfg, q)
	if err != nil {
		return nil, err
	}
	was, before, configured := d.weights(), d.healthy(), realservers(d.cfg)
	next := was.still(d.cfg)
	for _, s := range seats {
		is := configured[s]
		if delete(next, s); weight >= 0 && (weight != is.Weight || is.Check != nil && is.Check.Row().Weighs) {
			next[s] = override{weight, is.Weight}
		}
	}
	former := d.override.Swap(&next) // before services: a weight that is set has no offset
	if err := d.bal.Apply(d.services(d.inForce())); err != nil {
		d.override.Store(former)
		return nil, err
	}
	var changed []control.Change
	after := d.healthy()
	for _, s := range seats {
		is := configured[s].Weight
		old, now := weighted(was.of(s, is), before[s]), weighted(next.of(s, is), after[s])
		if now == old {
			continue
		}
		c := control.Change{Service: s.service, Realserver: s.address.String(), Key: "weight", Old: old, New: now,
			Text: fmt.Sprintf("%v: weight %d -> %d", s, old, now)}
		if now != is {
			c.Configured, c.Text = &is, c.Text+", configured "+strconv.Itoa(is)
		}
		changed = append(changed, c)
	}
	for _, c := range changed {
		d.log.Info("set: " + c.Text)
	}
	return control.Reload{Changes: changed}, nil
}

// weights are those in force that operators have set.
func (d *director) weights() weights {
	if w := d.override.Load(); w != nil {
		return *w
	}
	return nil
}

// dropped returns a change for each weight that an operator has set and that no longer holds.
func dropped(was, is weights) (changed []control.Change) {
	for s, o := range was {
		if _, stays := is[s]; !stays {
			changed = append(changed, control.Change{Service: s.service, Realserver: s.address.String(),
				Key: "set_weight", Old: o.weight,
				Text: fmt.Sprintf("%v: the weight %d that an operator has set does not hold any longer", s, o.weight)})
		}
	}
	slices.SortFunc(changed, func(a, b control.Change) int { return strings.Compare(a.Text, b.Text) })
	return changed
}

// findSeats returns what a query names: the realserver of an address in the service of a name, or, without a name, in
// each that has it.
func findSeats(cfg *config.Director, q url.Values) ([]seat, error) {
	address, err := netip.ParseAddr(q.Get("realserver"))
	if err != nil {
		return nil, fmt.Errorf("realserver %q is not an address: want one such as 10.0.11.2", q.Get("realserver"))
	}
	var seats []seat
	var names, addresses []string
	for _, s := range cfg.Services {
		if names = append(names, s.Name); q.Has("service") && s.Name != q.Get("service") {
			continue
		}
		for _, r := range s.Realservers {
			if addresses = append(addresses, r.Address.String()); r.Address == address {
				seats = append(seats, seat{s.Name, r.Address})
			}
		}
	}
	switch {
	case len(seats) > 0:
		return seats, nil
	case !q.Has("service"):
		return nil, fmt.Errorf("no service has a realserver %v: there are %s", address, some(addresses))
	case !slices.Contains(names, q.Get("service")):
		return nil, noService(q.Get("service"), names)
	}
	return nil, fmt.Errorf("service %q has no realserver %v: it has %s", q.Get("service"), address, some(addresses))
}

// noService is the error about a name that no service has; names are those of all.
func noService(name string, names []string) error {
	if near, ok := words.Nearest(name, names); ok {
		return fmt.Errorf("there is no service %q: did you mean %s?", name, near)
	}
	return fmt.Errorf("there is no service %q: there are %s", name, some(names))
}

// some is a list of names in a line: not of all, where there are very many.
func some(names []string) string {
	const most = 20
	slices.Sort(names)
	switch names = slices.Compact(names); {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

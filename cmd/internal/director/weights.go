package director

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/words"
)

// setWeight answers POST /weight: it gives a realserver, in one service or in all, the query's weight. Without a weight
// in the query the realserver gets the configured one.
func (d *director) setWeight(q url.Values) (any, error) {
	weight := -1
	if q.Has("weight") {
		var err error
		if weight, err = api.ParseWeight(q.Get("weight")); err != nil {
			return nil, err
		}
	}
	changed, err := d.controller.setWeight(q, weight)
	if err != nil {
		return nil, err
	}
	for _, c := range changed {
		d.log.Info("set: " + c.Text)
	}
	return api.Reload{Changes: changed}, nil
}

// setWeight gives a weight to the realservers that q names, and returns the changes. A weight below 0 stands for the
// configured one. On an error nothing has changed.
func (c *controller) setWeight(q url.Values, weight int) (changed []api.Change, err error) {
	ending := c.do(func() {
		was := c.state()
		var ids []plan.RealserverID
		if ids, err = findRealservers(was.inputs.Config, q); err != nil {
			return
		}
		in := was.inputs
		in.Weights = in.Weights.With(in.Config, ids, weight)
		if err = c.converge(in); err == nil {
			changed = weightChanges(&was.inputs, &c.state().inputs, ids)
		}
	})
	return changed, errors.Join(ending, err)
}

// restoreWeights sets former weights again, which another configuration has dropped. Those set since then stay.
func (c *controller) restoreWeights(former plan.Weights) (err error) {
	ending := c.do(func() {
		in := c.state().inputs
		all := maps.Clone(former)
		maps.Copy(all, in.Weights)
		if len(all) > len(in.Weights) {
			in.Weights = all
			err = c.converge(in)
		}
	})
	return errors.Join(ending, err)
}

// weightChanges returns the changes of the weights of ids, offsets included.
func weightChanges(was, is *plan.Inputs, ids []plan.RealserverID) (changed []api.Change) {
	before, after := plan.Health(was.Health, was.Weights), plan.Health(is.Health, is.Weights)
	all := plan.Realservers(is.Config)
	for _, id := range ids {
		configured := all[id].Weight
		old := plan.Weight(was.Weights.Of(id, configured), before[id])
		now := plan.Weight(is.Weights.Of(id, configured), after[id])
		if now == old {
			continue
		}
		c := api.Change{Service: id.Service, Realserver: words.Realserver(id.Realserver), Key: "weight", Old: old,
			New: now, Text: fmt.Sprintf("%v: weight %d -> %d", id, old, now)}
		if now != configured {
			c.Configured, c.Text = &configured, c.Text+", configured "+strconv.Itoa(configured)
		}
		changed = append(changed, c)
	}
	return changed
}

// droppedWeights returns a change for each weight that an operator has set and that no longer holds.
func droppedWeights(was, is plan.Weights) (changed []api.Change) {
	for id, o := range was {
		if _, stays := is[id]; !stays {
			changed = append(changed, api.Change{Service: id.Service, Realserver: words.Realserver(id.Realserver),
				Key: "set_weight", Old: o.Weight,
				Text: fmt.Sprintf("%v: the weight %d that an operator has set does not hold any longer", id, o.Weight)})
		}
	}
	slices.SortFunc(changed, func(a, b api.Change) int { return strings.Compare(a.Text, b.Text) })
	return changed
}

// findRealservers returns the realservers that the query names: in the query's service, or without one in all services.
// An address without a port names all realservers that have it.
func findRealservers(cfg *config.Director, q url.Values) ([]plan.RealserverID, error) {
	named, err := api.ParseRealserver(q.Get("realserver"))
	if err != nil {
		return nil, err
	}
	var ids []plan.RealserverID
	var names, known []string
	for _, s := range cfg.Services {
		if names = append(names, s.Name); q.Has("service") && s.Name != q.Get("service") {
			continue
		}
		for _, r := range s.Realservers {
			known = append(known, words.Realserver(r.ID()))
			if api.Names(named, r.ID()) || named == s.Endpoint(&r) {
				ids = append(ids, plan.RealserverID{Service: s.Name, Realserver: r.ID()})
			}
		}
	}
	switch {
	case len(ids) > 0:
		return ids, nil
	case !q.Has("service"):
		return nil, fmt.Errorf("no service has a realserver %s: there are %s", words.Realserver(named), some(known))
	case !slices.Contains(names, q.Get("service")):
		return nil, noService(q.Get("service"), names)
	}
	return nil, fmt.Errorf("service %q has no realserver %s: it has %s", q.Get("service"), words.Realserver(named),
		some(known))
}

// noService returns the error about a name that no service has; names are the names of all services.
func noService(name string, names []string) error {
	if near, ok := words.Nearest(name, names); ok {
		return fmt.Errorf("there is no service %q: did you mean %s?", name, near)
	}
	return fmt.Errorf("there is no service %q: there are %s", name, some(names))
}

// some lists names in a line: the first 20, and the number of the others.
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

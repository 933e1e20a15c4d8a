package plan

import (
	"slices"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
)

// Weights are the weights that operators have set while the director runs. Each replaces a configured weight until the
// configured one changes. A Weights is immutable.
type Weights map[RealserverID]Override

// Override is a weight in place of a configured one.
type Override struct{ Weight, Configured int }

// Of returns the weight of the realserver id: its override, or configured.
func (w Weights) Of(id RealserverID, configured int) int {
	if o, set := w[id]; set {
		return o.Weight
	}
	return configured
}

// With returns w with another weight for each of the realservers ids, or without one if weight is below 0. A weight
// that a realserver of cfg has anyway is not set, unless its check would add an offset to it.
func (w Weights) With(cfg *config.Director, ids []RealserverID, weight int) Weights {
	next, configured := w.kept(cfg), Realservers(cfg)
	for _, id := range ids {
		r := configured[id]
		delete(next, id)
		if weight >= 0 && (weight != r.Weight || r.Check != nil && r.Check.Row().Weighs) {
			next[id] = Override{weight, r.Weight}
		}
	}
	return next
}

// kept returns the weights of w that still hold under cfg: their realservers have the same configured weight.
func (w Weights) kept(cfg *config.Director) Weights {
	kept := Weights{}
	for id, r := range Realservers(cfg) {
		if o, set := w[id]; set && o.Configured == r.Weight {
			kept[id] = o
		}
	}
	return kept
}

// effective returns cfg with the weights w.
func (w Weights) effective(cfg *config.Director) *config.Director {
	if len(w) == 0 {
		return cfg
	}
	c := *cfg
	c.Services = slices.Clone(cfg.Services)
	for i := range c.Services {
		s := &c.Services[i]
		s.Realservers = slices.Clone(s.Realservers)
		for j := range s.Realservers {
			r := &s.Realservers[j]
			r.Weight = w.Of(RealserverID{s.Name, r.ID()}, r.Weight)
		}
	}
	return &c
}

// maxWeight is the largest weight that a realserver can be configured with.
const maxWeight = 65535

// Weight returns a realserver's weight with the offset that its check gives, whether it is up or down.
func Weight(weight int, st health.State) int {
	return min(max(weight+st.Offset, 0), maxWeight)
}

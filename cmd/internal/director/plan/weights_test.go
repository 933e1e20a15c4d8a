package plan

import (
	"net/netip"
	"slices"
	"testing"

	"vstun/cmd/internal/config"
)

// TestWeightOfOperatorAndReload: a reload keeps the weights of realservers whose configured weight is the same.
func TestWeightOfOperatorAndReload(t *testing.T) {
	set := Weights{{"web", netip.MustParseAddrPort("10.0.11.1:0")}: {5, 1},
		{"web", netip.MustParseAddrPort("10.0.11.2:0")}: {0, 1}}
	for _, c := range []struct {
		name    string
		change  func(web *config.Service)
		want    []int // in force
		dropped int
	}{
		{"nothing", func(*config.Service) {}, []int{5, 0}, 0},
		{"scheduler", func(web *config.Service) { web.Scheduler = "rr" }, []int{5, 0}, 0},
		{"one weight", func(web *config.Service) { web.Realservers[0].Weight = 3 }, []int{3, 0}, 1},
		{"it leaves", func(web *config.Service) { web.Realservers = web.Realservers[1:] }, []int{0}, 1},
		{"name", func(web *config.Service) { web.Name = "www" }, []int{1, 1}, 2},
	} {
		cfg := running()
		c.change(&cfg.Services[0])
		left := set.kept(cfg)
		var got []int
		for _, r := range left.effective(cfg).Services[0].Realservers {
			got = append(got, r.Weight)
		}
		if dropped := len(set) - len(left); !slices.Equal(got, c.want) || dropped != c.dropped {
			t.Errorf("%s: weights %v, want %v; %d are dropped", c.name, got, c.want, dropped)
		}
		if len(left) > 0 && cfg.Services[0].Realservers[0].Weight == 5 {
			t.Errorf("%s: the configuration has changed", c.name)
		}
	}
}

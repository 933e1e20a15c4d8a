package director

import (
	"context"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/health"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// operated is a director with the services of running, of which nothing but the balancer is there.
func operated(t *testing.T) *director {
	t.Helper()
	cfg := running()
	d := &director{log: slog.New(slog.DiscardHandler), cfg: cfg, table: conntab.New(conntab.Config{Max: 1024})}
	d.bal = balancer.New(d.table, 1)
	if err := d.bal.Apply(d.services(cfg)); err != nil {
		t.Fatal(err)
	}
	return d
}

// weightsOf is the weights of a service's realservers.
func (d *director) weightsOf(service string) (all []int) {
	for _, s := range d.bal.Snapshot().Status() {
		if s.Name == service {
			for _, r := range s.Realservers {
				all = append(all, r.Weight)
			}
		}
	}
	return all
}

func (d *director) mustSet(t *testing.T, query string) []string {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	v, err := d.setWeight(q)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return texts(v.(api.Reload).Changes)
}

// TestWeightOfOperator: it is in force until the configured one comes back, or changes.
func TestWeightOfOperator(t *testing.T) {
	d := operated(t)
	if got := d.mustSet(t, "service=web&realserver=10.0.11.1&weight=0"); !slices.Equal(got,
		[]string{`service "web": realserver 10.0.11.1: weight 1 -> 0, configured 1`}) {
		t.Errorf("it says %q", got)
	}
	if got := d.weightsOf("web"); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("weights %v, want 0 and 1", got)
	}
	if got := d.mustSet(t, "service=web&realserver=10.0.11.1&weight=0"); len(got) != 0 {
		t.Errorf("again: it says %q, want nothing", got)
	}
	st := api.Service{Name: "web", Realservers: []api.Realserver{{Address: "10.0.11.1"},
		{Address: "10.0.11.2"}}}
	if d.weights().note(&st); st.Realservers[0].Configured == nil || *st.Realservers[0].Configured != 1 ||
		st.Realservers[1].Configured != nil {
		t.Errorf("status has %+v", st.Realservers)
	}
	if got := d.mustSet(t, "realserver=10.0.11.1&weight=7"); !slices.Equal(got,
		[]string{`service "web": realserver 10.0.11.1: weight 0 -> 7, configured 1`}) {
		t.Errorf("in all services: it says %q", got)
	}
	if got := d.mustSet(t, "service=web&realserver=10.0.11.1"); !slices.Equal(got,
		[]string{`service "web": realserver 10.0.11.1: weight 7 -> 1`}) || len(d.weights()) != 0 {
		t.Errorf("back to the configured one: it says %q, and %v are left", got, d.weights())
	}
	if got := d.weightsOf("web"); !slices.Equal(got, []int{1, 1}) {
		t.Errorf("weights %v, want those of the configuration", got)
	}
}

// TestWeightOfOperatorAndReload: a reload keeps those whose configured weight is what it was.
func TestWeightOfOperatorAndReload(t *testing.T) {
	set := weights{{"web", netip.MustParseAddr("10.0.11.1")}: {5, 1}, {"web", netip.MustParseAddr("10.0.11.2")}: {0, 1}}
	for _, c := range []struct {
		name   string
		change func(web *config.Service)
		want   []int // in force
		says   int
	}{
		{"nothing", func(*config.Service) {}, []int{5, 0}, 0},
		{"scheduler", func(web *config.Service) { web.Scheduler = "rr" }, []int{5, 0}, 0},
		{"one weight", func(web *config.Service) { web.Realservers[0].Weight = 3 }, []int{3, 0}, 1},
		{"it leaves", func(web *config.Service) { web.Realservers = web.Realservers[1:] }, []int{0}, 1},
		{"name", func(web *config.Service) { web.Name = "www" }, []int{1, 1}, 2},
	} {
		cfg := running()
		c.change(&cfg.Services[0])
		left := set.still(cfg)
		var got []int
		for _, r := range effective(cfg, left).Services[0].Realservers {
			got = append(got, r.Weight)
		}
		if says := dropped(set, left); !slices.Equal(got, c.want) || len(says) != c.says {
			t.Errorf("%s: weights %v, want %v; %q", c.name, got, c.want, texts(says))
		}
		if len(left) > 0 && cfg.Services[0].Realservers[0].Weight == 5 {
			t.Errorf("%s: the configuration has changed", c.name)
		}
	}
}

// TestUnknownNames: the error lists what there is, in one line.
func TestUnknownNames(t *testing.T) {
	d := operated(t)
	for query, want := range map[string]string{
		"service=wbe&realserver=10.0.11.1&weight=0":  `there is no service "wbe": did you mean web?`,
		"service=mail&realserver=10.0.11.1&weight=0": `there is no service "mail": there are dns, web`,
		"service=web&realserver=10.0.11.9&weight=0": `service "web" has no realserver 10.0.11.9: it has 10.0.11.1, ` +
			`10.0.11.2`,
		"service=dns&realserver=10.0.11.9&weight=0": `service "dns" has no realserver 10.0.11.9: it has none`,
		"realserver=10.0.11.9&weight=0": `no service has a realserver 10.0.11.9: there are 10.0.11.1, ` +
			`10.0.11.2`,
		"service=web&realserver=web1&weight=0":       `realserver "web1" is not an address: want one such as 10.0.11.2`,
		"service=web&realserver=10.0.11.1&weight=-1": `--weight "-1" is no weight: want 0 (drains it) to 65535`,
	} {
		q, _ := url.ParseQuery(query)
		if _, err := d.setWeight(q); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", query, err, want)
		}
	}
	if got := d.weightsOf("web"); !slices.Equal(got, []int{1, 1}) {
		t.Errorf("weights %v", got)
	}
	var many []string
	for n := range 1000 {
		many = append(many, strings.Repeat("x", n%50)+"y")
	}
	if got := some(many); len(got) > 1000 || !strings.HasSuffix(got, " and 30 more") {
		t.Errorf("of very many: %s", got)
	}
}

// TestWeightOfOperatorWithoutOffset: the offset that a file gives is not added to a weight that an operator has set,
// from the moment on that it is set, and also where that is the configured one.
func TestWeightOfOperatorWithoutOffset(t *testing.T) {
	d := operated(t)
	file := filepath.Join(t.TempDir(), "weight")
	if err := os.WriteFile(file, []byte("3"), 0o600); err != nil {
		t.Fatal(err)
	}
	web := &d.cfg.Services[0]
	web.Check = &config.Check{Type: "file", Direct: true, File: file, Factor: 1, Interval: time.Hour,
		Timeout: time.Second, Rise: 1, Fall: 1, Up: true}
	for i := range web.Realservers {
		web.Realservers[i].Check = web.Check
	}
	web.Realservers[1].Weight = 0
	d.monitor = health.New(func([]health.Change) {})
	if err := d.monitor.Set(subjects(d.cfg, d.wayOf)); err != nil {
		t.Fatal(err)
	}
	d.monitor.Begin()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.monitor.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	weighs := func(st health.State) bool { return st.Service != "web" || st.Offset == 3 }
	for deadline := time.Now().Add(time.Minute); slices.ContainsFunc(d.monitor.States(),
		func(st health.State) bool { return !weighs(st) }); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", d.monitor.States())
		}
	}
	if err := d.bal.Apply(d.services(d.inForce())); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		query, says string
		want        []int
	}{
		{"service=web&realserver=10.0.11.1&weight=0",
			`service "web": realserver 10.0.11.1: weight 4 -> 0, configured 1`, []int{0, 3}},
		{"service=web&realserver=10.0.11.2&weight=0", `service "web": realserver 10.0.11.2: weight 3 -> 0`,
			[]int{0, 0}},
		{"service=web&realserver=10.0.11.1", `service "web": realserver 10.0.11.1: weight 0 -> 4, configured 1`,
			[]int{4, 0}},
		{"service=web&realserver=10.0.11.2", `service "web": realserver 10.0.11.2: weight 0 -> 3, configured 0`,
			[]int{4, 3}},
	} {
		if got := d.mustSet(t, c.query); !slices.Equal(got, []string{c.says}) {
			t.Errorf("%s: it says %q, want %q", c.query, got, c.says)
		}
		if got := d.weightsOf("web"); !slices.Equal(got, c.want) {
			t.Errorf("%s: weights %v, want %v", c.query, got, c.want)
		}
	}
}

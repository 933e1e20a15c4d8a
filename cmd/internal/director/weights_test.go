package director

import (
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/testdata/testkit"
)

// weightsOf is the weights of a service's realservers.
func (o *operated) weightsOf(service string) (all []int) {
	for _, s := range o.plane.balancer.Snapshot().Status() {
		if s.Name == service {
			for _, r := range s.Realservers {
				all = append(all, r.Weight)
			}
		}
	}
	return all
}

func (o *operated) mustSet(t *testing.T, query string) []string {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	v, err := o.setWeight(q)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return texts(v.(api.Reload).Changes)
}

// TestWeightOfOperator: it is in force until the configured one comes back, or changes.
func TestWeightOfOperator(t *testing.T) {
	d := operate(t, running(), nil)
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
	if noteWeights(&st, d.controller.state().inputs.Weights); st.Realservers[0].Configured == nil ||
		*st.Realservers[0].Configured != 1 ||
		st.Realservers[1].Configured != nil {
		t.Errorf("status has %+v", st.Realservers)
	}
	if got := d.mustSet(t, "realserver=10.0.11.1&weight=7"); !slices.Equal(got,
		[]string{`service "web": realserver 10.0.11.1: weight 0 -> 7, configured 1`}) {
		t.Errorf("in all services: it says %q", got)
	}
	if got := d.mustSet(t, "service=web&realserver=10.0.11.1"); !slices.Equal(got,
		[]string{`service "web": realserver 10.0.11.1: weight 7 -> 1`}) ||
		len(d.controller.state().inputs.Weights) != 0 {
		t.Errorf("back to the configured one: it says %q, and %v are left", got, d.controller.state().inputs.Weights)
	}
	if got := d.weightsOf("web"); !slices.Equal(got, []int{1, 1}) {
		t.Errorf("weights %v, want those of the configuration", got)
	}
}

// TestWeightOfPort: an address with a port names one realserver, an address alone all realservers that have it. Without
// a port of its own, a realserver has its service's.
func TestWeightOfPort(t *testing.T) {
	cfg := running()
	web := &cfg.Services[0]
	for i, id := range []string{"10.0.11.1:8080", "10.0.11.1:8081", "10.0.11.2:0"} {
		ap := netip.MustParseAddrPort(id)
		web.Realservers = append(web.Realservers[:i:i], config.RealserverRef{Address: ap.Addr(), Port: ap.Port(),
			Forward: method.NAT, Weight: 1})
	}
	d := operate(t, cfg, nil)
	for _, c := range []struct {
		realserver string
		want       []int
	}{{"10.0.11.1:8081", []int{1, 0, 1}}, {"10.0.11.1", []int{0, 0, 1}}, {"10.0.11.2:80", []int{1, 1, 0}},
		{"10.0.11.2", []int{1, 1, 0}}} {
		d.mustSet(t, "service=web&weight=0&realserver="+c.realserver)
		if got := d.weightsOf("web"); !slices.Equal(got, c.want) {
			t.Errorf("weight 0 of %s: weights %v, want %v", c.realserver, got, c.want)
		}
		if got := d.mustSet(t, "service=web&realserver="+c.realserver); len(got) == 0 ||
			!strings.Contains(got[0], "realserver "+strings.TrimSuffix(c.realserver, ":80")) {
			t.Errorf("back to the configured weight of %s: it says %q", c.realserver, got)
		}
	}
}

// TestUnknownNames: the error lists what there is, in one line.
func TestUnknownNames(t *testing.T) {
	d := operate(t, running(), nil)
	for query, want := range map[string]string{
		"service=wbe&realserver=10.0.11.1&weight=0":  `there is no service "wbe": did you mean web?`,
		"service=mail&realserver=10.0.11.1&weight=0": `there is no service "mail": there are dns, web`,
		"service=web&realserver=10.0.11.9&weight=0": `service "web" has no realserver 10.0.11.9: it has 10.0.11.1, ` +
			`10.0.11.2`,
		"service=dns&realserver=10.0.11.9&weight=0": `service "dns" has no realserver 10.0.11.9: it has none`,
		"realserver=10.0.11.9&weight=0": `no service has a realserver 10.0.11.9: there are 10.0.11.1, ` +
			`10.0.11.2`,
		"service=web&realserver=web1&weight=0": `realserver "web1" is not an address: want one such as 10.0.11.2 ` +
			`or 10.0.11.2:8080`,
		"service=web&realserver=10.0.11.1:81&weight=0": `service "web" has no realserver 10.0.11.1:81: it has ` +
			`10.0.11.1, 10.0.11.2`,
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
	file := filepath.Join(t.TempDir(), "weight")
	if err := os.WriteFile(file, []byte("3"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := running()
	withChecks(&cfg.Services[0], config.Check{Type: "file", Direct: true, File: file, Factor: 1, Up: true})
	cfg.Services[0].Realservers[1].Weight = 0
	d := operate(t, cfg, nil)
	testkit.Eventually(t, "the offsets count", func() bool { return slices.Equal(d.weightsOf("web"), []int{4, 3}) })
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

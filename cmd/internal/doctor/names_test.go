package doctor

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// TestNames: what is found of names, and that the examination knows their addresses from the running director.
func TestNames(t *testing.T) {
	age := 7.0
	names := []api.Name{
		{Name: "a.test", Type: "address", Family: "any", Services: []string{"web"}, Answered: &age,
			Targets: []api.NameTarget{{Addresses: []string{"10.0.0.1", "10.0.0.2"}}}},
		{Name: "_http._tcp.test", Type: "srv", Family: "any", Services: []string{"web"}, Answered: &age, Cut: 3,
			Targets: []api.NameTarget{{Host: "b", Port: 80, Weight: 4, Addresses: []string{"10.0.0.3", "127.0.0.1"}}},
			Refused: []api.NameRefused{{Service: "web", Address: "127.0.0.1", Reason: "loopback"}},
			Error:   "x: SERVFAIL"},
		{Name: "b.test", Type: "address", Family: "any", Services: []string{"web"}, Server: "10.0.2.53:53",
			Error: "no answer"},
	}
	res := &result{check: "names"}
	res.names(names)
	want := []string{"warning _http._tcp.test it cannot be resolved: x: SERVFAIL dig +search _http._tcp.test SRV",
		"warning _http._tcp.test its address 127.0.0.1 is refused: loopback dig +search _http._tcp.test SRV",
		"warning _http._tcp.test 3 of its addresses are left out dig +search _http._tcp.test SRV",
		"error b.test it cannot be resolved: no answer dig -p 53 @10.0.2.53 b.test"}
	for i, f := range res.findings {
		name := strings.TrimSuffix(strings.TrimPrefix(f.Where, "name "), " (web)")
		if got := strings.Join([]string{string(f.Severity), name, f.What, f.Fix}, " "); i >= len(want) ||
			got != want[i] {
			t.Errorf("%s", got)
		}
	}
	if len(res.findings) != len(want) || len(res.fines) > 0 {
		t.Errorf("%d findings, %v", len(res.findings), res.fines)
	}
	cfg, err := config.ParseDirector("x.toml", []byte("[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\n"+
		"protocol = \"tcp\"\nport = 80\nrealserver = [{ address = \"a.test\" }]\nresolve = { srv = "+
		"\"_http._tcp.test\" }\n"))
	if err != nil {
		t.Fatal(err)
	}
	d, _ := (&Director{Config: cfg}).resolved(context.Background(), &api.DirectorStatus{Names: names})
	all, _ := realservers(d.Config)
	if len(all) != 3 || all[2] != netip.MustParseAddr("10.0.0.3") || len(cfg.Services[0].Realservers) != 0 {
		t.Errorf("the realservers are %v", all)
	}
}

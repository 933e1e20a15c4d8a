package director

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
)

// checked is the configuration that has every type of check.
func checked(t *testing.T) *config.Director {
	t.Helper()
	text, err := os.ReadFile("../config/testdata/checks.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.ParseDirector("checks.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestSubjects: each realserver is checked as the configuration says, where it says, and a Monitor takes all of that.
func TestSubjects(t *testing.T) {
	cfg := checked(t)
	all := subjects(cfg, func(s *config.Service, r *config.RealserverRef) (health.Path, string) {
		return health.Direct{}, fmt.Sprintf("to %v direct %v", r.Address, r.Check.Direct)
	})
	got := make(map[string]health.Subject)
	for _, s := range all {
		got[fmt.Sprintf("%s %v", s.Service, s.Realserver)] = s
	}
	addr := netip.MustParseAddr
	check := func(p health.Probe) *health.Check {
		return &health.Check{Probe: p, Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}
	}
	for name, want := range map[string]health.Subject{
		"web 10.0.11.4": {Port: 9443, Targets: []netip.Addr{addr("198.51.100.80"), addr("2001:db8:100::80")},
			Way: "to 10.0.11.4 direct false",
			Check: &health.Check{Probe: health.TCP{Send: "PING\r\n", Expect: "PONG"}, Interval: 10 * time.Second,
				Timeout: 3 * time.Second, Rise: 1, Fall: 5}},
		"web 10.0.11.5": {Targets: []netip.Addr{addr("10.0.11.5")}, Way: "to 10.0.11.5 direct true",
			Check: &health.Check{Interval: 10 * time.Second, Timeout: 3 * time.Second, Rise: 1, Fall: 5, Up: true,
				Probe: health.Exec{Command: []string{"/usr/local/bin/check", "an argument"},
					Env: []string{"VSTUN_SERVICE=web", "VSTUN_VIP=198.51.100.80", "VSTUN_PORT=8443",
						"VSTUN_REALSERVER=10.0.11.5"}}}},
		"web 10.0.11.1": {Port: 9443, Targets: []netip.Addr{addr("10.0.11.1")}, Way: "to 10.0.11.1 direct true",
			Check: &health.Check{Interval: 10 * time.Second, Timeout: 3 * time.Second, Rise: 1, Fall: 5, Up: true,
				Probe: health.HTTP{TLS: true, Path: "/health?full=1", Host: "www.example.com",
					Status: []health.StatusRange{{First: 200, Last: 200}, {First: 300, Last: 399},
						{First: 418, Last: 418}},
					Body: "(?i)fine", SNI: "sni.example.com"}}},
		"mail 10.0.11.1": {Port: 25, Targets: []netip.Addr{addr("198.51.100.80")},
			Way: "to 10.0.11.1 direct false", Check: check(health.SMTP{Helo: "lb.example.com"})},
		"everything 10.0.11.1": {},
		"everything 10.0.11.2": {Targets: []netip.Addr{addr("198.51.100.81")}, Way: "to 10.0.11.2 direct false",
			Check: check(health.Ping{})},
		"dns 10.0.11.3": {Port: 53, Targets: []netip.Addr{addr("198.51.100.80")}, Way: "to 10.0.11.3 direct false",
			Check: &health.Check{Probe: health.UDP{Send: "\x00\xff", ExpectHex: "00 ff ?? 1?"},
				Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3}},
		"dns 10.0.11.4": {Targets: []netip.Addr{addr("10.0.11.4")}, Way: "to 10.0.11.4 direct true",
			Check: &health.Check{Probe: health.File{Path: "/run/dns.weight", Factor: -2, Reverse: true},
				Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3}},
	} {
		service, realserver, _ := strings.Cut(name, " ")
		want.Service, want.Realserver = service, addr(realserver)
		if diff := cmp.Diff(want, got[name], cmpopts.EquateComparable(netip.Addr{}),
			cmpopts.IgnoreFields(health.Subject{}, "Path")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	dns := got["dns 10.0.11.1"].Check.Probe
	if diff := cmp.Diff(health.DNS{Query: "www.example.com", Type: "AAAA", Rcode: "NXDOMAIN", Records: 1},
		dns); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	m := health.New(func([]health.Change) {})
	if err := m.Set(all); err != nil {
		t.Error(err)
	}
	if got := m.States(); len(got) != len(all) || got[0].Checked != true {
		t.Errorf("%+v", got)
	}
}

// TestDirectHost: the Host header of a check that goes to a realserver's own address is the VIP, as that of its clients
// is.
func TestDirectHost(t *testing.T) {
	s := &config.Service{VIPs: []netip.Addr{netip.MustParseAddr("2001:db8:100::80")}}
	for _, c := range []struct {
		check config.Check
		want  string
	}{
		{config.Check{Type: "http", Direct: true, Port: 80}, "[2001:db8:100::80]"},
		{config.Check{Type: "https", Direct: true, Port: 443}, "[2001:db8:100::80]"},
		{config.Check{Type: "http", Direct: true, Port: 8080}, "[2001:db8:100::80]:8080"},
		{config.Check{Type: "http", Direct: true, Port: 8080, Host: "www"}, "www"},
		{config.Check{Type: "http", Port: 8080}, ""},
	} {
		if got := c.check.Probe(s, &config.RealserverRef{}).(health.HTTP).Host; got != c.want {
			t.Errorf("%+v: %q, want %q", c.check, got, c.want)
		}
	}
}

// TestChangeOfCertificates: a file of authorities that holds others now is a change, though its name is the same.
func TestChangeOfCertificates(t *testing.T) {
	was, is := checked(t), checked(t)
	was.Services[0].Check.CAFile, was.Services[0].Check.CA = "/ca.pem", "some"
	is.Services[0].Check.CAFile, is.Services[0].Check.CA = "/ca.pem", "others"
	if diff := cmp.Diff([]string{`service "web": check: ca /ca.pem -> /ca.pem with other certificates`},
		texts(changes(was, is))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestChangesOfHealth: each key that a reload changes has its line, once for all realservers that have their service's
// check.
func TestChangesOfHealth(t *testing.T) {
	web := func(d *config.Director) *config.Service { return &d.Services[0] }
	for _, c := range []struct {
		name   string
		change func(d *config.Director)
		want   []string
	}{
		{"nothing", func(*config.Director) {}, nil},
		{"service", func(d *config.Director) {
			s := web(d)
			s.Quorum, s.Hysteresis, s.DrainOnFailure, s.SorryServer = 3, 2, true, netip.MustParseAddr("10.0.99.2")
		}, []string{
			`service "web": quorum 1 -> 3`,
			`service "web": hysteresis 0 -> 2`,
			`service "web": sorry_server none -> 10.0.99.2`,
			`service "web": on_failure remove -> drain`,
		}},
		{"notify", func(d *config.Director) {
			d.Notify = config.Notify{Command: []string{"/usr/local/bin/tell", "a b"},
				Webhook: "https://hooks.example.com/secret", Timeout: time.Second}
		}, []string{`notify: command none -> /usr/local/bin/tell "a b"`, `notify: webhook none -> ` +
			`https://hooks.example.com`, `notify: timeout 10s -> 1s`}},
		{"the service's check", func(d *config.Director) {
			*web(d).Check = config.Check{Type: "https", Port: 80, Interval: time.Second, Timeout: time.Second, Rise: 3, Fall: 1, Path: "/x", Host: "a", Verify: true,
				Status: []config.StatusRange{{First: 200, Last: 299}, {First: 404, Last: 404}}, Body: "b c", SNI: "s",
				CAFile: "/ca", CA: "1"}
		}, []string{
			`service "web": check: via direct -> tunnel`,
			`service "web": check: port 9443 -> 80`,
			`service "web": check: interval 10s -> 1s`,
			`service "web": check: timeout 3s -> 1s`,
			`service "web": check: rise 1 -> 3`,
			`service "web": check: fall 5 -> 1`,
			`service "web": check: initial up -> down`,
			`service "web": check: path /health?full=1 -> /x`,
			`service "web": check: host www.example.com -> a`,
			`service "web": check: status 200,300-399,418 -> 200-299,404`,
			`service "web": check: body "(?i)fine" -> "b c"`,
			`service "web": check: sni sni.example.com -> s`,
			`service "web": check: ca none -> /ca`,
			`service "web": check: verify false -> true`,
		}},
		{"check removed", func(d *config.Director) {
			web(d).Check = nil
			for i := range web(d).Realservers[:3] {
				web(d).Realservers[i].Check = nil
			}
		}, []string{
			`service "web": check removed`,
			`service "web": realserver 10.0.11.2: check removed`,
			`service "web": realserver 10.0.11.3: check removed`,
		}},
		{"a realserver's check", func(d *config.Director) {
			d.Services[3].Realservers[0].Check = &config.Check{Type: "ping", Direct: true}
		}, []string{`service "everything": realserver 10.0.11.1: check added: ping, via direct`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			was, is := checked(t), checked(t)
			c.change(is)
			if diff := cmp.Diff(c.want, texts(changes(was, is))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

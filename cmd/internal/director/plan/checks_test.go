package plan

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
)

// checked is the configuration that has every type of check.
func checked(t *testing.T) *config.Director {
	t.Helper()
	text, err := os.ReadFile("../../config/testdata/checks.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.ParseDirector("checks.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// pathTo is a path that names its realserver.
type pathTo struct {
	health.Path
	Address netip.Addr
}

// TestSubjects: each realserver has the check and the path of the configuration, and a Monitor accepts all of them.
func TestSubjects(t *testing.T) {
	cfg := checked(t)
	all := Subjects(
		cfg,
		func(_ *config.Service, r *config.RealserverRef) health.Path { return pathTo{Address: r.Address} },
	)
	got := make(map[string]health.Subject)
	for _, s := range all {
		got[s.Service+" "+words.Realserver(s.Realserver)] = s
	}
	addr, tunnel := netip.MustParseAddr, "tunnel ipip port 0 key 0 false checksum false"
	check := func(p health.Probe) *health.Check {
		return &health.Check{Probe: p, Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}
	}
	for name, want := range map[string]health.Subject{
		"web 10.0.11.4": {Port: 9443, Targets: []netip.Addr{addr("198.51.100.80"), addr("2001:db8:100::80")},
			Way: tunnel,
			Check: &health.Check{Probe: health.TCP{Send: "PING\r\n", Expect: "PONG"}, Interval: 10 * time.Second,
				Timeout: 3 * time.Second, Rise: 1, Fall: 5}},
		"web 10.0.11.5": {Targets: []netip.Addr{addr("10.0.11.5")}, Way: "direct",
			Check: &health.Check{Interval: 10 * time.Second, Timeout: 3 * time.Second, Rise: 1, Fall: 5, Up: true,
				Probe: health.Exec{Command: []string{"/usr/local/bin/check", "an argument"},
					Env: []string{"VSTUN_SERVICE=web", "VSTUN_VIP=198.51.100.80", "VSTUN_PORT=8443",
						"VSTUN_REALSERVER=10.0.11.5", "VSTUN_REALSERVER_PORT=8443"}}}},
		"web 10.0.11.1": {Port: 9443, Targets: []netip.Addr{addr("10.0.11.1")}, Way: "direct",
			Check: &health.Check{Interval: 10 * time.Second, Timeout: 3 * time.Second, Rise: 1, Fall: 5, Up: true,
				Probe: health.HTTP{TLS: true, Path: "/health?full=1", Host: "www.example.com",
					Status: []health.StatusRange{{First: 200, Last: 200}, {First: 300, Last: 399},
						{First: 418, Last: 418}},
					Body: "(?i)fine", SNI: "sni.example.com"}}},
		"mail 10.0.11.1": {Port: 25, Targets: []netip.Addr{addr("198.51.100.80")},
			Way: tunnel, Check: check(health.SMTP{Helo: "lb.example.com"})},
		"everything 10.0.11.1": {},
		"everything 10.0.11.2": {Targets: []netip.Addr{addr("198.51.100.81")}, Way: tunnel,
			Check: check(health.Ping{})},
		"dns 10.0.11.3": {Port: 53, Targets: []netip.Addr{addr("198.51.100.80")}, Way: tunnel,
			Check: &health.Check{Probe: health.UDP{Send: "\x00\xff", ExpectHex: "00 ff ?? 1?"},
				Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3}},
		"dns 10.0.11.4": {Targets: []netip.Addr{addr("10.0.11.4")}, Way: "direct",
			Check: &health.Check{Probe: health.File{Path: "/run/dns.weight", Factor: -2, Reverse: true},
				Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3}},
	} {
		service, realserver, _ := strings.Cut(name, " ")
		want.Service, want.Realserver = service, netip.AddrPortFrom(addr(realserver), 0)
		if want.Check != nil {
			want.Path = pathTo{Address: want.Realserver.Addr()}
		}
		if diff := cmp.Diff(want, got[name], cmpopts.EquateComparable(netip.Addr{},
			netip.AddrPort{}, pathTo{})); diff != "" {
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

// TestDirectHost: a check of a realserver's own address has the VIP in its Host header, as the clients' requests have.
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

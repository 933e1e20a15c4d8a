package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/balancer/health"
	"vstun/balancer/method"
	"vstun/balancer/resolve"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// named returns the configuration of a file with these lines in its service.
func named(t *testing.T, lines string) *config.Director {
	t.Helper()
	cfg, err := config.ParseDirector("x.toml", []byte("[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\n"+
		"protocol = \"tcp\"\nport = 80\n"+lines))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// answered returns the answer of each question of cfg, by name. A name without an answer has none.
func answered(cfg *config.Director, by map[string][]resolve.Target) Answers {
	all := Answers{}
	for q := range Queries(cfg) {
		if targets, has := by[q.Name]; has {
			all[q] = &resolve.Answer{Targets: targets}
		}
	}
	return all
}

// target returns a target: "host:port/priority/weight address …", or the addresses alone.
func target(host string, port, priority, weight uint16, addresses ...string) resolve.Target {
	t := resolve.Target{Host: host, Port: port, Priority: priority, Weight: weight}
	for _, a := range addresses {
		t.Addresses = append(t.Addresses, netip.MustParseAddr(a))
	}
	return t
}

// realserversOf writes the realservers of web: "10.0.0.1 weight 2 of a.test", with "+1" for a rank of standby.
func realserversOf(cfg *config.Director) string {
	var all []string
	for _, r := range cfg.Services[0].Realservers {
		text := r.Name() + fmt.Sprintf(" weight %d", r.Weight)
		if r.Host != "" {
			text += " of " + r.Host
		}
		if r.Standby > 0 {
			text += fmt.Sprintf(" +%d", r.Standby)
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// TestResolved: the realservers that answers give, and the refused ones.
func TestResolved(t *testing.T) {
	const names = "[[service.realserver]]\naddress = \"a.test\"\nweight = 3\nupper = 9\n" +
		"[[service.realserver]]\naddress = \"10.0.0.1\"\n[[service.realserver]]\naddress = \"b.test\"\n"
	const srv = "resolve = { srv = \"_http._tcp.test\" }\n"
	const nat = "forward = \"nat\"\n"
	for _, c := range []struct {
		name, lines string
		by          map[string][]resolve.Target
		want        string
		refused     []string
	}{
		{"no answer", names, nil, "10.0.0.1 weight 1", nil},
		{"names", names, map[string][]resolve.Target{"a.test": {target("", 0, 0, 0, "10.0.0.4", "10.0.0.5")},
			"b.test": {target("", 0, 0, 0, "2001:db8::1")}},
			"10.0.0.1 weight 1; 10.0.0.4 weight 3 of a.test; 10.0.0.5 weight 3 of a.test; 2001:db8::1 weight 1 of " +
				"b.test",
			nil},
		{"twice", names, map[string][]resolve.Target{"a.test": {target("", 0, 0, 0, "10.0.0.1", "10.0.0.5")},
			"b.test": {target("", 0, 0, 0, "10.0.0.5")}}, "10.0.0.1 weight 1; 10.0.0.5 weight 3 of a.test", nil},
		{"hostile", names, map[string][]resolve.Target{"a.test": {target("", 0, 0, 0, "127.0.0.1", "198.51.100.80",
			"224.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "fe80::1", "::ffff:10.0.0.9", "ff02::1", "10.0.0.7")}},
			"10.0.0.1 weight 1; 10.0.0.7 weight 3 of a.test", []string{"127.0.0.1 it is a loopback address",
				"198.51.100.80 it is a VIP", "224.0.0.1 it is a multicast address", "0.0.0.0 it is the unspecified " +
					"address",
				"255.255.255.255 it is the broadcast address", "::1 it is a loopback address",
				"fe80::1 it is a link-local " +
					"address", "::ffff:10.0.0.9 it is an IPv4-mapped address", "ff02::1 it is a multicast address"}},
		{"of this host", names, map[string][]resolve.Target{"a.test": {target("", 0, 0, 0, "10.0.9.2", "10.0.9.255",
			"10.0.9.0", "10.0.9.3", "10.0.0.200")}}, "10.0.0.1 weight 1; 10.0.9.3 weight 3 of a.test",
			[]string{"10.0.9.2 it is this host itself, on eth0, which only nat reaches", "10.0.9.255 it is the " +
				"broadcast address or the number of a subnet of eth0", "10.0.9.0 it is the broadcast address or the " +
				"number of a subnet of eth0", "10.0.0.200 it is this host itself, on eth1, which only nat reaches"}},
		{"of this host, by nat", nat + "realserver = [{ address = \"a.test\" }]\n", map[string][]resolve.Target{
			"a.test": {target("", 0, 0, 0, "10.0.9.2")}}, "10.0.9.2 weight 1 of a.test", nil},
		{"SRV of tun", srv, map[string][]resolve.Target{"_http._tcp.test": {target("a", 80, 0, 5, "10.0.0.2"),
			target("b", 8080, 0, 5, "10.0.0.3"), target("c", 80, 0, 0, "10.0.0.1")}},
			"10.0.0.1 weight 1 of c; 10.0.0.2 weight 5 of a",
			[]string{"10.0.0.3:8080 port 8080 is no port of the service, and tun changes no port"}},
		{"SRV of nat", nat + srv, map[string][]resolve.Target{"_http._tcp.test": {target("a", 8080, 0, 5, "10.0.0.2"),
			target("a", 8081, 0, 6, "10.0.0.2"), target("a", 80, 0, 7, "10.0.0.2")}}, "10.0.0.2:80 weight 7 of a; " +
			"10.0.0.2:8080 weight 5 of a; 10.0.0.2:8081 weight 6 of a", nil},
		{"SRV of nat, with an address", nat + srv + "[[service.realserver]]\naddress = \"10.0.0.2\"\n",
			map[string][]resolve.Target{"_http._tcp.test": {target("a", 80, 0, 7, "10.0.0.2"),
				target("a", 81, 0, 7, "10.0.0.2")}}, "10.0.0.2 weight 1; 10.0.0.2:81 weight 7 of a", nil},
		{"priorities", srv, map[string][]resolve.Target{"_http._tcp.test": {target("a", 80, 10, 5, "10.0.0.9"),
			target("b", 80, 10, 5, "10.0.0.8"), target("c", 80, 20, 1, "10.0.0.2"), target("d", 80, 30, 1,
				"10.0.0.3")}},
			"10.0.0.8 weight 5 of b; 10.0.0.9 weight 5 of a; 10.0.0.2 weight 1 of c +1; 10.0.0.3 weight 1 of d +2",
			nil},
		{"no service", srv, map[string][]resolve.Target{"_http._tcp.test": nil}, "", nil},
		{"a sorry server", "sorry_server = \"10.0.0.4\"\n" + names, map[string][]resolve.Target{
			"a.test": {target("", 0, 0, 0, "10.0.0.4")}}, "10.0.0.1 weight 1; 10.0.0.4 weight 3 of a.test", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := named(t, c.lines)
			before := realserversOf(file)
			cfg, refused := Resolved(file, answered(file, c.by), []query.Device{ethernet("eth0", 2, "10.0.9.2/24"),
				ethernet("eth1", 3, "10.0.0.200/32")})
			if got := realserversOf(cfg); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			var got []string
			for _, r := range refused {
				got = append(got, strings.TrimPrefix(r.String(), `service "web": realserver `))
				got[len(got)-1], _, _ = strings.Cut(got[len(got)-1], " of ")
				got[len(got)-1] += " " + r.Reason
			}
			if !slices.Equal(got, c.refused) {
				t.Errorf("refused %q, want %q", got, c.refused)
			}
			if realserversOf(file) != before {
				t.Error("the configuration is another one now")
			}
			if s := &cfg.Services[0]; c.name == "a sorry server" && (len(s.Realservers) != 2 ||
				!s.IsRealserver(s.Sorry.ID())) {
				t.Errorf("the sorry server is %v", s.Sorry)
			}
		})
	}
	plain := named(t, "")
	if got, _ := Resolved(plain, Answers{}, nil); got != plain {
		t.Error("a configuration without names is copied")
	}
}

// TestQueries: which questions a configuration has, of which families, and how often they are asked.
func TestQueries(t *testing.T) {
	cfg := named(t, `realserver = [{ address = "a.test" }, { address = "b.test", forward = "nat" }]
resolve = { srv = "_http._tcp.test", interval = "10s", server = "10.0.2.53" }
[[service]]
name = "six"
vip = "2001:db8:100::80"
protocol = "tcp"
port = 80
forward = "nat"
realserver = [{ address = "b.test" }]
resolve = { server = "10.0.2.53:5353" }
[[service]]
name = "dns"
vip = "198.51.100.81"
protocol = "tcp"
port = 80
realserver = [{ address = "a.test" }]
resolve = { interval = "5s", server = "10.0.2.53" }
`)
	server, other := netip.MustParseAddrPort("10.0.2.53:53"), netip.MustParseAddrPort("10.0.2.53:5353")
	want := map[resolve.Query]time.Duration{
		{Name: "a.test", Family: resolve.Any, Server: server}:                     5 * time.Second,
		{Name: "b.test", Family: resolve.IPv4, Server: server}:                    10 * time.Second,
		{Name: "b.test", Family: resolve.IPv6, Server: other}:                     30 * time.Second,
		{Name: "_http._tcp.test", SRV: true, Family: resolve.Any, Server: server}: 10 * time.Second,
	}
	if got := Queries(cfg); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Asking(cfg, resolve.Query{Name: "a.test", Family: resolve.Any, Server: server}); !slices.Equal(got,
		[]string{"web", "dns"}) {
		t.Errorf("%v ask for a.test", got)
	}
}

// TestAnswered: answers that change nothing leave the configuration as it is. A weight that an operator has set stays
// while its realserver does. Servers of VS/NAT that leave an answer are retired.
func TestAnswered(t *testing.T) {
	file := named(t, "forward = \"nat\"\nrealserver = [{ address = \"a.test\" }]\n")
	answer := func(addresses ...string) Answers {
		return answered(file, map[string][]resolve.Target{"a.test": {target("", 0, 0, 0, addresses...)}})
	}
	in := Inputs{}.Reconfigured(file)
	one := in.Answered(answer("10.0.0.1", "10.0.0.2"))
	id := RealserverID{"web", netip.MustParseAddrPort("10.0.0.1:0")}
	one.Weights = one.Weights.With(one.Config, []RealserverID{id}, 0)
	if same := one.Answered(answer("10.0.0.1", "10.0.0.2")); same.Config != one.Config {
		t.Error("the same answer makes another configuration")
	}
	if same := one.Answered(answer("10.0.0.1", "10.0.0.2", "127.0.0.1")); same.Config != one.Config ||
		len(same.Refused) != 1 {
		t.Errorf("a refused address makes another configuration: %v", same.Refused)
	}
	two := one.Answered(answer("10.0.0.1", "10.0.0.3"))
	if got := realserversOf(two.Config); got != "10.0.0.1 weight 1 of a.test; 10.0.0.3 weight 1 of a.test" ||
		two.Weights.Of(id, 1) != 0 || len(two.RetiredNAT) != 1 || two.File != file {
		t.Errorf("%s, weights %v, retired %v", got, two.Weights, two.RetiredNAT)
	}
	if again := two.Reconfigured(file); realserversOf(again.Config) != realserversOf(two.Config) {
		t.Errorf("after a reload: %s", realserversOf(again.Config))
	}
	if got := (Inputs{}).Answered(answer("10.0.0.1")); got.Config != nil {
		t.Errorf("before the start: %v", got.Config)
	}
}

// TestStandby: realservers of SRV records with a higher priority number get new connections only while no other is up.
func TestStandby(t *testing.T) {
	a := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, n}) }
	check := &config.Check{Type: "tcp"}
	ref := func(n byte, rank int) config.RealserverRef {
		return config.RealserverRef{Address: a(n), Weight: 2, Standby: rank, Check: check}
	}
	s := config.Service{Name: "web", Quorum: 3, Realservers: []config.RealserverRef{ref(1, 0), ref(2, 0), ref(3, 1),
		ref(4, 1), ref(5, 2)}}
	for _, c := range []struct {
		up      string // of the five
		weights string
		sum     int
	}{
		{"yyyyy", "2 2 0 0 0", 4}, {"nyyyy", "2! 2 0 0 0", 2}, {"nnyyy", "2! 2! 2 2 0", 4}, {"nnnny", "2! 2! 2! 2! 2",
			2},
		{"nnnnn", "2! 2! 2! 2! 2!", 0},
	} {
		states := map[RealserverID]health.State{}
		for i := range s.Realservers {
			id := RealserverID{"web", s.Realservers[i].ID()}
			states[id] = health.State{Service: "web", Realserver: id.Realserver, Checked: true, Known: true,
				Up: c.up[i] == 'y'}
		}
		b := service(&s, config.Sources{}, nil)
		is := applyHealth(&b, &s, states, nil, nil)
		var got []string
		for _, r := range b.Realservers {
			got = append(got, fmt.Sprint(r.Weight)+map[bool]string{true: "!"}[r.Down])
		}
		if text := strings.Join(got, " "); text != c.weights || is.UpWeight != c.sum || is.Up != (c.sum >= 3) ||
			!is.Known {
			t.Errorf("%s: %s, %+v; want %s, %d", c.up, text, is, c.weights, c.sum)
		}
	}
	if s.Realservers[0].Forward != method.TUN {
		t.Error("the method is another one")
	}
}

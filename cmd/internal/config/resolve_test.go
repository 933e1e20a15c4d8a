package config_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
)

const namedService = goodService + "realserver = [{ address = \"10.0.0.1\" }, { address = \"web.test\", weight = 3, " +
	"upper = 7 }]\n"

// TestNamesAccepted: a realserver may have a name instead of an address, and SRV records may be realservers.
func TestNamesAccepted(t *testing.T) {
	server := netip.MustParseAddrPort
	for name, c := range map[string]struct {
		text  string
		right func(s *config.Service) bool
	}{
		"a name": {namedService, func(s *config.Service) bool {
			return len(s.Realservers) == 1 && len(s.Named) == 1 && s.Named[0].Host == "web.test" &&
				s.Named[0].Weight == 3 && s.Named[0].Upper == 7 && s.Named[0].Encap == "ipip" &&
				s.Resolve == config.Resolve{Interval: 30 * time.Second, Family: "any"} && s.HasNames()
		}},
		"a name as it is written": {goodService + "realserver = [{ address = \"Web-1._x.test.\" }]",
			func(s *config.Service) bool {
				return s.Named[0].Host == "Web-1._x.test."
			}},
		"resolve": {namedService + "resolve = { interval = \"1s\", server = \"10.0.2.53\", family = \"ipv6\" }",
			func(s *config.Service) bool {
				return s.Resolve == config.Resolve{Interval: time.Second, Server: server("10.0.2.53:53"),
					Family: "ipv6"} && s.FamilyOf(&s.Named[0]) == "ipv6"
			}},
		"SRV": {goodService + "forward = \"nat\"\non_failure = \"drain\"\ncheck = { type = \"tcp\" }\nresolve = { " +
			"srv = \"_http._tcp.test\", server = \"[2001:db8::53]:5353\", interval = \"24h\" }",
			func(s *config.Service) bool {
				return s.Resolve.SRV == "_http._tcp.test" && s.Resolve.Server == server("[2001:db8::53]:5353") &&
					s.Found.Forward == method.NAT && s.Found.Check == s.Check && s.Check != nil &&
					s.Found.DrainOnFailure &&
					s.FamilyOf(&s.Found) == "ipv4" && s.HasNames() && s.OnePort() && s.Ours(80) && !s.Ours(81)
			}},
		"quorum of names": {namedService + "quorum = 100", func(s *config.Service) bool { return s.Quorum == 100 }},
		"none": {goodService, func(s *config.Service) bool {
			return !s.HasNames() && s.Resolve == config.Resolve{}
		}},
	} {
		d, err := config.ParseDirector("x.toml", []byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		unserved := func(w string) bool { return strings.Contains(w, "the service refuses all clients") }
		if s := &d.Services[0]; !c.right(s) || s.HasNames() && slices.ContainsFunc(d.Warnings, unserved) {
			t.Errorf("%s: %+v, %v", name, s, d.Warnings)
		}
	}
}

// TestNameFaults: what is no name, and what names cannot be.
func TestNameFaults(t *testing.T) {
	const at = `service "web": `
	const no = " is neither an address nor a name: want an IPv4 or IPv6 address, or a name such as \"web1.example.com\""
	with := func(address string) string { return goodService + "realserver = [{ address = \"" + address + "\" }]\n" }
	const mixed = "vip = [\"198.51.100.80\", \"2001:db8:100::80\"]"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"a mistyped address": {with("10.0.0.300"), []string{at + `realserver[1]: address: "10.0.0.300"` + no}},
		"a number":           {with("7"), []string{at + `realserver[1]: address: "7"` + no}},
		"an empty part":      {with("a..b"), []string{at + `realserver[1]: address: "a..b"` + no}},
		"a hyphen":           {with("-a.b"), []string{at + `realserver[1]: address: "-a.b"` + no}},
		"twice": {goodService + "realserver = [{ address = \"a.test\" }, { address = \"A.test.\" }]", []string{at +
			`realserver "A.test.": address: "A.test." is there twice: want a realserver once in a service`}},
		"wireguard": {with("a.test\", encap = \"wireguard"), []string{at + `realserver "a.test": address: "a.test" ` +
			`is a name, and realservers of wireguard are known by their address in the tunnel: want the address`}},
		"both families": {strings.Replace(with("a.test\", forward = \"nat"), `vip = "198.51.100.80"`, mixed, 1),
			[]string{at + `realserver "a.test": address: "a.test" is a name, and the VIPs are of both families, and ` +
				`nat changes no family: want tun, or a service of each family`}},
		"another family": {with("a.test\", forward = \"dr") + "resolve = { family = \"ipv6\" }", []string{at +
			`realserver "a.test": address: resolve.family is ipv6, and dr changes no family: want ipv4, or leave it ` +
			`out`}},
		"keys": {namedService + "resolve = { srv = \"a b\", interval = \"1ms\", server = \"ns.test\", family = " +
			"\"4\", ttl = 1 }",
			[]string{at + `resolve: interval: "1ms" is out of range: want 1s to 24h`,
				at + `resolve: family: "4" is unknown: want any, ipv4 or ipv6`,
				at + `resolve: server: "ns.test" is no address of a name server: want an address such as ` +
					`"10.0.2.53", "10.0.2.53:5353" or "[2001:db8::53]:53"`,
				at + `resolve: srv: "a b" is not a name: want a name such as "_http._tcp.web.example.com"`,
				at + `resolve: ttl: unknown key: want interval, family, server or srv`}},
		"a long name": {goodService + "resolve = { srv = \"" + strings.Repeat("a123456789.", 23) + "b\" }",
			[]string{at +
				`resolve: srv: "` + strings.Repeat("a123456789.", 23)[:64] + `…" has more than 253 characters: want ` +
				`a name such as "_http._tcp.web.example.com"`}},
		"port of tun": {goodService + "realserver = [{ address = \"a.test\", port = 80 }]", []string{at +
			`realserver "a.test": port: only nat changes the port of packets, and this realserver's method is tun: ` +
			`leave the port out, or use nat`}},
	} {
		_, err := config.ParseDirector("x.toml", []byte(c.text))
		if err == nil {
			t.Errorf("%s: no fault", name)
			continue
		}
		var got []string
		for line := range strings.SplitSeq(err.Error(), "\n") {
			_, line, _ = strings.Cut(strings.TrimPrefix(line, "x.toml:"), ": ")
			got = append(got, line)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
	d, err := config.ParseDirector("x.toml", []byte(served+"resolve = { interval = \"5s\" }"))
	if want := `x.toml:7: service "web": resolve: no realserver of this service has a name: leave it out, or add ` +
		`srv`; err !=
		nil || !slices.Equal(d.Warnings, []string{want}) {
		t.Errorf("%v, %v", d.Warnings, err)
	}
}

package config_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/cmd/internal/config"
	"vstun/routing/announce"
)

func TestBGP(t *testing.T) {
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		text string
		want config.BGP
	}{
		"none": {"", config.BGP{}},
		"defaults": {"[bgp]\nas = 65010\nrouter_id = \"10.0.2.2\"\n[[bgp.peer]]\naddress = \"10.0.2.1\"\nas = 65000\n",
			config.BGP{Config: announce.Config{AS: 65010, RouterID: addr("10.0.2.2"), Graceful: time.Second,
				Linger: 3 * time.Second, Peers: []announce.Peer{{Addr: addr("10.0.2.1"), AS: 65000,
					HoldTime: 9 * time.Second, IPv4: true, IPv6: true}}}}},
		"all": {`[bgp]
as = 4200000000
router_id = "10.0.2.2"
listen = "10.0.2.2"
graceful_shutdown = "0s"
linger = "5s"
[[bgp.peer]]
address = "2001:db8::1"
as = 4200000000
source = "2001:db8::2"
password = "secret"
hold_time = "30s"
ttl_security = true
bfd = {}
families = ["ipv4"]
next_hop = "10.0.2.2"
[[bgp.peer]]
address = "192.0.2.1"
as = 65000
multihop = 3
listen = ""
[[bgp.vip]]
address = "198.51.100.80"
med = 7
local_pref = 200
communities = ["65010:1", "65010:2:3", "no-export"]
`, config.BGP{}},
	} {
		got, err := config.ParseDirector("x.toml", []byte(c.text+goodService))
		if name == "all" { // a key too many
			if err == nil || !strings.Contains(err.Error(), "bgp: peer \"192.0.2.1\": listen: unknown key") {
				t.Errorf("%s: %v", name, err)
			}
			c.text = strings.Replace(c.text, "multihop = 3\nlisten = \"\"\n", "multihop = 3\n", 1)
			got, err = config.ParseDirector("x.toml", []byte(c.text+goodService))
			c.want = config.BGP{Config: announce.Config{AS: 4200000000, RouterID: addr("10.0.2.2"),
				Listen: addr("10.0.2.2"), Linger: 5 * time.Second, Peers: []announce.Peer{
					{Addr: addr("2001:db8::1"), AS: 4200000000, Source: addr("2001:db8::2"), Password: "secret",
						HoldTime: 30 * time.Second, TTLSecurity: true, IPv4: true, NextHop: addr("10.0.2.2"),
						BFD: announce.BFD{Interval: 300 * time.Millisecond, Multiplier: 3}},
					{Addr: addr("192.0.2.1"), AS: 65000, Multihop: 3, HoldTime: 9 * time.Second, IPv4: true,
						IPv6: true},
				}}, VIPs: []announce.Route{{VIP: addr("198.51.100.80"), MED: 7, LocalPref: 200,
				Communities: []announce.Community{{A: 65010, B: 1}, {Large: true, A: 65010, B: 2, C: 3},
					{A: 65535, B: 65281}}}}}
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got.BGP, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestBGPFaults(t *testing.T) {
	const speaker = "as = 65010\nrouter_id = \"10.0.2.2\"\n"
	const peer = "[[bgp.peer]]\naddress = \"10.0.2.1\"\nas = 65000\n"
	const wantAS = "want the number of the director's autonomous system, 1 to 4294967294, such as 65010"
	const wantID = `want an IPv4 address that no other router has as its ID, such as "10.0.2.2"`
	const at = `bgp: peer "10.0.2.1": `
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing": {"", []string{"bgp: as: missing: " + wantAS, "bgp: router_id: missing: " + wantID,
			"bgp: peer: missing: want at least one [[bgp.peer]] table"}},
		"values": {"as = 0\nrouter_id = \"2001:db8::1\"\nlisten = \"198.51.100.80\"\nlinger = \"2m\"\n" +
			peer, []string{
			"bgp: as: 0 is out of range: " + wantAS, "bgp: router_id: \"2001:db8::1\" is not a router ID: " + wantID,
			"bgp: listen: 198.51.100.80 is a VIP, and no director's host has it as an address: want an address of " +
				"this host",
			"bgp: linger: \"2m\" is out of range: want 0s to 1m"}},
		"a VIP as peer": {speaker + "[[bgp.peer]]\naddress = \"198.51.100.80\"\nas = 65000\n", []string{
			`bgp: peer "198.51.100.80": address: 198.51.100.80 is a VIP: want the router's own address`}},
		"twice": {speaker + peer + peer, []string{at + "address: 10.0.2.1 is there twice: want each peer once"}},
		"hold_time": {speaker + peer + "hold_time = \"3500ms\"\n", []string{
			at + `hold_time: "3.5s" is no whole number of seconds: want whole seconds from 3s on`}},
		"password": {speaker + peer + "password = \"" + strings.Repeat("x", 81) + "\"\n", []string{
			at + "password: has 81 bytes: want at most 80"}},
		"password without quotes": {speaker + peer + "password = 12345678\n", []string{
			at + "password: the value is of the wrong type: want a password of at most 80 bytes"}},
		"multihop 1": {speaker + peer + "multihop = 1\n", []string{
			at + "multihop: 1 is the TTL to a neighbour: leave it out, or want 2 to 255"}},
		"multihop and GTSM": {speaker + peer + "multihop = 2\nttl_security = true\n", []string{
			at + "ttl_security: is for neighbours, and multihop is 2: want one of them"}},
		"multihop and BFD": {speaker + peer + "multihop = 2\nbfd = {}\n", []string{
			at + "bfd: is for neighbours, and multihop is 2: leave one of them out, or let another program on this " +
				"host speak BGP"}},
		"multihop within the AS": {speaker + strings.Replace(peer, "65000", "65010", 1) + "multihop = 2\n", []string{
			at + "multihop: the peer is of the director's own AS, to which packets have the host's TTL: leave it out"}},
		"bfd": {speaker + peer + "bfd = { interval = \"10ms\", multiplier = 1, port = 1 }\n", []string{
			at + `bfd: interval: "10ms" is out of range: want 50ms to 10s`,
			at + "bfd: multiplier: 1 is out of range: want 2 to 255",
			at + "bfd: port: unknown key: want interval or multiplier"}},
		"families": {speaker + peer + "families = [\"vpnv4\"]\n", []string{
			at + `families: "vpnv4" is unknown: want ipv4 or ipv6`}},
		"source": {speaker + peer + "source = \"2001:db8::2\"\n", []string{
			at + "source: 2001:db8::2 is of another family than the peer: want an IPv4 address"}},
		"next_hop": {speaker + peer + "next_hop = \"10.0.2.2\"\n", []string{
			at + "next_hop: 10.0.2.2 is of the session's family, in which the session's address is the next hop: " +
				"want an address of the other family"}},
		"VIPs": {speaker + peer + "[[bgp.vip]]\naddress = \"198.51.100.81\"\nprepend = 17\n" +
			"[[bgp.vip]]\naddress = \"198.51.100.80\"\ncommunities = [\"1\", \"graceful-shutdown\", " +
			"\"1:1\", \"1:1\"]\n" +
			"[[bgp.vip]]\naddress = \"198.51.100.80\"\n", []string{
			`bgp: vip "198.51.100.81": address: 198.51.100.81 is not a VIP of a service: want a VIP of a service`,
			`bgp: vip "198.51.100.81": prepend: 17 is out of range: want 0 to 16 additional copies of the ` +
				`director's AS`,
			`bgp: vip "198.51.100.80": communities: "1" is not a community: want an array of communities such as ` +
				`"65010:100", "65010:1:2" or "no-export"`,
			`bgp: vip "198.51.100.80": communities: "graceful-shutdown" is of routes that will be withdrawn soon: ` +
				`the director adds it itself`,
			`bgp: vip "198.51.100.80": communities: "1:1" is there twice: want each community once`,
			`bgp: vip "198.51.100.80": address: 198.51.100.80 is there twice: want each VIP once`}},
		"prepend within the AS": {speaker + strings.Replace(peer, "65000", "65010", 1) +
			"[[bgp.vip]]\naddress = \"198.51.100.80\"\nprepend = 1\n", []string{
			`bgp: vip "198.51.100.80": prepend: peer 10.0.2.1 is of the director's own AS, and refuses a path with ` +
				`it: leave it out, or set local_pref`}},
	} {
		_, err := config.ParseDirector("x.toml", []byte("[bgp]\n"+c.text+"\n"+goodService))
		if err == nil {
			t.Errorf("%s: no fault", name)
			continue
		}
		var got []string
		for _, l := range strings.Split(err.Error(), "\n") {
			_, l, _ = strings.Cut(strings.TrimPrefix(l, "x.toml:"), ": ")
			got = append(got, l)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestBGPWarnings(t *testing.T) {
	const text = "[bgp]\nas = 65010\nrouter_id = \"10.0.2.2\"\n[[bgp.peer]]\naddress = \"10.0.2.1\"\nas = 65000\n"
	stop := func(graceful string) string {
		return strings.Replace(text, "[[", "graceful_shutdown = \""+graceful+"\"\nlinger = \"1m\"\n[[", 1) + goodService
	}
	for name, c := range map[string]struct{ text, want string }{
		"announce_when without BGP": {goodService + "announce_when = \"always\"\n", "announce_when: without [bgp] no " +
			"VIP is announced to routers"},
		"a stop that systemd ends": {stop("25s"), "x.toml:5: bgp: linger: a stop takes 1m25s with graceful_shutdown, " +
			"and up to 10s for the rest, and systemd kills a director after 1m30s: shorten them, or set " +
			"TimeoutStopSec=105 in the unit"},
		"a long stop":   {stop("20s"), ""},
		"announce_when": {text + goodService + "announce_when = \"always\"\n", ""},
		"sorry_server": {text + goodService + "sorry_server = \"10.0.11.9\"\n", "sorry_server: without its quorum " +
			"the VIP is withdrawn from routers"},
		"sorry_server, announced": {text + goodService + "sorry_server = \"10.0.11.9\"\nannounce_when = \"always\"\n",
			""},
		"sorry_server without BGP": {goodService + "sorry_server = \"10.0.11.9\"\n", ""},
		"local_pref elsewhere": {text + "[[bgp.vip]]\naddress = \"198.51.100.80\"\nlocal_pref = 7\n" +
			goodService, "local_pref: only peers"},
		"next_hop without VIPs": {text + "families = \"ipv4\"\nnext_hop = \"2001:db8::2\"\n" + goodService,
			"families"},
	} {
		got, err := config.ParseDirector("x.toml", []byte(c.text))
		text := ""
		if err != nil {
			text = err.Error()
		} else {
			for _, w := range got.Warnings {
				if strings.Contains(w, "bgp") || strings.Contains(w, "announce") || strings.Contains(w, "sorry") {
					text += w
				}
			}
		}
		if (text == "") != (c.want == "") || !strings.Contains(text, c.want) {
			t.Errorf("%s: %q, want %q", name, text, c.want)
		}
	}
}

// TestBGPNeedsRestart: a reload changes everything but what needs the privileged port again.
func TestBGPNeedsRestart(t *testing.T) {
	parse := func(more string) *config.Director {
		d, err := config.ParseDirector("x.toml", []byte(more+goodService))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	with := func(as, listen string) *config.Director {
		return parse("[bgp]\nas = " + as + "\nrouter_id = \"10.0.2.2\"\nlisten = \"" + listen + "\"\n" +
			"[[bgp.peer]]\naddress = \"10.0.2.1\"\nas = 65000\n")
	}
	for _, c := range []struct {
		was, is *config.Director
		want    string
	}{
		{parse(""), with("1", ""), ""}, {with("1", ""), parse(""), ""}, {with("1", ""), with("2", ""), ""},
		{with("1", "10.0.2.2"), with("1", ""), ""}, {with("1", "10.0.2.2"), with("1", "10.0.2.2"), ""},
		{parse(""), with("1", "10.0.2.2"), "bgp.listen"}, {with("1", ""), with("1", "10.0.2.2"), "bgp.listen"},
		{with("1", "10.0.2.2"), with("2", "10.0.2.2"), "bgp.as"},
	} {
		if got := strings.Join(c.was.NeedsRestart(c.is), ","); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

package doctor

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/encap/wireguard"
	"vstun/routing/query"
)

// TestPortChecks: a firewall must accept datagrams in both directions, of each IP version that a peer is reached by.
func TestPortChecks(t *testing.T) {
	cfg := config.WireGuard{Listen: 51821}
	for _, at := range []string{"127.0.0.1:51820", "203.0.113.9:7", "203.0.113.10:8", "[2001:db8:1::9]:51820"} {
		cfg.Peers = append(cfg.Peers, wireguard.Peer{Endpoint: netip.MustParseAddrPort(at)})
	}
	cfg.Peers = append(cfg.Peers, wireguard.Peer{})
	var got []string
	for _, c := range portChecks(&cfg, func(a netip.Addr) (query.Path, bool, error) {
		return query.Path{Link: "eth0", Local: a.IsLoopback(), Source: anyClient[a.Is6()]}, true, nil
	}) {
		u := packet.UDP(transport(c.spec.Packet))
		got = append(got, fmt.Sprintf("%s>%s %d>%d %s: %s", c.spec.IIF, c.spec.OIF, u.SrcPort(), u.DstPort(), c.name,
			c.xtables))
	}
	if diff := cmp.Diff([]string{
		"eth0> 7>51821 WireGuard's datagrams to UDP port 51821: -p udp --dport 51821",
		">eth0 51821>7 WireGuard's datagrams to 203.0.113.9:7: -p udp --sport 51821",
		"eth0> 51820>51821 WireGuard's datagrams to UDP port 51821: -p udp --dport 51821",
		">eth0 51821>51820 WireGuard's datagrams to [2001:db8:1::9]:51820: -p udp --sport 51821",
	}, got); diff != "" {
		t.Error(diff)
	}
}

// TestSealedRoute: an endpoint on this host is a finding, and so is one without a route.
func TestSealedRoute(t *testing.T) {
	at := netip.MustParseAddr("203.0.113.9")
	for _, c := range []struct {
		path query.Path
		want []string
	}{
		{query.Path{MTU: 1500}, nil},
		{query.Path{MTU: 65536, Local: true}, []string{"warning web: its endpoint 203.0.113.9 is an address of this " +
			"host [set the endpoint to an address of the realserver's host]"}},
		{query.Path{}, []string{"error web: there is no route to its endpoint 203.0.113.9 []"}},
	} {
		res := result{check: "routes"}
		res.sealedRoute("web", at, c.path)
		mustFind(t, fmt.Sprint(c.path), &res, c.want)
	}
}

// TestWireGuardFindings: each peer without a handshake is a finding that says where, and what to look at.
func TestWireGuardFindings(t *testing.T) {
	now, old := 1.0, 1000.0
	for _, c := range []struct {
		name    string
		st      *api.WireGuard
		refused uint64
		want    []string
	}{
		{"no table", nil, 0, nil},
		{"handshakes", &api.WireGuard{Peers: []api.WireGuardPeer{{Address: "10.99.0.2", Endpoint: "192.0.2.1:51820",
			Handshake: &now}, {Address: "10.99.0.3", Handshake: &old}}}, 0, nil},
		{"none", &api.WireGuard{Peers: []api.WireGuardPeer{{Address: "10.99.0.2", Endpoint: "192.0.2.1:51820"}}}, 0,
			[]string{"error realserver 10.99.0.2 at 192.0.2.1:51820: there was no handshake with it []"}},
		{"wrong key", &api.WireGuard{Peers: []api.WireGuardPeer{{Address: "10.99.0.2",
			Endpoint: "192.0.2.1:51820"}}}, 2,
			[]string{"error realserver 10.99.0.2 at 192.0.2.1:51820: there was no handshake with it " +
				"[this end has refused 2 handshakes since its start: so keys or clocks differ]"}},
		{"not come", &api.WireGuard{Peers: []api.WireGuardPeer{{Address: "10.99.0.2"}}}, 0,
			[]string{"error realserver 10.99.0.2: it has no endpoint here, and has not come by itself []"}},
		{"refused datagram", &api.WireGuard{Error: "network is unreachable"}, 0, []string{"warning wireguard: the " +
			"kernel has refused a datagram: network is unreachable [look whether a firewall of this host refuses " +
			"what it sends]"}},
	} {
		res := result{check: "wireguard"}
		res.wireguard("realserver", &config.WireGuard{Listen: 51820}, c.st, c.refused)
		mustFind(t, c.name, &res, c.want)
	}
}

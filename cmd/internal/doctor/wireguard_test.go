package doctor

import (
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

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

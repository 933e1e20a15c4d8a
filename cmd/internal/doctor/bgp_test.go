package doctor

import (
	"testing"

	"vstun/cmd/internal/api"
)

// TestBGPFindings: each fault of a session is a finding that says what it is, where, and what to do.
func TestBGPFindings(t *testing.T) {
	up := api.BGPPeer{Address: "10.0.2.1", State: "established", Announced: 1, BFD: "up"}
	down := api.BGPPeer{Address: "10.0.3.1", State: "down", Reason: "the connection is refused",
		Fix: "let it pass; a fix"}
	vips := []string{"198.51.100.80"}
	for _, c := range []struct {
		name string
		b    *api.BGP
		want []string
	}{
		{"no BGP", nil, nil},
		{"good", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{up}}, nil},
		{"one of two sessions", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{up, down}},
			[]string{"warning BGP peer 10.0.3.1: there is no session: the connection is refused [let it pass a fix]"}},
		{"no session", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{down}},
			[]string{"error BGP peer 10.0.3.1: there is no session: the connection is refused [let it pass a fix]"}},
		{"no family", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{{Address: "10.0.2.1",
			State: "established", Missing: []string{"ipv6"}, Fix: "set next_hop"}}},
			[]string{"warning BGP peer 10.0.2.1: it gets no VIPs of ipv6 [set next_hop]"}},
		{"no BFD", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{{Address: "10.0.2.1",
			State: "established", Since: 6, BFD: "down"}}}, []string{
			"warning BGP peer 10.0.2.1: BFD is down and the session is " +
				"up [switch BFD on for this neighbour at the router; let UDP port 3784 pass]"}},
		{"many routes", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{{Address: "10.0.2.1",
			State: "established", Routes: 1000, Fix: "a filter"}}},
			[]string{"warning BGP peer 10.0.2.1: it sends 1000 routes [a filter]"}},
		{"no BFD yet", &api.BGP{State: "announcing", Announced: vips, Peers: []api.BGPPeer{{Address: "10.0.2.1",
			State: "established", Since: 1, BFD: "down"}}}, nil},
		{"standby", &api.BGP{State: "standby", Peers: []api.BGPPeer{up}},
			[]string{"warning BGP: this director is on standby []"}},
		{"no quorum", &api.BGP{State: "announcing", Withdrawn: vips, Peers: []api.BGPPeer{up}},
			[]string{"error BGP: no VIP is announced: no service has its quorum []"}},
		{"a backup", &api.BGP{State: "announcing", Withdrawn: vips, Elsewhere: vips, Peers: []api.BGPPeer{up}}, nil},
		{"a backup, and no quorum for another VIP", &api.BGP{State: "announcing", Elsewhere: vips,
			Withdrawn: append(vips, "198.51.100.81"), Peers: []api.BGPPeer{up}},
			[]string{"error BGP: no VIP is announced: no service has its quorum []"}},
	} {
		res := result{check: "bgp"}
		res.bgp(c.b)
		mustFind(t, c.name, &res, c.want)
	}
}

package director

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vstun/cmd/internal/config"
	"vstun/routing/announce"
)

// TestBGPChanges names every changed key of [bgp], and shows no password.
func TestBGPChanges(t *testing.T) {
	a := netip.MustParseAddr
	was := &config.Director{BGP: config.BGP{Config: announce.Config{AS: 65010, RouterID: a("10.0.2.2"),
		Linger: 3 * time.Second, Peers: []announce.Peer{{Addr: a("10.0.2.1"), AS: 65000, IPv4: true, IPv6: true},
			{Addr: a("10.0.3.1"), AS: 65000}}}, VIPs: []announce.Route{{VIP: a("198.51.100.80"), MED: 7}}}}
	is := &config.Director{BGP: config.BGP{Config: announce.Config{AS: 65010, RouterID: a("10.0.2.2"),
		Linger: 5 * time.Second, Peers: []announce.Peer{{Addr: a("10.0.2.1"), AS: 65001, IPv4: true, Password: "secret",
			BFD: announce.BFD{Interval: 300 * time.Millisecond, Multiplier: 3}}, {Addr: a("2001:db8::1"), AS: 65000}}},
		VIPs: []announce.Route{{VIP: a("198.51.100.80"), Communities: []announce.Community{{A: 1, B: 2}}}}}}
	for _, c := range []struct {
		was, is *config.Director
		want    []string
	}{
		{was, was, nil},
		{was, is, []string{"bgp: linger 3s -> 5s", "bgp peer 10.0.2.1: as 65000 -> 65001",
			"bgp peer 10.0.2.1: password none -> 6 characters",
			"bgp peer 10.0.2.1: bfd none -> interval 300ms multiplier 3",
			"bgp peer 10.0.2.1: families ipv4,ipv6 -> ipv4",
			"bgp peer 2001:db8::1: added: AS 65000", "bgp peer 10.0.3.1: removed",
			"bgp vip 198.51.100.80: med 7 -> 0", "bgp vip 198.51.100.80: communities none -> 1:2"}},
		{&config.Director{}, is, []string{"bgp: added: AS 65010, router_id 10.0.2.2",
			"bgp peer 10.0.2.1: added: AS 65001",
			"bgp peer 2001:db8::1: added: AS 65000",
			"bgp vip 198.51.100.80: added: med 0, local_pref 0, communities 1:2, prepend 0"}},
		{was, &config.Director{}, []string{"bgp: removed", "bgp peer 10.0.2.1: removed", "bgp peer 10.0.3.1: removed",
			"bgp vip 198.51.100.80: removed"}},
	} {
		var got []string
		for _, change := range changes(c.was, c.is) {
			got = append(got, change.Text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q\nwant %q", got, c.want)
		}
	}
}

package plan

import (
	"net/netip"
	"slices"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/routing/announce"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// TestRoutes announces the VIPs of services that have their quorum, or are always announced, with their attributes.
func TestRoutes(t *testing.T) {
	a, b, c := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2"),
		netip.MustParseAddr("2001:db8::1")
	cfg := &config.Director{Services: []config.Service{
		{Name: "web", VIPs: []netip.Addr{b, a}}, {Name: "mail", VIPs: []netip.Addr{a}},
		{Name: "dns", VIPs: []netip.Addr{c}},
	}, BGP: config.BGP{Config: announce.Config{AS: 65010}, VIPs: []announce.Route{{VIP: b, MED: 7}}}}
	up, down, unknown := ServiceState{Up: true, Known: true}, ServiceState{Known: true}, ServiceState{Up: true}
	one := []config.VRRP{{Instance: vrrp.Instance{Name: "VI_1"}, VIPs: []netip.Addr{a}}}
	for _, v := range []struct {
		name   string
		states map[string]ServiceState
		change func(in *Inputs)
		want   []netip.Addr
	}{
		{"all up", map[string]ServiceState{"web": up, "mail": up, "dns": up}, nil, []netip.Addr{a, b, c}},
		{"one of two services down", map[string]ServiceState{"web": down, "mail": up, "dns": down}, nil,
			[]netip.Addr{a}},
		{"not known yet", map[string]ServiceState{"web": unknown, "mail": unknown, "dns": unknown}, nil, nil},
		{"always", map[string]ServiceState{"dns": down}, func(in *Inputs) {
			in.Config.Services[2].AnnounceAlways = true
		}, []netip.Addr{c}},
		{"another master", map[string]ServiceState{"web": up}, func(in *Inputs) {
			in.Config.VRRP, in.Roles = one, vrrp.Roles{"VI_1": vrrp.Backup}
		}, []netip.Addr{b}},
		{"the master", map[string]ServiceState{"web": up}, func(in *Inputs) {
			in.Config.VRRP, in.Roles = one, vrrp.Roles{"VI_1": vrrp.Master}
		}, []netip.Addr{a, b}},
		{"no BGP", map[string]ServiceState{"web": up}, func(in *Inputs) { in.Config.BGP = config.BGP{} }, nil},
	} {
		is := *cfg
		is.Services = slices.Clone(cfg.Services)
		in := Inputs{Config: &is}
		if v.change != nil {
			v.change(&in)
		}
		var got []netip.Addr
		for _, r := range Routes(in, v.states) {
			got = append(got, r.VIP)
			if want := uint32(0); r.VIP == b && r.MED != 7 || r.VIP != b && r.MED != want {
				t.Errorf("%s: %+v", v.name, r)
			}
		}
		if !slices.Equal(got, v.want) {
			t.Errorf("%s: %v, want %v", v.name, got, v.want)
		}
	}
}

// TestNextHop finds the next hop of the family that the session does not have at the device of the peer's subnet.
func TestNextHop(t *testing.T) {
	devices := []query.Device{
		{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.1.1/24"),
			netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("2001:db8:1::1/64")}},
		{Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.1/24"),
			netip.MustParsePrefix("fe80::1/64")}},
	}
	own := netip.MustParseAddr("2001:db8:9::9")
	for _, c := range []struct {
		peer announce.Peer
		want string // "": none
	}{
		{announce.Peer{Addr: netip.MustParseAddr("10.0.1.2"), IPv4: true, IPv6: true}, "2001:db8:1::1"},
		{announce.Peer{Addr: netip.MustParseAddr("10.0.1.2"), IPv4: true}, ""},
		{announce.Peer{Addr: netip.MustParseAddr("10.0.2.2"), IPv4: true, IPv6: true}, ""},
		{announce.Peer{Addr: netip.MustParseAddr("192.0.2.2"), IPv4: true, IPv6: true}, ""},
		{announce.Peer{Addr: netip.MustParseAddr("2001:db8:1::2"), IPv4: true, IPv6: true}, "10.0.1.1"},
		{announce.Peer{Addr: netip.MustParseAddr("10.0.1.2"), IPv4: true, IPv6: true, NextHop: own}, own.String()},
	} {
		cfg := &config.Director{BGP: config.BGP{Config: announce.Config{AS: 1, Peers: []announce.Peer{c.peer}}}}
		got := Speaker(Inputs{Config: cfg, Devices: devices}).Peers[0].NextHop
		if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
			t.Errorf("%v: next hop %v, want %q", c.peer.Addr, got, c.want)
		}
		if cfg.BGP.Peers[0] != c.peer {
			t.Error("the configuration has changed")
		}
	}
}

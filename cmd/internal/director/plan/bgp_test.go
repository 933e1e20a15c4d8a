package plan

import (
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/routing/announce"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// TestRoutes announces the VIPs of services that have their quorum, or are always announced, with their attributes.
// Each combination of the quorum with roles of VRRP, a standby and a wait for peers has one result. "b~" is a yielded
// VIP.
func TestRoutes(t *testing.T) {
	vips := map[string]netip.Addr{"a": netip.MustParseAddr("198.51.100.1"), "b": netip.MustParseAddr("198.51.100.2"),
		"c": netip.MustParseAddr("2001:db8::1")}
	up, down, unknown := ServiceState{Up: true, Known: true}, ServiceState{Known: true}, ServiceState{Up: true}
	all := map[string]ServiceState{"web": up, "mail": up, "dns": up}
	role := func(r vrrp.Role, change func(in *Inputs)) func(in *Inputs) {
		return func(in *Inputs) {
			in.Config.VRRP = []config.VRRP{{Instance: vrrp.Instance{Name: "VI_1"}, VIPs: []netip.Addr{vips["a"]}}}
			in.Roles = vrrp.Roles{"VI_1": r}
			change(in)
		}
	}
	nothing := func(*Inputs) {}
	standby, held := func(in *Inputs) { in.Standby = true }, func(in *Inputs) { in.Held = true }
	for _, v := range []struct {
		name            string
		states          map[string]ServiceState
		change          func(in *Inputs)
		want, elsewhere string
	}{
		{"all up", all, nothing, "a b c", ""},
		{"one of two services down", map[string]ServiceState{"web": down, "mail": up, "dns": down}, nothing, "a", ""},
		{"not known yet", map[string]ServiceState{"web": unknown, "mail": unknown, "dns": unknown}, nothing, "", ""},
		{"always", map[string]ServiceState{"dns": down}, func(in *Inputs) {
			in.Config.Services[2].AnnounceAlways = true
		}, "c", ""},
		{"standby", all, standby, "a~ b~ c~", ""},
		{"waits for peers", all, held, "", ""},
		{"a master", all, role(vrrp.Master, nothing), "a b c", ""},
		{"a backup", all, role(vrrp.Backup, nothing), "a~ b c", "a"},
		{"a fault", all, role(vrrp.Fault, nothing), "b c", "a"},
		{"an instance that has begun", all, role(vrrp.Initialize, nothing), "b c", "a"},
		{"a master without quorum", map[string]ServiceState{"dns": up}, role(vrrp.Master, nothing), "c", ""},
		{"a backup without quorum", map[string]ServiceState{"dns": up}, role(vrrp.Backup, nothing), "c", "a"},
		{"a backup on standby", all, role(vrrp.Backup, standby), "a~ b~ c~", "a"},
		{"a master on standby: there is no other one", all, role(vrrp.Master, standby), "a b~ c~", ""},
		{"a master that waits for peers: there is no other one", all, role(vrrp.Master, held), "a", ""},
		{"two instances have the VIP", all, role(vrrp.Backup, func(in *Inputs) {
			in.Config.VRRP = append(in.Config.VRRP, config.VRRP{Instance: vrrp.Instance{Name: "VI_2"},
				VIPs: []netip.Addr{vips["a"]}})
			in.Roles["VI_2"] = vrrp.Master
		}), "a b c", ""},
		{"no BGP", all, func(in *Inputs) { in.Config.BGP = config.BGP{} }, "", ""},
	} {
		in := Inputs{Config: &config.Director{Services: []config.Service{
			{Name: "web", VIPs: []netip.Addr{vips["b"], vips["a"]}}, {Name: "mail", VIPs: []netip.Addr{vips["a"]}},
			{Name: "dns", VIPs: []netip.Addr{vips["c"]}},
		}, BGP: config.BGP{Config: announce.Config{AS: 65010}, VIPs: []announce.Route{{VIP: vips["b"], MED: 7}}}}}
		v.change(&in)
		var got, elsewhere []string
		for _, r := range Routes(in, v.states) {
			for name, vip := range vips {
				if vip == r.VIP {
					got = append(got, name+map[bool]string{true: "~"}[r.Yielded])
				}
			}
			if r.VIP == vips["b"] && r.MED != 7 || r.VIP != vips["b"] && r.MED != 0 {
				t.Errorf("%s: %+v", v.name, r)
			}
		}
		for _, vip := range in.Elsewhere(VIPs(in.Config)) {
			elsewhere = append(elsewhere, map[bool]string{true: "a"}[vip == vips["a"]])
		}
		if is := strings.Join(got, " "); is != v.want || strings.Join(elsewhere, " ") != v.elsewhere {
			t.Errorf("%s: %q, want %q; elsewhere %q", v.name, is, v.want, elsewhere)
		}
	}
}

// TestNextHop finds the next hop of the family that the session does not have at the device of the peer's subnet.
func TestNextHop(t *testing.T) {
	devices := []query.Device{
		{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.1.1/24"),
			netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("2001:db8:1::/64"),
			netip.MustParsePrefix("2001:db8:1::10/64"), netip.MustParsePrefix("2001:db8:1::1/64")}},
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
		cfg := &config.Director{BGP: config.BGP{Config: announce.Config{AS: 1, Peers: []announce.Peer{c.peer}}},
			VRRP: []config.VRRP{{Owned: []config.Owned{{Prefix: netip.MustParsePrefix("2001:db8:1::/64")}}}}}
		got := Speaker(Inputs{Config: cfg, Devices: devices}).Peers[0].NextHop
		if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
			t.Errorf("%v: next hop %v, want %q", c.peer.Addr, got, c.want)
		}
		if cfg.BGP.Peers[0] != c.peer {
			t.Error("the configuration has changed")
		}
	}
}

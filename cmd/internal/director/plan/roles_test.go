package plan

import (
	"fmt"
	"net/netip"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// elected is two VIPs in the subnet of eth0, and one in none, that two instances have, with an address of eth1.
func elected() Inputs {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	cfg := &config.Director{TUN: "vs0", Services: []config.Service{
		{Name: "web", VIPs: []netip.Addr{addr("10.0.2.80"), addr("10.0.2.81"), addr("9.9.9.9")}},
	}}
	cfg.VRRP = []config.VRRP{
		{Instance: vrrp.Instance{Name: "a", Device: "eth0"}, VIPs: []netip.Addr{addr("10.0.2.80"), addr("9.9.9.9")},
			Owned: []config.Owned{{Device: "eth1", Prefix: prefix("10.0.3.10/24")}}},
		{Instance: vrrp.Instance{Name: "b", Device: "eth0"}, VIPs: []netip.Addr{addr("10.0.2.81")}},
	}
	return Inputs{Config: cfg, Devices: []query.Device{ethernet("eth0", 2, "10.0.2.2/24"),
		ethernet("eth1", 3, "10.0.3.2/24")}}
}

// TestRoles: the roles decide which VIPs are announced, also outside of subnets, and which addresses the host has. The
// routes stay.
func TestRoles(t *testing.T) {
	for _, c := range []struct {
		roles           vrrp.Roles
		announced, owns string
	}{
		{nil, "", "[]"},
		{vrrp.Roles{"a": vrrp.Backup, "b": vrrp.Fault}, "", "[]"},
		{vrrp.Roles{"a": vrrp.Master, "b": vrrp.Backup}, "eth0: 9.9.9.9 10.0.2.80; eth1: 10.0.3.10",
			"[{eth1 10.0.3.10/24 true false}]"},
		{vrrp.Roles{"a": vrrp.Backup, "b": vrrp.Master}, "eth0: 10.0.2.81", "[]"},
		{vrrp.Roles{"a": vrrp.Master, "b": vrrp.Master}, "eth0: 9.9.9.9 10.0.2.80 10.0.2.81; eth1: 10.0.3.10",
			"[{eth1 10.0.3.10/24 true false}]"},
	} {
		in := elected()
		in.Roles = c.roles
		if got := described(Announce(in)); got != c.announced {
			t.Errorf("%v: announced %q, want %q", c.roles, got, c.announced)
		}
		s := Machine(in)
		if got := fmt.Sprint(s.Addrs); got != c.owns {
			t.Errorf("%v: addresses %s, want %s", c.roles, got, c.owns)
		}
		if len(s.Routes) < 6 {
			t.Errorf("%v: %d routes", c.roles, len(s.Routes))
		}
		for _, d := range Announce(in) {
			if !d.Elected {
				t.Errorf("%s is not elected", d.Name)
			}
		}
	}
	in := elected()
	in.Roles = vrrp.Roles{"a": vrrp.Master}
	in.Devices = in.Devices[:1]
	if s := Machine(in); len(s.Addrs) > 0 {
		t.Errorf("addresses of a missing device: %v", s.Addrs)
	}
	before := elected()
	in = elected()
	in.Config, in.Roles = before.Config, vrrp.Roles{"a": vrrp.Master}
	if in.SameMachine(&before) || in.SameRoles(&before) {
		t.Error("a role with an address changes nothing")
	}
}

func TestUnlisted(t *testing.T) {
	in := elected()
	if all, _ := Unlisted(in.Config, in.Devices); len(all) > 0 {
		t.Errorf("unlisted %v", all)
	}
	in.Config.VRRP = in.Config.VRRP[:1]
	all, on := Unlisted(in.Config, in.Devices)
	if fmt.Sprint(all, on) != "[10.0.2.81] [eth0]" {
		t.Errorf("unlisted %v on %v", all, on)
	}
	in.Config.VRRP = nil
	if all, _ := Unlisted(in.Config, in.Devices); len(all) > 0 {
		t.Errorf("without [[vrrp]] %v", all)
	}
}

func TestTracks(t *testing.T) {
	in := elected()
	gateway, silent := netip.MustParseAddr("10.0.2.1"), netip.MustParseAddr("10.0.2.9")
	unknown := netip.MustParseAddr("10.0.2.8")
	in.Config.VRRP[0].Track = []config.Track{{Device: "eth1"}, {Device: "eth2"}, {Service: "web", Weight: -20},
		{Service: "mail"}, {Service: "new"}, {Service: "web", Realserver: netip.MustParseAddrPort("10.0.11.2:0")},
		{Service: "web", Realserver: netip.MustParseAddrPort("10.0.12.2:80")}, {Gateway: gateway},
		{Service: "web", Realserver: netip.MustParseAddrPort("10.0.13.2:80")},
		{Gateway: silent, Weight: 3}, {Gateway: unknown}}
	in.Devices[1].Running = true
	down, begun := netip.MustParseAddrPort("10.0.12.2:80"), netip.MustParseAddrPort("10.0.13.2:80")
	d := &Desired{Services: map[string]ServiceState{"web": {Up: true, Known: true}, "mail": {Known: true}, "new": {}},
		Down:        map[RealserverID]bool{{"web", down}: true, {"web", begun}: true},
		Unconfirmed: map[RealserverID]bool{{"web", begun}: true}}
	got := Tracks(in.Config, in.Devices, d,
		func(a netip.Addr) (up, known bool) { return a == gateway, a != unknown })
	want := "map[a:[{interface eth1 true false 0} {interface eth2 false false 0} {service web true false -20} " +
		"{service mail false false 0} {service new true true 0} {realserver 10.0.11.2 of web true false 0} " +
		"{realserver 10.0.12.2:80 of web false false 0} {gateway 10.0.2.1 true false 0} " +
		"{realserver 10.0.13.2:80 of web true true 0} {gateway 10.0.2.9 false false 3} " +
		"{gateway 10.0.2.8 true true 0}]]"
	if fmt.Sprint(got) != want {
		t.Errorf("%v", got)
	}
	if all := fmt.Sprint(Gateways(in.Config)); all != "[10.0.2.1 10.0.2.8 10.0.2.9]" {
		t.Errorf("gateways %s", all)
	}
}

package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/routing"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

var (
	portVIP, portVIP6 = netip.MustParseAddr("10.0.2.80"), netip.MustParseAddr("fd00:0:2::80")
	portReal          = netip.MustParseAddr("10.0.2.11")
	portOwn           = netip.MustParseAddr("fe80::1")
)

// portInputs is a director with a TAP device and one realserver of VS/DR.
func portInputs(change func(cfg *config.Director)) Inputs {
	cfg := &config.Director{TUN: "vs0", TAP: true, Bridge: "br0", Table: 77, Services: []config.Service{{Name: "web",
		VIPs: []netip.Addr{portVIP6, portVIP}, Protocol: "tcp", Ports: []config.PortRange{{First: 80, Last: 80}},
		Scheduler: "rr", Quorum: 1,
		Realservers: []config.RealserverRef{{Address: portReal, Forward: method.DR, Weight: 1}}}}}
	change(cfg)
	in := Inputs{}.Reconfigured(cfg)
	in.Rules = Rules{IPv4: true, IPv6: true}
	in.Port = Port{Device: 7, MAC: [6]byte{2, 0, 0, 0, 0, 7}, MTU: 9000, Own: []netip.Addr{portOwn}}
	return in
}

// TestPortMachine: the host has a port of the bridge, and nothing else, unless checks send packets to VIPs.
func TestPortMachine(t *testing.T) {
	port := routing.Link{Name: "vs0", MTU: 65521, TxQueueLen: queueLen, Bridge: "br0", Up: true}
	got := Machine(portInputs(func(*config.Director) {}))
	want := routing.State{Links: []routing.Link{port}, Sysctls: deviceSysctls("vs0", false)}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	alone := Machine(portInputs(func(cfg *config.Director) { cfg.Bridge = "" }))
	if l := alone.Links[0]; l.MTU != 0 || l.Bridge != "" {
		t.Errorf("without a bridge: %+v", l)
	}
	checked := func(cfg *config.Director) { cfg.Services[0].Realservers[0].Check = &config.Check{Type: "tcp"} }
	for _, rules := range []bool{true, false} {
		in := portInputs(checked)
		in.Rules, in.ReplyLinks = Rules{IPv4: rules, IPv6: rules}, []string{"br0"}
		s := Machine(in)
		table, number := 77, 2
		if !rules {
			table, number = 0, 0
		}
		if len(s.Links) != 2 || s.Links[0] != port || s.Links[1].Name != "vs0-local" || len(s.Rules) != number ||
			!slices.Equal(s.Loose, []string{"br0"}) {
			t.Errorf("%+v", s)
		}
		for i, vip := range []netip.Addr{portVIP, portVIP6} {
			r := routing.Route{Dst: netip.PrefixFrom(vip, vip.BitLen()), Link: "vs0-local", Table: table}
			if len(s.Routes) != 2 || s.Routes[i] != r {
				t.Errorf("routes %+v", s.Routes)
			}
		}
		for _, c := range s.Sysctls {
			if c.Key == "net/ipv4/ip_forward" || c.Key == "net/ipv6/conf/all/forwarding" {
				t.Errorf("the host forwards: %v", c)
			}
		}
	}
}

// TestPortAnnounce: the port answers for all VIPs and its own addresses, and announces them anew when the device or
// the bridge has lost its link.
func TestPortAnnounce(t *testing.T) {
	in := portInputs(func(*config.Director) {})
	in.RetiredVIPs = []netip.Addr{portReal}
	in.Devices = []query.Device{{Name: "br0", Losses: 2}, {Name: "vs0", Losses: 1}, {Name: "eth0", Losses: 9}}
	want := []neigh.Device{{Name: "vs0", Index: 7, MAC: neigh.MAC{2, 0, 0, 0, 0, 7}, Losses: 3,
		Addrs: []netip.Addr{portVIP, portVIP6, portOwn}, Former: in.RetiredVIPs}}
	if got := Announce(in); !neigh.EqualDevices(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	in.Config.Announce.Off = true
	want[0].Addrs, want[0].Former = []netip.Addr{portOwn}, nil
	if got := Announce(in); !neigh.EqualDevices(got, want) {
		t.Errorf("without announcements: %+v, want %+v", got, want)
	}
}

// TestPortRealservers: a realserver of VS/DR needs no route, and has the MTU of the network. So has a retired one.
func TestPortRealservers(t *testing.T) {
	in := portInputs(func(*config.Director) {})
	retired := netip.MustParseAddr("10.0.2.12")
	in.Paths, in.Retired = Paths{portReal: query.Path{}, retired: query.Path{}}, []netip.Addr{retired}
	link := method.Link{Device: 7, MAC: [6]byte{2, 0, 0, 0, 0, 11}, OwnMAC: in.Port.MAC}
	in.Neighbours = Neighbours{portReal: {Link: link, MTU: 9000}, retired: {Link: link, MTU: 9000}}
	d, _ := Plan(in, nil)
	if r := d.Balancer.Services[0].Realservers[0]; r.MTU != 9000 || r.Link != link || len(d.Unreachable) > 0 {
		t.Errorf("%+v, unreachable %v", r, d.Unreachable)
	}
	if got, want := d.Reroute[retired], (balancer.Path{MTU: 9000, Link: link}); got != want {
		t.Errorf("the retired one: %+v, want %+v", got, want)
	}
}

package director

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/encap"
	"vstun/encap/packet"
)

func TestServiceStatus(t *testing.T) {
	vip, rs := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.11.2")
	got := serviceStatus(&balancer.ServiceStatus{
		Service: balancer.Service{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoUDP,
			Ports: []balancer.PortRange{{}}, Scheduler: "sh",
			Flags: balancer.Flags{Port: true}, ByAddress: true, Persistence: balancer.Persistence{Timeout: time.Minute,
				Mask4: 24, Mask6: 128}, OnePacket: true},
		Realservers: []balancer.RealserverStatus{{Realserver: balancer.Realserver{Address: rs, Upper: 10, Lower: 5},
			Active: 1, Inactive: 2, Connections: 3, Packets: 4, Bytes: 5}, {Realserver: balancer.Realserver{Address: rs,
			Config: method.Config{Kind: method.NAT, Port: 8080}}}},
	})
	want := api.Service{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "udp", Ports: []string{"0"},
		Scheduler: "sh", SchedulerFlags: []string{"sh-port"}, Order: "address",
		Persistence: &api.Persistence{Timeout: 60, Netmask: 24, Netmask6: 128}, OnePacket: true,
		Realservers: []api.Realserver{{Address: "10.0.11.2", Forward: "tun", Encap: "ipip", Upper: 10, Lower: 5,
			Active: 1, Inactive: 2, Connections: 3, Forwarded: api.Traffic{Packets: 4, Bytes: 5}},
			{Address: "10.0.11.2", Port: 8080, Forward: "nat"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if plain := serviceStatus(&balancer.ServiceStatus{}); plain.Persistence != nil || plain.SchedulerFlags != nil {
		t.Errorf("%+v", plain)
	}
}

// TestLeavingMethods: one realserver that leaves with two methods has an entry for each.
func TestLeavingMethods(t *testing.T) {
	rs, key := netip.MustParseAddr("10.0.11.2"), uint32(7)
	entry := func(c method.Config, active int) balancer.Leaving {
		return balancer.Leaving{Service: "web", Realserver: balancer.Realserver{Address: rs, Config: c}, Active: active}
	}
	got := leaving([]balancer.Leaving{
		entry(method.Config{Encap: encap.KindGRE, Key: key, HasKey: true}, 1),
		entry(method.Config{Kind: method.NAT}, 2)})
	want := api.Leaving{Realservers: 2, Connections: 3, List: []api.LeavingRealserver{
		{Service: "web", Address: "10.0.11.2", Forward: "tun", Encap: "gre", EncapKey: &key, Active: 1},
		{Service: "web", Address: "10.0.11.2", Forward: "nat", Active: 2}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

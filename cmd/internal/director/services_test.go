package director

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/balancer"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/encap/packet"
)

func TestService(t *testing.T) {
	vip, source, rs := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.11.2")
	got := service(&config.Service{Name: "phone", VIPs: []netip.Addr{vip}, Protocol: "sctp", Ports: []config.PortRange{{}}, Scheduler: "mh",
		Flags: config.SchedulerFlags{Fallback: true}, Persistence: config.Persistence{Timeout: time.Minute, Netmask: 24, Netmask6: 64}, OnePacket: true,
		Realservers: []config.RealserverRef{{Address: rs, Weight: 3, Upper: 10, Lower: 5}}}, config.Sources{V4: source}, nil)
	want := balancer.Service{Name: "phone", VIPs: []netip.Addr{vip}, Protocol: 132, Ports: []balancer.PortRange{{}}, Scheduler: "mh",
		Flags: balancer.Flags{Fallback: true}, Persistence: balancer.Persistence{Timeout: time.Minute, Mask4: 24, Mask6: 64}, OnePacket: true,
		Realservers: []balancer.Realserver{{Address: rs, Weight: 3, Upper: 10, Lower: 5, Source: source, MTU: 1500}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestServiceStatus(t *testing.T) {
	vip, rs := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.11.2")
	got := serviceStatus(&balancer.ServiceStatus{
		Service: balancer.Service{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoUDP, Ports: []balancer.PortRange{{}}, Scheduler: "sh",
			Flags: balancer.Flags{Port: true}, Persistence: balancer.Persistence{Timeout: time.Minute, Mask4: 24, Mask6: 128}, OnePacket: true},
		Realservers: []balancer.RealserverStatus{{Realserver: balancer.Realserver{Address: rs, Upper: 10, Lower: 5}, Active: 1, Inactive: 2, Connections: 3, Packets: 4, Bytes: 5}},
	})
	want := control.Service{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "udp", Ports: []string{"0"}, Scheduler: "sh", SchedulerFlags: []string{"sh-port"},
		Persistence: &control.Persistence{Timeout: 60, Netmask: 24, Netmask6: 128}, OnePacket: true,
		Realservers: []control.Realserver{{Address: "10.0.11.2", Encap: "ipip", Upper: 10, Lower: 5, Active: 1, Inactive: 2, Connections: 3, Forwarded: control.Traffic{Packets: 4, Bytes: 5}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if plain := serviceStatus(&balancer.ServiceStatus{}); plain.Persistence != nil || plain.SchedulerFlags != nil {
		t.Errorf("%+v", plain)
	}
}

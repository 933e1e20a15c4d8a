package director

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/routing"
)

func TestService(t *testing.T) {
	vip, source, rs := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.2.2"),
		netip.MustParseAddr("10.0.11.2")
	got := service(&config.Service{Name: "phone", VIPs: []netip.Addr{vip}, Protocol: "sctp",
		Ports: []config.PortRange{{}}, Scheduler: "mh",
		Flags: config.SchedulerFlags{Fallback: true}, Persistence: config.Persistence{Timeout: time.Minute, Netmask: 24,
			Netmask6: 64}, OnePacket: true,
		Realservers: []config.RealserverRef{{Address: rs, Weight: 3, Upper: 10, Lower: 5}}}, config.Sources{V4: source},
		nil)
	want := balancer.Service{Name: "phone", VIPs: []netip.Addr{vip}, Protocol: 132, Ports: []balancer.PortRange{{}},
		Scheduler: "mh",
		Flags:     balancer.Flags{Fallback: true}, Persistence: balancer.Persistence{Timeout: time.Minute, Mask4: 24,
			Mask6: 64}, OnePacket: true,
		Realservers: []balancer.Realserver{{Address: rs, Weight: 3, Upper: 10, Lower: 5,
			Config: method.Config{Source: source, MTU: 1500}}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOuterSource: the configuration's comes first; else it is the route's, where the kernel can't put it in itself.
func TestOuterSource(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("fd00:11::2")
	own4, own6, set6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00:2::2"),
		netip.MustParseAddr("fd00:2::3")
	ways := map[netip.Addr]routing.Path{four: {Source: own4, MTU: 60}, six: {Source: own6, MTU: 60}}
	link := map[netip.Addr]routing.Path{six: {Source: netip.MustParseAddr("fe80::1"), MTU: 1400}}
	for _, c := range []struct {
		name    string
		to      netip.Addr
		tunnel  config.Tunnel
		sources config.Sources
		ways    map[netip.Addr]routing.Path
		want    netip.Addr
		mtu     int
	}{
		{"IPv4", four, config.Tunnel{Encap: "ipip"}, config.Sources{V6: set6}, ways, netip.Addr{}, encap.MinMTU +
			encap.MaxOverhead},
		{"IPv4, UDP checksum", four, config.Tunnel{Encap: "gue", Checksum: true}, config.Sources{}, ways, own4,
			encap.MinMTU + encap.MaxOverhead},
		{"IPv4, GRE checksum", four, config.Tunnel{Encap: "gre", Checksum: true}, config.Sources{}, ways, netip.Addr{},
			encap.MinMTU + encap.MaxOverhead},
		{"IPv6", six, config.Tunnel{Encap: "ipip"}, config.Sources{V4: own4}, ways, own6, encap.MinMTU6},
		{"IPv6, configured", six, config.Tunnel{Encap: "ipip"}, config.Sources{V6: set6}, ways, set6, encap.MinMTU6},
		{"IPv6 without route", six, config.Tunnel{Encap: "ipip"}, config.Sources{}, nil, netip.Addr{}, 1500},
		{"IPv6 without an address", six, config.Tunnel{Encap: "ipip"}, config.Sources{}, link, netip.Addr{}, 1400},
	} {
		got := service(&config.Service{EncapPort: 6080, Realservers: []config.RealserverRef{{Address: c.to,
			Tunnel: c.tunnel}}}, c.sources, c.ways).Realservers[0]
		if got.Source != c.want || got.MTU != c.mtu {
			t.Errorf("%s: source %v, MTU %d, want %v, %d", c.name, got.Source, got.MTU, c.want, c.mtu)
		}
	}
}

// TestPathsPause: packets that are too big for their way, or claims that they are, keep the director busy for a tenth
// of the time at most.
func TestPathsPause(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                      pathsAtOnce,
		5 * time.Millisecond:   pathsAtOnce,
		300 * time.Millisecond: 3 * time.Second,
		time.Minute:            pathsEvery, // as it is due then
	} {
		if got := pathsPause(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

// TestKernelCantBeAsked: without a descriptor left, what was known of the ways stays.
func TestKernelCantBeAsked(t *testing.T) {
	six := netip.MustParseAddr("::1")
	cfg := &config.Director{Services: []config.Service{{Name: "web", Protocol: "tcp", Quorum: 1,
		Realservers: []config.RealserverRef{{Address: six, Weight: 1, Tunnel: config.Tunnel{Encap: "ipip"}}}}}}
	var log strings.Builder
	d := &director{log: slog.New(slog.NewTextHandler(&log, nil))}
	ask := func() balancer.Realserver { return d.services(cfg).Services[0].Realservers[0] }
	starved(t, func() {
		if guess := ask(); guess.MTU != 1500 || guess.Source.IsValid() {
			t.Errorf("before anything is known: %+v", guess)
		}
	})
	before := ask()
	if before.Source != six {
		t.Skip("the machine has no IPv6")
	}
	var after balancer.Realserver
	starved(t, func() { ask(); after = ask() }) // with one line in the log
	if after != before {
		t.Errorf("the realserver is now %+v, was %+v", after, before)
	}
	if lines := strings.Split(log.String(), "\n"); len(lines) != 3 || !strings.Contains(lines[0], "taken to be 1500") ||
		!strings.Contains(lines[1], "known before stay") {
		t.Errorf("the log says\n%s", log.String())
	}
}

// starved calls f while the process can open no more files.
func starved(t *testing.T, f func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // the lowest that is
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

func TestServiceStatus(t *testing.T) {
	vip, rs := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.11.2")
	got := serviceStatus(&balancer.ServiceStatus{
		Service: balancer.Service{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoUDP,
			Ports: []balancer.PortRange{{}}, Scheduler: "sh",
			Flags: balancer.Flags{Port: true}, Persistence: balancer.Persistence{Timeout: time.Minute, Mask4: 24,
				Mask6: 128}, OnePacket: true},
		Realservers: []balancer.RealserverStatus{{Realserver: balancer.Realserver{Address: rs, Upper: 10, Lower: 5},
			Active: 1, Inactive: 2, Connections: 3, Packets: 4, Bytes: 5}},
	})
	want := control.Service{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "udp", Ports: []string{"0"},
		Scheduler: "sh", SchedulerFlags: []string{"sh-port"},
		Persistence: &control.Persistence{Timeout: 60, Netmask: 24, Netmask6: 128}, OnePacket: true,
		Realservers: []control.Realserver{{Address: "10.0.11.2", Encap: "ipip", Upper: 10, Lower: 5, Active: 1,
			Inactive: 2, Connections: 3, Forwarded: control.Traffic{Packets: 4, Bytes: 5}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if plain := serviceStatus(&balancer.ServiceStatus{}); plain.Persistence != nil || plain.SchedulerFlags != nil {
		t.Errorf("%+v", plain)
	}
}

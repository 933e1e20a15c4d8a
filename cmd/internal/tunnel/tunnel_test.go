package tunnel

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/encap/wireguard"
	"vstun/routing"
	"vstun/routing/kernel/kerneltest"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// tunnelOf is a tunnel by an encapsulation, over IPv4.
func tunnelOf(name string, kind encap.Kind, change ...func(p *config.PointToPoint)) config.PointToPoint {
	p := config.PointToPoint{Name: name, Encap: kind, Local: netip.MustParseAddr("10.0.2.2"),
		Remote: netip.MustParseAddr("10.0.11.2")}
	if kind.UDP() {
		p.EncapPort = 6080
	}
	for _, fn := range change {
		fn(&p)
	}
	return p
}

func tap(p *config.PointToPoint) { p.TAP = true }

func six(p *config.PointToPoint) {
	p.Local, p.Remote = netip.MustParseAddr("2001:db8:2::2"), netip.MustParseAddr("2001:db8:11::2")
}

// TestState: devices, addresses and routes of tunnels, and only what they need.
func TestState(t *testing.T) {
	a := tunnelOf("a", encap.KindIPIP, func(p *config.PointToPoint) {
		p.Addresses = []netip.Prefix{netip.MustParsePrefix("10.8.0.1/30"), netip.MustParsePrefix("fd08::1/64")}
		p.Routes = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}
	})
	b := tunnelOf("b", encap.KindGRE, tap, func(p *config.PointToPoint) { p.Bridge = "br0" })
	got := State([]config.PointToPoint{a, b}, []int{1480, 1462})
	want := routing.State{QuietIPIP: true,
		Links: []routing.Link{{Name: "a", MTU: 1480, TxQueueLen: queueLen, Up: true},
			{Name: "b", MTU: 1462, TxQueueLen: queueLen, Bridge: "br0", Up: true}},
		Addrs: []routing.Addr{{Link: "a", Prefix: a.Addresses[0], Preferred: true},
			{Link: "a", Prefix: a.Addresses[1], Preferred: true}},
		Routes:  []routing.Route{{Dst: a.Routes[0], Link: "a"}},
		Sysctls: []routing.Sysctl{{Key: "net/ipv6/conf/a/disable_ipv6", Value: "0"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// TestSockets: each socket once, and none for WireGuard.
func TestSockets(t *testing.T) {
	got := Sockets([]config.PointToPoint{tunnelOf("a", encap.KindIPIP), tunnelOf("b", encap.KindGRE, six),
		tunnelOf("c", encap.KindGRE, six, tap), tunnelOf("d", encap.KindFOU), tunnelOf("e", encap.KindWireGuard)})
	want := []wire.Socket{{Protocol: 4}, {Protocol: 41}, {Protocol: 47, Over6: true}, {Protocol: 17, Port: 6080}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestDeviceMTU: what fits the path, as the table of the manual has it, and 1,280 at least.
func TestDeviceMTU(t *testing.T) {
	key := func(p *config.PointToPoint) { p.Key = 7 }
	for _, c := range []struct {
		p    config.PointToPoint
		path int
		want int
	}{
		{tunnelOf("a", encap.KindIPIP), 1500, 1480},
		{tunnelOf("a", encap.KindIPIP, six), 1500, 1460},
		{tunnelOf("a", encap.KindGRE, key), 1500, 1472},
		{tunnelOf("a", encap.KindGRE, tap), 1500, 1462},
		{tunnelOf("a", encap.KindGUE, tap, six), 1500, 1430},
		{tunnelOf("a", encap.KindFOU), 9000, 8972},
		{tunnelOf("a", encap.KindWireGuard), 1500 - wireguard.Overhead(false), 1420},
		{tunnelOf("a", encap.KindWireGuard, six), 1500 - wireguard.Overhead(true), 1368},
		{tunnelOf("a", encap.KindWireGuard), 1400 - wireguard.Overhead(false), 1308},
		{tunnelOf("a", encap.KindIPIP), 1290, 1280},
		{tunnelOf("a", encap.KindIPIP, func(p *config.PointToPoint) { p.MTU = 1000 }), 1500, 1000},
	} {
		if got := deviceMTU(&c.p, path{mtu: c.path}); got != c.want {
			t.Errorf("%v, TAP %v, over %v, path %d: %d, want %d", c.p.Encap, c.p.TAP, c.p.Remote, c.path, got, c.want)
		}
	}
}

// TestLoops: packets that come back to the tunnel's device are a loop, and a tunnel within another one is none.
func TestLoops(t *testing.T) {
	for _, c := range []struct {
		links map[string]string
		want  []string
	}{
		{map[string]string{"a": "eth0", "b": "eth0"}, nil},
		{map[string]string{"a": "a", "b": "eth0"}, []string{"a"}},
		{map[string]string{"a": "b", "b": "eth0"}, nil},
		{map[string]string{"a": "b", "b": "a", "c": "a"}, []string{"a", "b"}},
		{map[string]string{"a": "b", "b": "b"}, []string{"b"}},
		{map[string]string{"a": "br0"}, nil},
	} {
		var got []string
		for _, name := range []string{"a", "b", "c"} {
			if loops(c.links, name) {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.links, got, c.want)
		}
	}
}

// TestLoopIsDown: a route by the tunnel's own device to its peer makes the tunnel down, and its packets are dropped,
// until the peer has another route.
func TestLoopIsDown(t *testing.T) {
	testkit.InNamespace(t, func() {
		s, err := Open(Options{Log: slog.New(slog.DiscardHandler), Control: filepath.Join(t.TempDir(), "x.sock"),
			Queues: 1, Sources: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p := tunnelOf("a", encap.KindGRE, func(p *config.PointToPoint) {
			p.Routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		})
		check := func(p config.PointToPoint, state, reason string, mtu int) {
			t.Helper()
			if err := s.Apply([]config.PointToPoint{p}, 0); err != nil {
				t.Fatal(err)
			}
			s.refresh()
			s.refresh()
			st := s.Status()[0]
			if st.State != state || !strings.Contains(st.Reason, reason) || st.MTU != mtu {
				t.Errorf("%+v, want %s, %q, MTU %d", st, state, reason, mtu)
			}
		}
		check(p, "down", "the route to the peer leads into tunnel a", 1476)
		if !(*s.all.Load())[0].remote.Load().Loops {
			t.Error("packets are not dropped")
		}
		p.Routes = nil
		check(p, "down", "no route to 10.0.11.2", 1476)
		if (*s.all.Load())[0].remote.Load().Loops {
			t.Error("packets are still dropped")
		}
	})
}

// TestLoopByBridge: a bridge that has no ports but the devices of tunnels leads into these. With another port it may
// lead to the peer.
func TestLoopByBridge(t *testing.T) {
	testkit.InNamespace(t, func() {
		kerneltest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: kerneltest.Named("br0")}))
		kerneltest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: kerneltest.Named("port"), PeerName: "far"}))
		kerneltest.AddAddr(t, "br0", "10.0.11.1/24")
		kerneltest.LinkUp(t, "br0")
		s, err := Open(Options{Log: slog.New(slog.DiscardHandler), Control: filepath.Join(t.TempDir(), "x.sock"),
			Queues: 1, Sources: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		bridged := func(p *config.PointToPoint) { p.Bridge = "br0" }
		a := tunnelOf("a", encap.KindGRE, tap, bridged)
		b := tunnelOf("b", encap.KindGRE, tap, bridged, func(p *config.PointToPoint) {
			p.Remote = netip.MustParseAddr("10.0.12.2")
		})
		kerneltest.Must(t, s.Apply([]config.PointToPoint{a, b}, 0))
		for _, step := range []struct {
			change func() error
			into   string
		}{
			{func() error { return nil }, "a"},
			{func() error { return setMaster("port", "br0") }, ""},
			{func() error { return setMaster("port", "") }, "a"},
		} {
			kerneltest.Must(t, step.change())
			s.refresh()
			all := *s.all.Load()
			if got := all[0].into(); got != step.into || all[0].remote.Load().Loops != (got != "") {
				t.Errorf("the path leads into %q, want %q", got, step.into)
			}
			if got := all[1].into(); got != "" {
				t.Errorf("the other tunnel's path leads into %q", got)
			}
		}
	})
}

// setMaster makes a device a port of a bridge; "": of none.
func setMaster(name, bridge string) error {
	l, err := netlink.LinkByName(name)
	if err != nil || bridge == "" {
		return errors.Join(err, netlink.LinkSetNoMaster(l))
	}
	master, err := netlink.LinkByName(bridge)
	return errors.Join(err, netlink.LinkSetMaster(l, master))
}

// TestQueues: a device has few queues, also on a host with many CPUs.
func TestQueues(t *testing.T) {
	testkit.InNamespace(t, func() {
		for queues, want := range map[int]int{2: 2, 64: 4} {
			s, err := Open(Options{Log: slog.New(slog.DiscardHandler), Control: filepath.Join(t.TempDir(), "x.sock"),
				Queues: queues, Sources: queues + 1})
			if err != nil {
				t.Fatal(err)
			}
			if err = s.Apply([]config.PointToPoint{tunnelOf("a", encap.KindGRE)}, 0); err == nil {
				if got := (*s.all.Load())[0]; len(got.workers) != want || len(got.sinks) != queues+1 {
					t.Errorf("%d queues: %d workers, %d sinks", queues, len(got.workers), len(got.sinks))
				}
			}
			if err := errors.Join(err, s.Close()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestKernelTunnel: a device of the kernel for the same packets is refused.
func TestKernelTunnel(t *testing.T) {
	peer := netip.MustParseAddr("10.0.11.2")
	for _, c := range []struct {
		kind   encap.Kind
		kernel query.Tunnel
		want   bool
	}{
		{encap.KindGRE, query.Tunnel{Name: "k", Up: true, Protocols: []uint8{47}, Remote: peer}, true},
		{encap.KindGRE, query.Tunnel{Name: "k", Up: true, Protocols: []uint8{47}}, true},
		{encap.KindGRE, query.Tunnel{Name: "k", Protocols: []uint8{47}, Remote: peer}, false},
		{encap.KindGRE, query.Tunnel{Name: "k", Up: true, Protocols: []uint8{47}, Over6: true}, false},
		{encap.KindGRE, query.Tunnel{Name: "k", Up: true, Protocols: []uint8{47}, Remote: peer.Next()}, false},
		{encap.KindIPIP, query.Tunnel{Name: "k", Up: true, Protocols: []uint8{4}, Remote: peer}, true},
		{encap.KindGUE, query.Tunnel{Name: "k", Up: true, Protocols: []uint8{4}, Remote: peer}, false},
	} {
		p := tunnelOf("a", c.kind)
		err := kernelTunnel(&p, []query.Tunnel{c.kernel})
		if (err != nil) != c.want || err != nil && !strings.Contains(err.Error(), "ip link set k down") {
			t.Errorf("%v beside %+v: %v", c.kind, c.kernel, err)
		}
	}
}

// TestChanges: each changed key is a line.
func TestChanges(t *testing.T) {
	a, b := tunnelOf("a", encap.KindGUE), tunnelOf("b", encap.KindGRE)
	changed := tunnelOf("a", encap.KindGUE, tap, func(p *config.PointToPoint) { p.EncapPort, p.NoMSS = 6081, true })
	var none config.WireGuard
	texts := func(all []api.Change) (lines []string) {
		for _, c := range all {
			lines = append(lines, c.Text)
		}
		return lines
	}
	got := texts(Changes([]config.PointToPoint{a}, []config.PointToPoint{changed, b}, &none, &none))
	want := []string{"tunnel a: device tun -> tap", "tunnel a: encap_port 6080 -> 6081", "tunnel a: mss auto -> off",
		"tunnel b to 10.0.11.2: added"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = texts(Changes([]config.PointToPoint{a, b}, []config.PointToPoint{b}, &none, &none))
	if want := []string{"tunnel a to 10.0.11.2: removed"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestFirstTunnelLearnsPathMTU: the kernel learns path MTUs from the first tunnel on that a reload brings, without
// CAP_NET_RAW, and no longer when there is none.
func TestFirstTunnelLearnsPathMTU(t *testing.T) {
	testkit.InNamespace(t, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}
		addr, err := netlink.ParseAddr("10.0.2.2/24")
		if err == nil {
			err = errors.Join(netlink.LinkAdd(veth), netlink.AddrAdd(veth, addr))
		}
		for _, name := range []string{"lo", "near", "far"} {
			l, failed := netlink.LinkByName(name)
			if failed == nil {
				failed = netlink.LinkSetUp(l)
			}
			err = errors.Join(err, failed)
		}
		_, beyond, _ := net.ParseCIDR("10.0.11.0/24")
		err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Dst: beyond, Gw: []byte{10, 0, 2, 1}}))
		s, failed := Open(Options{Log: slog.New(slog.DiscardHandler), Control: filepath.Join(t.TempDir(), "x.sock"),
			Queues: 1, Sources: 1, Learn: true})
		if err := errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		icmp, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(icmp)
		header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capget(&header, &data[0]); err != nil {
			t.Fatal(err)
		}
		data[0].Effective &^= 1 << unix.CAP_NET_RAW // of this thread
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Fatal(err)
		}
		defer func() {
			data[0].Effective |= 1 << unix.CAP_NET_RAW
			if err := unix.Capset(&header, &data[0]); err != nil {
				t.Error(err)
			}
		}()
		p := tunnelOf("a", encap.KindIPIP)
		for i, tunnels := range [][]config.PointToPoint{nil, {p}, nil, {p}} {
			if err := s.Apply(tunnels, 0); err != nil {
				t.Fatal(err)
			}
			to := netip.AddrFrom4([4]byte{10, 0, 11, byte(2 + i)})
			answerTooBig(t, icmp, to)
			want := 0
			if len(tunnels) > 0 {
				want = 1333
			}
			if got := learnedMTU(t, to); got != want {
				t.Errorf("step %d, with %d tunnels: the kernel has the MTU %d, want %d", i, len(tunnels), got, want)
			}
		}
	})
}

// answerTooBig gives this host an ICMP error about a packet of IPIP from 10.0.2.2. The kernel has treated it when
// answerTooBig returns, since it came by the loopback device.
func answerTooBig(t *testing.T, icmp int, to netip.Addr) {
	t.Helper()
	about := make([]byte, 100)
	h := packet.IPv4(about)
	h.Encode(packet.IPv4Fields{TotalLen: len(h), TTL: 64, Protocol: packet.ProtoIPIP, Src: [4]byte{10, 0, 2, 2},
		Dst: to.As4()})
	h[6] = 0x40
	h.SetChecksum()
	answer := make([]byte, packet.MaxLen)
	here := [4]byte{10, 0, 2, 2}
	n := packet.FragmentationNeeded(answer, about, netip.AddrFrom4(here), 1333)
	err := unix.Sendto(icmp, answer[packet.IPv4HeaderLen:n], 0, &unix.SockaddrInet4{Addr: here})
	if err != nil {
		t.Fatal(err)
	}
}

// learnedMTU is the path MTU to a that the kernel has learned, 0 for none.
func learnedMTU(t *testing.T, a netip.Addr) int {
	t.Helper()
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) != 1 {
		t.Fatal(routes, err)
	}
	return routes[0].MTU
}

package tunnel

import (
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/wire"
	"vstun/encap/wireguard"
	"vstun/routing"
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

package director

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/neigh"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// growing runs a director on a host that has eth0 and, once later is true, eth1 with a subnet.
func growing(t *testing.T, prepare func(o *operated)) (o *operated, later *atomic.Bool) {
	t.Helper()
	later = new(atomic.Bool)
	device := func(name string, index int) query.Device {
		return query.Device{Name: name, Index: index, MAC: [6]byte{2, byte(index)}, Up: true, Running: true,
			Neighbours: true}
	}
	return operate(t, running(), func(o *operated) {
		o.controller.ask.devices = func() ([]query.Device, error) {
			all := []query.Device{device("eth0", 7)}
			if later.Load() {
				all = append(all, device("eth1", 8))
				all[1].Addrs = []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}
			}
			return all, nil
		}
		if prepare != nil {
			prepare(o)
		}
	}), later
}

// withVIP is running with another VIP.
func withVIP(vip string) *config.Director {
	cfg := running()
	cfg.Services[0].VIPs = append(cfg.Services[0].VIPs, netip.MustParseAddr(vip))
	return cfg
}

// TestLaterVIPWithoutSockets: a VIP that gets into a subnet of the host later, and cannot be announced, is in the log
// once.
func TestLaterVIPWithoutSockets(t *testing.T) {
	var log testkit.Log
	o, later := growing(t, func(o *operated) {
		o.lan.log, o.lan.missing = slog.New(slog.NewTextHandler(&log, nil)), errors.New("no sockets")
	})
	if _, _, err := o.configure(withVIP("10.9.0.80")); err != nil {
		t.Fatal(err)
	}
	for _, is := range []bool{true, false, true} {
		later.Store(is)
		_ = o.controller.do(func() { o.controller.followDevices() })
	}
	if got := log.String(); strings.Count(got, "are not announced") != 1 || !strings.Contains(got, "vip=10.9.0.80") ||
		!strings.Contains(got, "no sockets") {
		t.Errorf("the log:\n%s", got)
	}
}

// TestLaterDevice: a device that comes while no VIP is in its subnet is known to a later reload that adds such a VIP:
// the reload examines the VIP there, and the director announces it.
func TestLaterDevice(t *testing.T) {
	o, later := growing(t, nil)
	later.Store(true)
	_ = o.controller.do(func() { o.controller.followDevices() })
	next := withVIP("10.9.0.80")
	o.lan.missing = errors.New("no sockets")
	if _, _, err := o.configure(next); err == nil || !strings.Contains(err.Error(), "in a subnet of eth1") {
		t.Errorf("without the means to announce the VIP, the reload has the error %v", err)
	}
	o.lan.missing = nil
	if _, _, err := o.configure(next); err != nil {
		t.Fatal(err)
	}
	all := o.controller.state().Announce
	if len(all) != 1 || all[0].Name != "eth1" || len(all[0].Addrs) != 1 {
		t.Errorf("announced: %+v", all)
	}
}

// TestAdoptedVIP: a start asks for conflicts about the VIPs that its predecessor has not announced, and about no other.
func TestAdoptedVIP(t *testing.T) {
	cfg := withVIP("10.9.0.80")
	o, later := growing(t, func(o *operated) { o.lan.missing = errors.New("cannot ask") })
	later.Store(true)
	vip := []netip.Addr{netip.MustParseAddr("10.9.0.80")}
	for _, c := range []struct {
		vip    string // with a route
		former []netip.Addr
		handed bool // with the device
		want   string
	}{{"10.9.0.80/32", nil, true, ""}, {"10.9.0.81/32", nil, true, "cannot ask"}, {"10.9.0.81/32", vip, true, ""},
		{"10.9.0.80/32", vip, false, "cannot ask"}} {
		var err error
		_ = o.controller.do(func() {
			o.network.adopted, o.controller.handed = netip.MustParsePrefix(c.vip), c.handed
			in := plan.Inputs{}.Reconfigured(cfg)
			o.controller.listDevices(&in)
			err = o.lan.check(in, o.controller.announced(in, c.former))
		})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestLoggedVIPs: the log has VIPs alone, not the other addresses of a TAP device.
func TestLoggedVIPs(t *testing.T) {
	var log testkit.Log
	l := lan{log: slog.New(slog.NewTextHandler(&log, nil))}
	vip, own := netip.MustParseAddr("10.0.2.80"), netip.MustParseAddr("fe80::1")
	for _, addrs := range [][]netip.Addr{{vip, own}, {own}} {
		l.logVIPs("VIPs announced", []neigh.Device{{Name: "vs0", Addrs: addrs}}, map[netip.Addr]bool{vip: true})
	}
	if got := log.String(); strings.Count(got, "announced") != 1 || !strings.Contains(got, "count=1 vips=10.0.2.80\n") {
		t.Error(got)
	}
}

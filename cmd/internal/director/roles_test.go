package director

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vstun/routing/query"
	"vstun/routing/vrrp"
	"vstun/testdata/testkit"
)

// TestDeafRouter: the log says once that packets of other directors cannot come in by a device, also by one that comes
// after the start.
func TestDeafRouter(t *testing.T) {
	testkit.NewNamespace(t)
	var log testkit.Log
	r := &roles{log: slog.New(slog.NewTextHandler(&log, nil))}
	var err error
	if r.router, err = vrrp.Open(func(vrrp.Event) {}); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	r.router.Set([]vrrp.Instance{{Name: "VI_1", Device: "eth0", RouterID: 51, Version: vrrp.Version3, Priority: 100,
		Interval: time.Second, Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.80")}}})
	missing := []query.Device{{Name: "eth0", Index: 9999, Running: true,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}}
	for _, c := range []struct {
		devices []query.Device
		lines   int
	}{{nil, 0}, {missing, 1}, {missing, 1}, {nil, 1}, {missing, 2}} {
		r.followDevices(c.devices)
		if n := strings.Count(log.String(), "packets of other directors may not come in"); n != c.lines {
			t.Errorf("%d lines, want %d:\n%s", n, c.lines, &log)
		}
	}
}

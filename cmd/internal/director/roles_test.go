package director

import (
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/config"
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

// TestRoleWithOtherChange: a role has the same consequences if another change puts it in force first, and if another
// role goes at the same moment. A new master sends no RST for a time. Where a role has gone, the peers get half-open
// connections.
func TestRoleWithOtherChange(t *testing.T) {
	cfg := running()
	cfg.Sync.On = true
	cfg.VRRP = []config.VRRP{{Instance: vrrp.Instance{Name: "a"}}, {Instance: vrrp.Instance{Name: "b"}}}
	now, lost := vrrp.Roles{"a": vrrp.Backup, "b": vrrp.Master}, 0
	o := operate(t, cfg, func(o *operated) {
		o.controller.roles = &roles{elected: func() vrrp.Roles { return maps.Clone(now) }, lost: func() { lost++ }}
	})
	silent := func() bool { return o.controller.state().snapshot.NoResets() }
	if o.controller.peersComplete(true); silent() || lost > 0 {
		t.Fatalf("before a change: no RST %v, %d roles lost", silent(), lost)
	}
	for _, change := range []struct {
		name string
		fn   func()
	}{{"health", func() { o.controller.takeHealth(nil) }}, {"a role", o.controller.followRoles}} {
		_ = o.controller.do(func() {
			now["a"], now["b"] = vrrp.Master, vrrp.Backup
			change.fn()
		})
		if !silent() || lost != 1 {
			t.Errorf("after %s: no RST %v, %d roles lost, want 1", change.name, silent(), lost)
		}
	}
}

package config

import (
	"net/netip"
	"testing"
	"time"
)

// TestNetmaskOfIPv6 is about services whose VIPs are all IPv6, where netmask is what it is in ipvsadm.
func TestNetmaskOfIPv6(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	four := netip.MustParseAddr("198.51.100.80")
	for _, c := range []struct {
		name   string
		vips   []netip.Addr
		keys   map[string]any
		want   Persistence
		faults int
	}{
		{"none", []netip.Addr{six}, map[string]any{}, Persistence{5 * time.Minute, 32, 128}, 0},
		{"netmask", []netip.Addr{six}, map[string]any{"netmask": int64(64)}, Persistence{5 * time.Minute, 32, 64}, 0},
		{"netmask6", []netip.Addr{six}, map[string]any{"netmask6": int64(56)}, Persistence{5 * time.Minute, 32, 56}, 0},
		{"both, alike", []netip.Addr{six}, map[string]any{"netmask": int64(64), "netmask6": int64(64)},
			Persistence{5 * time.Minute, 32, 64}, 0},
		{"both", []netip.Addr{six}, map[string]any{"netmask": int64(64), "netmask6": int64(56)},
			Persistence{5 * time.Minute, 32, 56}, 1},
		{"mixed", []netip.Addr{six, four}, map[string]any{"netmask": int64(24), "netmask6": int64(56)},
			Persistence{5 * time.Minute, 24, 56}, 0},
		{"mixed, netmask of IPv6", []netip.Addr{six, four}, map[string]any{"netmask": int64(64)},
			Persistence{5 * time.Minute, 32, 128}, 1},
	} {
		f := &file{name: "x.toml"}
		service := &table{file: f, values: map[string]any{"persistence": c.keys}, at: &place{line: 1}}
		if got := readPersistence(service, c.vips); got != c.want || len(f.faults) != c.faults {
			t.Errorf("%s: got %+v, faults %v; want %+v, %d faults", c.name, got, f.faults, c.want, c.faults)
		}
	}
}

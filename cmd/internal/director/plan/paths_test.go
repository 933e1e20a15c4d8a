package plan

import (
	"net/netip"
	"testing"

	"vstun/cmd/internal/config"
)

// TestSourceOfChecks: a VIP is checked from the configured address of its family, or from the source of the
// path to the realserver. If the realserver is of the other family, it is the source of the default route.
func TestSourceOfChecks(t *testing.T) {
	addr := netip.MustParseAddr
	four, six, link := addr("10.0.11.2"), addr("fd00:11::2"), addr("fd00:12::2")
	to := Paths{four: {Source: addr("10.0.2.2")}, six: {Source: addr("fd00:2::2")},
		link:           {Source: addr("fe80::1")},
		documentation4: {Source: addr("10.9.9.9")}, documentation6: {Source: addr("fd00:9::9")}}
	vip4, vip6 := addr("198.51.100.80"), addr("2001:db8:100::80")
	for _, c := range []struct {
		sources         config.Sources
		vip, realserver netip.Addr
		want            string
	}{
		{config.Sources{}, vip4, four, "10.0.2.2"},
		{config.Sources{}, vip6, six, "fd00:2::2"},
		{config.Sources{}, vip6, four, "fd00:9::9"},
		{config.Sources{}, vip4, six, "10.9.9.9"},
		{config.Sources{}, vip6, link, "invalid IP"},
		{config.Sources{V4: addr("10.0.0.1")}, vip4, six, "10.0.0.1"},
		{config.Sources{V4: addr("10.0.0.1")}, vip6, six, "fd00:2::2"},
		{config.Sources{}, vip4, addr("10.0.77.7"), "invalid IP"},
	} {
		if got := to.Source(c.sources, c.vip, c.realserver).String(); got != c.want {
			t.Errorf("%v at %v is checked from %s, want %s", c.vip, c.realserver, got, c.want)
		}
	}
}

// TestTargets: a realserver that several services check through one tunnel is one target; through another tunnel it is
// another.
func TestTargets(t *testing.T) {
	a := netip.MustParseAddr("10.0.11.2")
	ref := func(encap string, check *config.Check) config.RealserverRef {
		return config.RealserverRef{Address: a, Weight: 1, Tunnel: config.Tunnel{Encap: encap}, Check: check}
	}
	tunnel, direct := &config.Check{Type: "tcp"}, &config.Check{Type: "tcp", Direct: true}
	cfg := &config.Director{Services: []config.Service{
		{Name: "a", EncapPort: 6080, Realservers: []config.RealserverRef{ref("ipip", tunnel)}},
		{Name: "b", EncapPort: 6080, Realservers: []config.RealserverRef{ref("ipip", tunnel)}},
		{Name: "c", EncapPort: 6080, Realservers: []config.RealserverRef{ref("gue", tunnel)}},
		{Name: "d", EncapPort: 6080, Realservers: []config.RealserverRef{ref("gre", direct)}},
		{Name: "e", EncapPort: 6080, Realservers: []config.RealserverRef{ref("fou", nil)}},
	}}
	got := Paths(nil).targets(cfg)
	if len(got) != 2 || got[0].Encap.String() != "ipip" || got[1].Encap.String() != "gue" {
		t.Errorf("%+v", got)
	}
	name := func(i int) string { return pathName(&cfg.Services[i], &cfg.Services[i].Realservers[0]) }
	if name(0) != name(1) || name(0) == name(2) || name(3) != "direct" || name(4) != "direct" {
		t.Errorf("paths are named %q, %q, %q, %q and %q", name(0), name(1), name(2), name(3), name(4))
	}
}

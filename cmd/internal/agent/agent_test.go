package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/wire"
)

// agentOf is the configuration with these VIPs, directors and tunnels.
func agentOf(vips, directors, encaps string, hasKey bool) *config.Realserver {
	cfg := &config.Realserver{TUN: "vs0", EncapPort: 6080, Encaps: strings.Fields(encaps), HasKey: hasKey,
		MSS: config.MSSOff}
	for _, v := range strings.Fields(vips) {
		cfg.VIPs = append(cfg.VIPs, netip.MustParseAddr(v))
	}
	for _, d := range strings.Fields(directors) {
		cfg.Directors = append(cfg.Directors, netip.MustParsePrefix(d))
	}
	return cfg
}

// Only the needed sockets are opened: over the directors' families, for the VIPs' families.
func TestSockets(t *testing.T) {
	const v4, v6, from4, from6 = "198.51.100.80", "2001:db8:100::80", "10.0.2.2/32", "fd00:0:2::/64"
	socket := func(protocol uint8, over6 bool) wire.Socket {
		s := wire.Socket{Protocol: protocol, Over6: over6}
		if protocol == 17 {
			s.Port = 6080
		}
		return s
	}
	for _, c := range []struct {
		vips, directors, encaps string
		want                    []wire.Socket
	}{
		{v4, from4, "ipip", []wire.Socket{socket(4, false)}},
		{v6, from4, "ipip", []wire.Socket{socket(41, false)}},
		{v4, from6, "ipip", []wire.Socket{socket(4, true)}},
		{v6, from6, "ipip gre", []wire.Socket{socket(41, true), socket(47, true)}},
		{v4 + " " + v6, from6 + " " + from4, "ipip gre gue", []wire.Socket{socket(4, false), socket(41, false),
			socket(47, false), socket(17, false),
			socket(4, true), socket(41, true), socket(47, true), socket(17, true)}},
		{v6, from4, "fou", []wire.Socket{socket(17, false)}},
	} {
		if got := sockets(agentOf(c.vips, c.directors, c.encaps, false)); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// The overhead is as large as the largest of a director's tunnel.
func TestOverhead(t *testing.T) {
	from4, from6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00:0:2::2")
	for _, c := range []struct {
		kind   encap.Kind
		hasKey bool
	}{{encap.KindIPIP, false}, {encap.KindGRE, false}, {encap.KindGRE, true}, {encap.KindGUE, false},
		{encap.KindFOU, false}} {
		for _, from := range []netip.Addr{from4, from6} {
			tunnel := encap.Config{Kind: c.kind, Source: from, Destination: from.Next(), HasKey: c.hasKey,
				Checksum: c.kind != encap.KindIPIP}
			if c.kind.UDP() {
				tunnel.Port = 6080
			}
			want, err := encap.New(tunnel)
			if err != nil {
				t.Fatal(err)
			}
			cfg := agentOf("198.51.100.80", "10.0.2.2/32", c.kind.String(), c.hasKey)
			if got := overhead(cfg, from.Is6()); got != want.Overhead() {
				t.Errorf("%+v over %v: %d, want %d", c, from, got, want.Overhead())
			}
			cfg.SecondChance.On = true
			hop := 0
			if c.kind == encap.KindGUE && from.Is4() {
				hop = encap.HopLen
			}
			if got := overhead(cfg, from.Is6()); got != want.Overhead()+hop {
				t.Errorf("%+v over %v, with second chances: %d, want %d", c, from, got, want.Overhead()+hop)
			}
		}
	}
}

// TestKernelCantBeAsked: without a descriptor left, the MSS by the paths known before stays.
func TestKernelCantBeAsked(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	a := &agent{log: slog.New(slog.DiscardHandler)}
	a.setup.Store(&setup{agentOf("198.51.100.80", "127.0.0.1/32", "ipip", false), 1340, 1320})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	a.refresh() // would set up another MSS, by a network that isn't there
	if s := a.setup.Load(); s.mss4 != 1340 || s.mss6 != 1320 {
		t.Errorf("MSS %d and %d, were 1340 and 1320", s.mss4, s.mss6)
	}
}

// The device has IPv6 only for an IPv6 VIP, and then nothing of its own.
func TestNetwork(t *testing.T) {
	value := func(cfg *config.Realserver, key string) string {
		for _, s := range network(cfg, 1400, 1380).Sysctls {
			if s.Key == "net/ipv6/conf/vs0/"+key {
				return s.Value
			}
		}
		return ""
	}
	v4, both := agentOf("198.51.100.80", "10.0.2.2/32", "ipip", false), agentOf("198.51.100.80 2001:db8:100::80",
		"10.0.2.2/32", "ipip", false)
	if value(v4, "disable_ipv6") != "1" || value(v4, "addr_gen_mode") != "" {
		t.Error("IPv6 without an IPv6 VIP")
	}
	if value(both, "disable_ipv6") != "0" || value(both, "addr_gen_mode") != "1" || value(both, "accept_ra") != "0" {
		t.Error("an IPv6 VIP without IPv6, or with addresses of the device's own")
	}
	both.MSS = 0
	if r := network(both, 1400, 1380).Replies; r == nil || r.AdvMSS != 1400 || r.AdvMSS6 != 1380 || len(r.From) != 2 {
		t.Errorf("answers by %+v", r)
	}
}

// TestForeignVIPs: another program takes the VIPs' packets. The device has no VIP, and packets that no program takes go
// no further.
func TestForeignVIPs(t *testing.T) {
	cfg := agentOf("198.51.100.80 2001:db8:100::80", "10.0.2.2/32", "ipip", false)
	cfg.ForeignVIPs, cfg.Table = true, 30323
	s := network(cfg, 1400, 1380)
	if len(s.Addrs) != 1 || s.Addrs[0].Prefix != netip.MustParsePrefix("127.118.0.2/32") {
		t.Errorf("addresses %v", s.Addrs)
	}
	var unreachable []string
	for _, r := range s.Routes {
		if r.Unreachable && r.Table == 95859 {
			unreachable = append(unreachable, r.Dst.String())
		}
	}
	if !slices.Equal(unreachable, []string{"198.51.100.80/32", "2001:db8:100::80/128"}) {
		t.Errorf("unreachable: %v", unreachable)
	}
	if len(s.Rules) != 2 || s.Rules[0].In != "vs0" || s.Rules[0].IPv6 || !s.Rules[1].IPv6 || s.Rules[1].Table != 95859 {
		t.Errorf("rules %+v", s.Rules)
	}
	if cfg = agentOf("2001:db8:100::80", "10.0.2.2/32", "ipip", false); len(network(cfg, 1400, 1380).Rules) != 0 {
		t.Error("the agent's own VIP has a rule")
	}
	cfg.ForeignVIPs = true
	if s := network(cfg, 1400, 1380); len(s.Addrs) != 0 || len(s.Rules) != 1 {
		t.Errorf("with IPv6 alone: addresses %v, rules %v", s.Addrs, s.Rules)
	}
}

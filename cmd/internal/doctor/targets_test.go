package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// A sorry server is probed through its own tunnel, as realservers are. Its failure is a warning.
func TestSorryServerIsATarget(t *testing.T) {
	addr := netip.MustParseAddr
	gue, ipip := config.Tunnel{Encap: "gue"}, config.Tunnel{Encap: "ipip"}
	vip, sorry, server := addr("198.51.100.80"), addr("10.0.99.2"), addr("10.0.11.2")
	cfg := &config.Director{Services: []config.Service{
		{Name: "web", VIPs: []netip.Addr{vip}, Protocol: "tcp", Ports: []config.PortRange{{First: 80, Last: 80}},
			EncapPort: 6080, Sorry: config.RealserverRef{Address: sorry, Tunnel: gue},
			Realservers: []config.RealserverRef{{Address: server, Weight: 1, Tunnel: ipip}}},
		{Name: "mail", VIPs: []netip.Addr{vip}, Protocol: "tcp", Ports: []config.PortRange{{First: 25, Last: 25}},
			EncapPort: 6080, Sorry: config.RealserverRef{Address: server, Tunnel: ipip}},
	}}
	all, services := realservers(cfg)
	if diff := cmp.Diff([]string{"10.0.11.2", "10.0.99.2"}, []string{all[0].String(), all[1].String()}); diff != "" ||
		len(all) != 2 {
		t.Errorf("%v", all)
	}
	if diff := cmp.Diff(map[string][]string{"10.0.11.2": {"web", "mail: sorry server"},
		"10.0.99.2": {"web: sorry server"}},
		map[string][]string{"10.0.11.2": services[server], "10.0.99.2": services[sorry]}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	paths := map[netip.Addr]query.Path{server: {MTU: 1500, Source: addr("10.0.2.2")},
		sorry: {MTU: 1500, Source: addr("10.0.2.2")}}
	// Realservers of other methods have no tunnel.
	cfg.Services[0].Realservers = append(cfg.Services[0].Realservers,
		config.RealserverRef{Address: server, Forward: method.NAT, Port: 8080, Weight: 1},
		config.RealserverRef{Address: addr("10.0.12.2"), Forward: method.DR, Weight: 1})
	paths[addr("10.0.12.2")] = paths[server]
	found := map[string]Severity{}
	for _, t := range targets(cfg, paths, func(netip.Addr) netip.Addr { return addr("10.0.2.2") }) {
		found[t.where()+" by "+t.tunnelName(t.Kind)] = t.grade()
	}
	want := map[string]Severity{"realserver 10.0.11.2 (web, mail: sorry server) by ipip (protocol 4)": Error,
		"realserver 10.0.99.2 (web: sorry server) by gue (UDP port 6080)": Warning}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Thousands of SYNs from one port may be unanswered at the same time: each gets its own answer.
func TestMoreSYNsThanPorts(t *testing.T) {
	p := emptyProber()
	src := netip.MustParseAddr("10.0.2.2")
	var probes []*probe
	vip := netip.MustParseAddr("198.18.0.1")
	for range 3 * (lastPort - firstPort) {
		s, err := p.syn(netip.AddrPortFrom(src, firstPort), netip.AddrPortFrom(vip, 80), untunnelled)
		if err != nil {
			t.Fatal(err)
		}
		probes, vip = append(probes, s), vip.Next()
	}
	p.register(probes)
	for _, s := range probes {
		p.handleTCP(s.from, segment(netip.AddrPortFrom(s.from, 80), netip.AddrPortFrom(src, s.port), 1, s.seq+1,
			packet.FlagSYN|packet.FlagACK)[packet.IPv4HeaderLen:])
	}
	if !p.settled(probes) {
		t.Error("some SYNs have not got their answers")
	}
	p.unregister(probes)
	if len(p.syns) > 0 {
		t.Errorf("%d SYNs still wait", len(p.syns))
	}
}

// The line about a realserver of a thousand services stays short, and so does the one about a thousand realservers for
// which there was no time.
func TestLinesOfThousands(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cfg := &config.Director{}
	for i := range 1000 {
		cfg.Services = append(cfg.Services, config.Service{Name: fmt.Sprintf("service-%d", i),
			VIPs: []netip.Addr{netip.MustParseAddr("198.51.100.80")}, Protocol: "udp",
			Realservers: []config.RealserverRef{{Address: netip.MustParseAddr("10.0.11.2"), Weight: 1,
				Tunnel: config.Tunnel{Encap: "ipip"}}}})
	}
	own := func(netip.Addr) netip.Addr { return netip.MustParseAddr("10.0.2.2") }
	paths := map[netip.Addr]query.Path{netip.MustParseAddr("10.0.11.2"): {MTU: 1500, Source: own(netip.Addr{})}}
	all := targets(cfg, paths, own)
	if where := all[0].where(); len(all) != 1 || len(where) > 200 {
		t.Errorf("%d targets, %s", len(all), where)
	}
	res := result{check: "tunnels"}
	p := emptyProber()
	var many []*target // each its own
	for range 1000 {
		many = append(many, targets(cfg, paths, own)...)
	}
	p.examineTargets(ctx, &res, many)
	if len(res.unchecked) != 1 || len(res.findings) > 0 || !strings.HasSuffix(res.unchecked[0].Text, "and 992 more") {
		t.Errorf("%d notes: %.300v; %v", len(res.unchecked), res.unchecked, res.findings)
	}
}

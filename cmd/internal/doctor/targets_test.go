package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/routing"
)

// A sorry server is probed as realservers are, by the tunnel that it has, and one that fails is a warning as long as
// nobody needs it.
func TestSorryServerIsATarget(t *testing.T) {
	addr := netip.MustParseAddr
	gue, ipip := config.Tunnel{Encap: "gue"}, config.Tunnel{Encap: "ipip"}
	vip, sorry, server := addr("198.51.100.80"), addr("10.0.99.2"), addr("10.0.11.2")
	cfg := &config.Director{Services: []config.Service{
		{Name: "web", VIPs: []netip.Addr{vip}, Protocol: "tcp", Ports: []config.PortRange{{First: 80, Last: 80}},
			EncapPort: 6080, SorryServer: sorry, SorryTunnel: gue,
			Realservers: []config.RealserverRef{{Address: server, Weight: 1, Tunnel: ipip}}},
		{Name: "mail", VIPs: []netip.Addr{vip}, Protocol: "tcp", Ports: []config.PortRange{{First: 25, Last: 25}},
			EncapPort: 6080, SorryServer: server, SorryTunnel: ipip},
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
	ways := map[netip.Addr]routing.Path{server: {MTU: 1500, Source: addr("10.0.2.2")},
		sorry: {MTU: 1500, Source: addr("10.0.2.2")}}
	found := map[string]Severity{}
	for _, t := range targets(cfg, ways, func(netip.Addr) netip.Addr { return addr("10.0.2.2") }) {
		found[t.where()+" by "+t.what(t.Kind)] = t.grade()
	}
	want := map[string]Severity{"realserver 10.0.11.2 (web, mail: sorry server) by ipip (protocol 4)": Error,
		"realserver 10.0.99.2 (web: sorry server) by gue (UDP port 6080)": Warning}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Thousands of SYNs may be under way from one port: each takes the answer that is its own, from wherever else answers
// come.
func TestMoreSYNsThanPorts(t *testing.T) {
	p := emptyProber()
	src := netip.MustParseAddr("10.0.2.2")
	var shots []*shot
	vip := netip.MustParseAddr("198.18.0.1")
	for range 3 * (lastPort - firstPort) {
		s, err := p.syn(netip.AddrPortFrom(src, firstPort), netip.AddrPortFrom(vip, 80), bare)
		if err != nil {
			t.Fatal(err)
		}
		shots, vip = append(shots, s), vip.Next()
	}
	p.expect(shots, true)
	for _, s := range shots {
		p.takeTCP(s.from, segment(netip.AddrPortFrom(s.from, 80), netip.AddrPortFrom(src, s.port), 1, s.seq+1,
			packet.FlagSYN|packet.FlagACK)[headerLen(src):])
	}
	if !p.settled(shots) {
		t.Error("answers have gone to others")
	}
	p.expect(shots, false)
	if len(p.syns) > 0 {
		t.Errorf("%d SYNs wait still", len(p.syns))
	}
}

// A realserver of a thousand services has a line that can be read, and so have thousands for which there was no time.
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
	ways := map[netip.Addr]routing.Path{netip.MustParseAddr("10.0.11.2"): {MTU: 1500, Source: own(netip.Addr{})}}
	all := targets(cfg, ways, own)
	if where := all[0].where(); len(all) != 1 || len(where) > 200 {
		t.Errorf("%d targets, %s", len(all), where)
	}
	e := exam{check: "tunnels"}
	p := emptyProber()
	var many []*target // each its own
	for range 1000 {
		many = append(many, targets(cfg, ways, own)...)
	}
	p.probe(ctx, &e, many)
	if len(e.unchecked) != 1 || len(e.findings) > 0 || !strings.HasSuffix(e.unchecked[0].Text, "and 992 more") {
		t.Errorf("%d notes: %.300v; %v", len(e.unchecked), e.unchecked, e.findings)
	}
}

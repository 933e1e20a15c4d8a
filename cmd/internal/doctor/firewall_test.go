package doctor

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// TestRequestsTo: without a tunnel, requests come in by the device that leads to the director, or to the clients.
func TestRequestsTo(t *testing.T) {
	link := func(a netip.Addr) string {
		if a == netip.MustParseAddr("10.0.2.2") {
			return "eth1"
		}
		return "eth0"
	}
	directors := []netip.Prefix{netip.MustParsePrefix("10.0.2.2/32")}
	for _, c := range []struct {
		cfg  config.Realserver
		want string
	}{
		{config.Realserver{Encaps: []string{"ipip"}, Directors: directors},
			"vs0 false requests for 10.0.2.80:80 that come out of the tunnel: -i vs0"},
		{config.Realserver{}, "eth0 true requests for 10.0.2.80:80: -d 10.0.2.80 -p tcp --dport 80"},
		{config.Realserver{Directors: directors},
			"eth1 false requests for 10.0.2.80:80: -d 10.0.2.80 -p tcp --dport 80"},
	} {
		c.cfg.TUN = "vs0"
		p := requestsTo(&c.cfg, netip.MustParseAddrPort("10.0.2.80:80"), link)
		if got := fmt.Sprintf("%s %v %s: %s", p.spec.IIF, p.spec.ReversePath, p.name, p.xtables); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// TestForwardChecks: requests to realservers of VS/NAT leave this host, by a socket or the director's device, unless
// the realserver is the host itself. Connection tracking sees both directions of their connections, so that no packet
// is invalid.
func TestForwardChecks(t *testing.T) {
	service := func(protocol string, forward method.Kind, addr string) config.Service {
		return config.Service{Protocol: protocol, VIPs: []netip.Addr{netip.MustParseAddr("10.0.2.80")},
			Ports: []config.PortRange{{First: 80, Last: 80}}, Realservers: []config.RealserverRef{
				{Address: netip.MustParseAddr(addr), Forward: forward, Weight: 1}}}
	}
	lookup := func(a netip.Addr) (query.Path, bool, error) {
		if a == netip.MustParseAddr("127.0.0.1") {
			return query.Path{Link: "lo", Local: true}, true, nil
		}
		return query.Path{Link: "eth0"}, true, nil
	}
	const into, later = "eth0>vs0 clients' packets for 10.0.2.80", "eth0>vs0 packets after a client's SYN to 10.0.2.80"
	const out = ">eth0 requests to realservers of nat"
	const back = "vs0>eth0 replies and large requests of nat that come out of vs0"
	for _, c := range []struct {
		name     string
		services []config.Service
		want     []string
	}{
		{"tun", []config.Service{service("tcp", method.TUN, "10.0.11.2")}, []string{into, later}},
		{"dr of UDP", []config.Service{service("udp", method.DR, "10.0.2.11")}, []string{into}},
		{"nat", []config.Service{service("tcp", method.NAT, "10.0.3.11")}, []string{into, out, back}},
		{"nat twice", []config.Service{service("tcp", method.NAT, "10.0.3.11"), service("udp", method.NAT,
			"10.0.3.12")}, []string{into, out, back, into}},
		{"LocalNode", []config.Service{service("tcp", method.NAT, "127.0.0.1")}, []string{into}},
	} {
		all, err := forwardChecks(&config.Director{TUN: "vs0", Services: c.services}, lookup)
		var got []string
		for _, p := range all {
			got = append(got, fmt.Sprintf("%s>%s %s", p.spec.IIF, p.spec.OIF, p.name))
		}
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
		}
	}
}

package agent

import (
	"slices"
	"strings"
	"testing"

	"vstun/routing/query"
)

// TestAnswering: a warning names the drivers that answer the agent's packets, each once, and no others.
func TestAnswering(t *testing.T) {
	const v4, v6, from4, from6 = "198.51.100.80", "2001:db8:100::80", "10.0.2.2/32", "fd00:0:2::/64"
	over4 := []query.Tunnel{{Name: "tunl0", Module: "ipip", Protocols: []uint8{4}}, {Name: "sit0", Module: "sit",
		Protocols: []uint8{4, 41}},
		{Name: "ipip1", Module: "ipip", Protocols: []uint8{4}}, {Name: "gre0", Module: "ip_gre",
			Protocols: []uint8{47}}}
	over6 := []query.Tunnel{{Name: "ip6tnl0", Module: "ip6_tunnel", Over6: true, Protocols: []uint8{4, 41}},
		{Name: "ip6gre0", Module: "ip6_gre", Over6: true, Protocols: []uint8{47}}}
	all := slices.Concat(over4, over6)
	for _, c := range []struct {
		vips, directors, encaps string
		devices                 []query.Tunnel
		quiet                   bool
		want                    string
	}{
		{v4, from4, "ipip", over4, true, ""},
		{v4, from4, "ipip", over4[1:2], false, "sit"}, // QuietIPIP has no effect on it
		{v4, from4, "ipip", over4, false, "ipip sit"},
		{v6, from4, "ipip", over4, false, "ipip sit"},
		{v6, from4, "ipip", over4[:1], false, "ipip"},
		{v4 + " " + v6, from4, "ipip", over4, true, "ipip sit"}, // protocol 41
		{v4, from4, "gue", all, false, ""},
		{v4, from4, "ipip gre", all, true, "ip_gre"},
		{v4, from6, "ipip gre", all, true, "ip6_tunnel ip6_gre"},
		{v4, from4 + " " + from6, "ipip gue", all, true, "ip6_tunnel"},
		{v4, from4, "ipip gre", nil, false, ""},
	} {
		if got := strings.Join(answering(sockets(agentOf(c.vips, c.directors, c.encaps, false)), c.devices, c.quiet),
			" "); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

package doctor

import (
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

// TestPointToPoint: a tunnel that is down, a peer that is silent, and an MTU that does not fit are found.
func TestPointToPoint(t *testing.T) {
	late, soon := 301.0, 2.0
	sent := api.Traffic{Packets: 7}
	for _, c := range []struct {
		tunnel   api.Tunnel
		severity Severity
		want     string // "": fine
	}{
		{api.Tunnel{State: "up", Heard: &soon, MTU: 1476, PathMTU: 1500}, "", ""},
		{api.Tunnel{State: "up", MTU: 1476, PathMTU: 1500}, "", ""}, // nothing was sent either
		{api.Tunnel{State: "up", Heard: &late, Probe: &api.TunnelProbe{}}, "", ""},
		{api.Tunnel{State: "down", Reason: "probe: no answer in 5s"}, Error,
			"the tunnel is down: probe: no answer in 5s"},
		{api.Tunnel{State: "up", Out: sent}, Warning, "the peer is silent: nothing has come from it"},
		{api.Tunnel{State: "up", Heard: &late, Out: sent}, Hint, "the peer is silent for 5m1s"},
		{api.Tunnel{State: "up", Heard: &soon, MTU: 1500, PathMTU: 1500}, Hint, "MTU 1500 does not fit the path"},
	} {
		res := result{check: "point_to_point"}
		res.pointToPoint([]api.Tunnel{c.tunnel}, func(string) int { return 24 })
		switch {
		case c.want == "" && len(res.findings) > 0:
			t.Errorf("%+v: %+v", c.tunnel, res.findings)
		case c.want == "":
		case len(res.findings) != 1 || res.findings[0].Severity != c.severity ||
			!strings.HasPrefix(res.findings[0].What, c.want):
			t.Errorf("%+v: %+v, want %s: %s", c.tunnel, res.findings, c.severity, c.want)
		}
	}
}

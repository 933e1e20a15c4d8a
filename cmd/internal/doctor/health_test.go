package doctor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/api"
)

// TestDownRealservers: a finding names a realserver by its address and own port, and its command fits the method. A
// realserver of VS/NAT has no agent.
func TestDownRealservers(t *testing.T) {
	failed := func(via string) *api.Check { return &api.Check{Type: "tcp", Via: via, Reason: "connection refused"} }
	st := &api.DirectorStatus{Services: []api.Service{{Name: "web", Health: "up", Realservers: []api.Realserver{
		{Address: "10.0.11.2", Forward: "tun", Health: "down", Check: failed("tunnel")},
		{Address: "10.0.2.11", Forward: "dr", Health: "down", Check: failed("tunnel")},
		{Address: "10.0.2.12", Forward: "dr", Health: "down", Unreachable: "it does not answer ARP on eth0"},
		{Address: "10.0.3.11", Port: 8080, Forward: "nat", Health: "down", Check: failed("direct")},
		{Address: "10.0.3.12", Forward: "nat", Health: "up", Check: failed("direct")},
	}}}}
	res := &result{check: "health"}
	res.health(st)
	var got []string
	for _, f := range res.findings {
		got = append(got, string(f.Severity)+": "+f.Where+": "+f.What+" -> "+f.On+": "+f.Fix)
	}
	want := []string{
		"warning: realserver 10.0.11.2 (web): it is down: tcp check via tunnel: connection refused -> 10.0.11.2: " +
			"realserver doctor",
		"warning: realserver 10.0.2.11 (web): it is down: tcp check via tunnel: connection refused -> 10.0.2.11: " +
			"realserver doctor",
		"error: realserver 10.0.2.12 (web): it is down: it does not answer ARP on eth0 -> : ip route get 10.0.2.12; " +
			"ip neigh show to 10.0.2.12",
		"warning: realserver 10.0.3.11:8080 (web): it is down: tcp check via direct: connection refused -> " +
			"10.0.3.11: ss -lntu",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

package doctor

import (
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// TestUnheardTables: a realserver that has not answered is a finding. One by gue may have GLB's module.
func TestUnheardTables(t *testing.T) {
	d := Director{Config: &config.Director{Services: []config.Service{{}}}}
	for address, encap := range map[string]string{"10.0.11.2": "ipip", "10.0.11.3": "gue"} {
		s := &d.Config.Services[0]
		s.Realservers = append(s.Realservers, config.RealserverRef{Address: netip.MustParseAddr(address),
			Tunnel: config.Tunnel{Encap: encap}})
		var res result
		d.tables(&res, &api.DirectorStatus{Tables: &api.Tables{Agents: []api.TablesAgent{{Address: address}}}})
		if len(res.findings) != 1 || (len(res.findings[0].Remarks) > 0) != (encap == "gue") {
			t.Errorf("%s: %+v", encap, res.findings)
		}
	}
}

// TestSilentTables: a director whose tables have stopped is a finding, one that sends them is none.
func TestSilentTables(t *testing.T) {
	for heard, want := range map[float64]string{
		5:  "",
		31: "no tables have come from director 10.0.2.2 for 31 seconds",
	} {
		var res result
		res.secondChance(&api.SecondChance{Directors: []api.TablesDirector{{Address: "10.0.2.2", Heard: heard},
			{Address: "10.0.2.3", Heard: 1}}})
		var got []string
		for _, f := range res.findings {
			got = append(got, f.What)
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("heard %v s ago: %q, want %q", heard, got, want)
		}
	}
}

// TestOwnTablesPort: the agent's own port for tables is no server of a VIP.
func TestOwnTablesPort(t *testing.T) {
	at := func(text string) listener { return listener{netip.MustParseAddrPort(text), "1"} }
	cfg := &config.Realserver{SecondChance: config.SecondChance{On: true, Port: 8849}}
	res := result{check: "servers"}
	res.wildcardUDP(cfg, []listener{at("[::]:8849"), at("[::]:53")})
	if len(res.findings) != 1 || res.findings[0].Where != "UDP port 53" {
		t.Errorf("%+v", res.findings)
	}
}

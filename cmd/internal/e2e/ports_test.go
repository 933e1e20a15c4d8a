package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestPortsOfOneHost: two ports of one host are two realservers of nat, each with its weight, checks, connections and
// metrics. Commands take ADDRESS:PORT for one of them, and the address alone for both.
func TestPortsOfOneHost(t *testing.T) {
	t.Parallel()
	needTool(t, "curl", "curl")
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newMethodSite(t, nat, ipv6, 1, nil)
		web := s.Webs[0]
		for _, port := range []string{":8080", ":8081"} {
			s.namedEchoAt(web, port)
		}
		first := netip.AddrPortFrom(web.Addr, 8080).String()
		second := netip.AddrPortFrom(web.Addr, 8081).String()
		s.startDirectorWith(fmt.Sprintf("director.%s\n"+`
[[service]]
name = "web"
vip = %q
protocol = "tcp"
port = 80
scheduler = "rr"
forward = "nat"
check = { type = "tcp", interval = "200ms" }
realserver = [{ address = %q, port = 8080 }, { address = %[3]q, port = 8081 }, { address = %[3]q, port = 8082 }]
`, metricsKey, s.VIP, web.Addr))
		testkit.Within(t, "two of the three ports are up", soon, func() bool {
			r := s.director.balance().Services[0].Realservers
			return r[0].Health == "up" && r[1].Health == "up" && r[2].Health == "down" && r[2].Check.Reason != ""
		})
		for range 4 {
			s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		}
		for i, r := range s.director.balance().Services[0].Realservers {
			if want := []uint64{2, 2, 0}[i]; r.Connections != want || r.Forward != "nat" || r.Check.Via != "direct" {
				t.Errorf("%s has %d connections: %+v; want %d", r.Name(), r.Connections, r, want)
			}
		}
		status := s.must("status")
		if !strings.Contains(strings.Join(strings.Fields(status), " "), "-> "+second+" Masq 1 up") {
			t.Errorf("status has no row of %s:\n%s", second, status)
		}
		for line := range strings.Lines(s.must("connections", "--json", "--realserver", second)) {
			var c api.Connection
			if err := json.Unmarshal([]byte(line), &c); err != nil || c.RealserverPort != 8081 || c.Port != 80 ||
				c.Realserver != web.Addr.String() {
				t.Errorf("connection %+v, %v; want one to %s", c, err, second)
			}
		}
		if n := strings.Count(s.must("connections", "--json", "--realserver", web.Addr.String()), "\n"); n != 4 {
			t.Errorf("%d connections to the address, want 4", n)
		}
		m := s.director.scrape()
		for _, name := range []string{first, second} {
			if n := m[fmt.Sprintf(`vstun_realserver_connections_total{realserver=%q,service="web"}`, name)]; n != 2 {
				t.Errorf("the metrics have %v connections of %s, want 2", n, name)
			}
		}

		if got := s.must("drain", "web", second); !strings.Contains(got, "realserver "+second+": weight 1 -> 0") ||
			strings.Contains(got, first) {
			t.Errorf("drain prints %q", got)
		}
		for range 2 {
			s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		}
		if r := s.director.balance().Services[0].Realservers; r[0].Connections != 4 || r[1].Connections != 2 {
			t.Errorf("after the drain of %s: %d and %d connections, want 4 and 2", second, r[0].Connections,
				r[1].Connections)
		}
		explained := s.must("explain", s.Client.Addr.String(), s.at(80))
		if !strings.Contains(explained, "goes to "+first+"\n") || !strings.Contains(explained, "=> "+first) {
			t.Errorf("explain prints\n%s", explained)
		}
		if got := s.must("drain", "--all", web.Addr.String()); strings.Count(got, "-> 0") != 2 {
			t.Errorf("drain of the address prints %q", got)
		}
		if got := s.must("undrain", "web", web.Addr.String()); strings.Count(got, "-> 1") != 3 {
			t.Errorf("undrain prints %q", got)
		}
	})
}

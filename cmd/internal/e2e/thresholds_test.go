package e2e

import (
	"fmt"
	"net"
	"testing"

	"vstun/testdata/testkit"
)

// TestThresholds fills the preferred realserver to its upper threshold: the next connection goes to another realserver,
// until the preferred one has fewer connections than its lower threshold.
func TestThresholds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		thresholds   string
		upper, below int // it gets connections again with fewer than below
	}{
		{"lower", "upper = 2, lower = 1", 2, 1},
		{"same", "upper = 2, lower = 2", 2, 2},
		{"default", "upper = 4", 4, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 2, nil)
			s.startWith(fmt.Sprintf(`
connections = { timeouts = { tcp_fin = "1s" } }
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "fo"
realserver = [ { address = "10.0.11.2", weight = 10, %s }, { address = "10.0.12.2" } ]
`, c.thresholds))
			open := func() (net.Conn, string) { return s.whoAnswers(anyPort(s.Client.Addr), s.at(80)) }
			var held []net.Conn
			for n := range c.upper {
				conn, server := open()
				if server != "web1" {
					t.Fatalf("connection %d went to %s", n+1, server)
				}
				held = append(held, conn)
			}
			for left := c.upper; left >= c.below; left-- {
				if _, server := open(); server != "web2" {
					t.Errorf("with %d connections it gets another one", left)
				}
				held[left-1].Close()
				testkit.Within(t, fmt.Sprintf("the realserver has %d connections", left-1), soon, func() bool {
					r := s.director.balance().Services[0].Realservers[0]
					return r.Active+r.Inactive == left-1
				})
			}
			for left := c.below - 1; left < c.upper; left++ {
				if _, server := open(); server != "web1" {
					t.Errorf("with %d connections again it gets none", left)
				}
			}
			if _, server := open(); server != "web2" {
				t.Errorf("full again, it gets one")
			}
			if st := s.director.balance(); st.Services[0].Realservers[0].Upper != c.upper || len(st.Drops) != 0 {
				t.Errorf("status has upper %d and dropped %v, want %d and nothing", st.Services[0].Realservers[0].Upper,
					st.Drops, c.upper)
			}
		})
	}
}

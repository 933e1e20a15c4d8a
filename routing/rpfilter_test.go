package routing

import "testing"

// TestLoose makes devices take packets from addresses whose route leads elsewhere: only where they are strict, and as
// they were in the end.
func TestLoose(t *testing.T) {
	for _, c := range []struct{ all, east, during string }{
		{"1", "1", "2"}, {"1", "0", "2"}, {"0", "1", "2"}, {"0", "0", "0"}, {"2", "1", "1"}, {"2", "0", "0"},
		{"1", "2", "2"},
	} {
		newHost(t)
		setSysctl(t, "net/ipv4/conf/all/rp_filter", c.all)
		setSysctl(t, "net/ipv4/conf/east/rp_filter", c.east)
		before := machineState(t)
		m := open(t)
		s := State{Loose: []string{"east", "nowhere"}}
		for range 2 { // the second time it is ours
			must(t, m.Set(s))
			if got := sysctl(t, "net/ipv4/conf/east/rp_filter"); got != c.during {
				t.Errorf("all %s, east %s: it becomes %s, want %s", c.all, c.east, got, c.during)
			}
		}
		must(t, m.Set(State{}))
		sameState(t, before, machineState(t))
		must(t, m.Set(s))
		must(t, m.Close())
		sameState(t, before, machineState(t))
	}
}

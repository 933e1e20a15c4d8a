package routing

import "testing"

// TestLoose: strict filters of devices become loose, others stay, and all are restored.
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

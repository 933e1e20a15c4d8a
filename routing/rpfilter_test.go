package routing

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// TestLoose: strict filters of devices become loose, others stay, and all are restored.
func TestLoose(t *testing.T) {
	t.Parallel()
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

// rename renames a device. Older kernels do so only while it is down.
func rename(t *testing.T, from, to string) {
	t.Helper()
	must(t, netlink.LinkSetDown(linkOf(t, from)))
	must(t, netlink.LinkSetName(linkOf(t, from), to))
}

// TestLooseFollowsNames: the filter of a renamed device stays loose under the new name, and is restored there. Another
// device that has the old name now is left alone.
func TestLooseFollowsNames(t *testing.T) {
	t.Parallel()
	const newKey = "net/ipv4/conf/lan/rp_filter"
	for _, known := range []bool{false, true} {
		newHost(t)
		setSysctl(t, "net/ipv4/conf/east/rp_filter", "1")
		m := open(t)
		must(t, m.Set(State{Loose: []string{"east"}}))
		rename(t, "east", "lan")
		rename(t, "west", "east")
		setSysctl(t, "net/ipv4/conf/east/rp_filter", "2")
		if known {
			must(t, m.Set(State{Loose: []string{"lan"}}))
		}
		if got := sysctl(t, newKey); got != "2" {
			t.Errorf("known %v: it is %s after the renaming, want 2", known, got)
		}
		must(t, m.Close())
		if got := sysctl(t, newKey); got != "1" {
			t.Errorf("known %v: it is %s after the end, want 1", known, got)
		}
		if got := sysctl(t, "net/ipv4/conf/east/rp_filter"); got != "2" {
			t.Errorf("known %v: another device has %s, want 2", known, got)
		}
	}
}

// TestForwardingFollowsNames: a value that the kernel has rewritten is restored on a device that was renamed since.
func TestForwardingFollowsNames(t *testing.T) {
	t.Parallel()
	newHost(t)
	setSysctl(t, "net/ipv4/conf/east/forwarding", "1") // a new device has another value
	before := sysctl(t, "net/ipv4/conf/east/forwarding")
	m := open(t)
	must(t, m.Set(forward()))
	rename(t, "east", "lan")
	must(t, m.Close())
	if got := sysctl(t, "net/ipv4/conf/lan/forwarding"); got != before {
		t.Errorf("forwarding is %s after the end, want %s", got, before)
	}
}

package routing

import (
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func forward() State {
	return State{Sysctls: []Sysctl{{Key: "net/ipv4/ip_forward", Value: "1"}}}
}

// unevenForwarding sets what writing ip_forward would flatten.
func unevenForwarding(t *testing.T) {
	t.Helper()
	setSysctl(t, "net/ipv4/conf/east/forwarding", "1")
	setSysctl(t, "net/ipv4/conf/default/forwarding", "1")
	setSysctl(t, "net/ipv4/conf/all/accept_redirects", "0")
}

func TestForwardingIsRestoredForEachDevice(t *testing.T) {
	newHost(t)
	unevenForwarding(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forward()))
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/west/forwarding", "net/ipv4/conf/east/forwarding"} {
		if got := sysctl(t, key); got != "1" {
			t.Errorf("%s = %s", key, got)
		}
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestForwardingWithDevicesThatComeAndGo(t *testing.T) {
	newHost(t)
	unevenForwarding(t)
	m := open(t)
	must(t, m.Set(forward()))
	must(t, netlink.LinkDel(linkOf(t, "west"))) // and east with it
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("new1"), PeerName: "new2"}))
	setSysctl(t, "net/ipv4/conf/new2/forwarding", "0")
	must(t, m.Close())
	for key, want := range map[string]string{
		"net/ipv4/ip_forward":           "0",
		"net/ipv4/conf/lo/forwarding":   "0",
		"net/ipv4/conf/new1/forwarding": "1", // what conf/default would have given it without us
		"net/ipv4/conf/new2/forwarding": "0", // set by somebody since
	} {
		if got := sysctl(t, key); got != want {
			t.Errorf("%s = %s, want %s", key, got, want)
		}
	}
}

func TestForwardingAfterAnUndoThatWasKilled(t *testing.T) {
	newHost(t)
	unevenForwarding(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forward()))
	setSysctl(t, "net/ipv4/ip_forward", "0") // as the undo does first
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestForwardingThatIsOnIsNotTouched(t *testing.T) {
	newHost(t)
	setSysctl(t, "net/ipv4/ip_forward", "1")
	setSysctl(t, "net/ipv4/conf/east/forwarding", "0")
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forward()))
	sameState(t, before, machineState(t))
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// A value that is asked for after ip_forward is set after it, also if it is right before.
func TestSysctlOrder(t *testing.T) {
	newHost(t)
	before := machineState(t)
	m := open(t)
	s := forward()
	s.Sysctls = append(s.Sysctls, Sysctl{Key: "net/ipv4/conf/west/forwarding", Value: "0"},
		Sysctl{Key: "net/ipv4/conf/all/accept_redirects", Value: "1"})
	must(t, m.Set(s))
	if a, b := sysctl(t, "net/ipv4/conf/west/forwarding"), sysctl(t, "net/ipv4/conf/all/accept_redirects"); a != "0" || b != "1" {
		t.Errorf("west/forwarding = %s, want 0; all/accept_redirects = %s, want 1", a, b)
	}
	if n, err := m.mend(); n != 0 || err != nil {
		t.Errorf("mending made %d changes, %v", n, err)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestSysctlThatChangesItsMind(t *testing.T) {
	newHost(t)
	before := machineState(t)
	m := open(t)
	for _, v := range []string{"1", "2", "1"} {
		must(t, m.Set(State{Sysctls: []Sysctl{{Key: "net/ipv4/conf/all/arp_ignore", Value: v}}}))
		if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != v {
			t.Errorf("arp_ignore = %s, want %s", got, v)
		}
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestSysctlDefaultsReachDevices(t *testing.T) {
	newHost(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(State{Sysctls: []Sysctl{{Key: "net/ipv4/conf/default/rp_filter", Value: "2"}}}))
	if slices.Equal(before, machineState(t)) {
		t.Fatal("nothing changed")
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestSysctlSeveralNumbers(t *testing.T) {
	newHost(t)
	m := open(t)
	s := State{Sysctls: []Sysctl{{Key: "net/ipv4/ip_local_port_range", Value: "20000 30000"}}}
	old := sysctl(t, s.Sysctls[0].Key)
	must(t, m.Set(s))
	if n, err := m.mend(); n != 0 || err != nil {
		t.Errorf("mending made %d changes, %v", n, err)
	}
	must(t, m.Close())
	if got := sysctl(t, s.Sysctls[0].Key); got != old {
		t.Errorf("restored %q, want %q", got, old)
	}
}

func TestSysctlLink(t *testing.T) {
	for key, want := range map[string]string{
		"net/ipv4/conf/eth0.5/rp_filter":     "eth0.5",
		"net/ipv6/neigh/eth0/gc_stale_time":  "eth0",
		"net/ipv4/conf/all/rp_filter":        "",
		"net/ipv4/conf/default/rp_filter":    "",
		"net/ipv4/ip_forward":                "",
		"net/netfilter/nf_conntrack_max":     "",
		strings.Repeat("net/", 4) + "deeper": "",
	} {
		if got := sysctlLink(key); got != want {
			t.Errorf("device of %s: %q, want %q", key, got, want)
		}
	}
}

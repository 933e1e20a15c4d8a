package routing

import (
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func forward() State {
	return State{Sysctls: []Sysctl{{Key: "net/ipv4/ip_forward", Value: "1"}}}
}

// unevenForwarding sets values that a write of ip_forward would overwrite.
func unevenForwarding(t *testing.T) {
	t.Helper()
	setSysctl(t, "net/ipv4/conf/east/forwarding", "1")
	setSysctl(t, "net/ipv4/conf/default/forwarding", "1")
	setSysctl(t, "net/ipv4/conf/all/accept_redirects", "0")
}

func TestForwardingIsRestoredForEachDevice(t *testing.T) {
	t.Parallel()
	newHost(t)
	unevenForwarding(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forward()))
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/west/forwarding",
		"net/ipv4/conf/east/forwarding"} {
		if got := sysctl(t, key); got != "1" {
			t.Errorf("%s = %s", key, got)
		}
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestForwardingWithDevicesThatComeAndGo(t *testing.T) {
	t.Parallel()
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
		"net/ipv4/conf/new1/forwarding": "1", // the value that conf/default would have given it without us
		"net/ipv4/conf/new2/forwarding": "0", // set by another program since
	} {
		if got := sysctl(t, key); got != want {
			t.Errorf("%s = %s, want %s", key, got, want)
		}
	}
}

func TestForwardingAfterAnUndoThatWasKilled(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// A value that is asked for after ip_forward is set after it, even if it is right before.
func TestSysctlOrder(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	s := forward()
	s.Sysctls = append(s.Sysctls, Sysctl{Key: "net/ipv4/conf/west/forwarding", Value: "0"},
		Sysctl{Key: "net/ipv4/conf/all/accept_redirects", Value: "1"})
	must(t, m.Set(s))
	if a, b := sysctl(t, "net/ipv4/conf/west/forwarding"), sysctl(t, "net/ipv4/conf/all/accept_redirects"); a != "0" ||
		b != "1" {
		t.Errorf("west/forwarding = %s, want 0; all/accept_redirects = %s, want 1", a, b)
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

func TestSysctlThatChangesItsMind(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	newHost(t)
	m := open(t)
	s := State{Sysctls: []Sysctl{{Key: "net/ipv4/ip_local_port_range", Value: "20000 30000"}}}
	old := sysctl(t, s.Sysctls[0].Key)
	must(t, m.Set(s))
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
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

// TestReadOnlySysctls: if /proc/sys is read-only, the errors name values that can be set before the device exists.
// Presets lists the same values. With them, Set succeeds.
func TestReadOnlySysctls(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	newHost6(t)
	setSysctl(t, "net/ipv4/conf/all/rp_filter", "1")
	setSysctl(t, "net/ipv4/conf/vs0/rp_filter", "0") // as default, so far
	s := State{
		Links: []Link{{Name: "vs0", Up: true}},
		Loose: []string{"vs0", "east"},
		Sysctls: []Sysctl{
			{Key: "net/ipv6/conf/vs0/addr_gen_mode", Value: "1", Cosmetic: true},
			{Key: "net/ipv6/conf/vs0/accept_ra", Value: "0", Cosmetic: true},
			{Key: "net/ipv6/conf/vs0/disable_ipv6", Value: "0"},
			{Key: "net/ipv4/conf/vs0/no_such_thing", Value: "0", Optional: true},
			{Key: "net/ipv4/conf/all/arp_announce", Value: "2", AtLeast: true},
			{Key: "net/ipv4/ip_forward", Value: "1"},
			{Key: forwarding6, Value: "1"},
		},
	}
	want := []string{
		"net.ipv6.conf.default.disable_ipv6 = 0", "net.ipv4.conf.all.arp_announce = 2", "net.ipv4.ip_forward = 1",
		"net.ipv6.conf.east.accept_ra = 2", "net.ipv6.conf.west.accept_ra = 2", "net.ipv6.conf.all.forwarding = 1",
		"net.ipv4.conf.default.rp_filter = 2", "net.ipv4.conf.east.rp_filter = 2",
	}
	// vs0 exists already in this namespace. The list is about a future device.
	must(t, netlink.LinkDel(linkOf(t, "vs0")))
	var list []string
	for _, c := range Presets(s) {
		if !strings.Contains(c.Key, "/lo/") {
			list = append(list, c.String())
		}
	}
	slices.Sort(list)
	slices.Sort(want)
	if !slices.Equal(list, want) {
		t.Errorf("presets:\n%s\nwant:\n%s", strings.Join(list, "\n"), strings.Join(want, "\n"))
	}
	device := func() {
		must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs0"), Mode: netlink.TUNTAP_MODE_TUN}))
	}
	readOnly := func(flags uintptr) {
		must(t, unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""))
	}
	must(t, unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""))
	readOnly(unix.MS_RDONLY)
	device()
	m := open(t)
	err := m.Set(s)
	if err == nil {
		t.Fatal("no error")
	}
	for line := range strings.Lines(err.Error()) {
		if !slices.ContainsFunc(want, func(w string) bool {
			name, value, _ := strings.Cut(w, " = ")
			return strings.HasPrefix(line, "sysctl "+name+" is ") &&
				strings.Contains(line, "want "+value+", and can't be written: read-only file system")
		}) || strings.Contains(line, "vs0") {
			t.Errorf("error: %s", line)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != len(want) {
		t.Errorf("%d errors, want %d:\n%v", n, len(want), err)
	}
	must(t, netlink.LinkDel(linkOf(t, "vs0")))
	readOnly(0)
	for _, c := range Presets(s) {
		setSysctl(t, c.Key, c.Value)
	}
	readOnly(unix.MS_RDONLY)
	device()
	must(t, m.Set(s))
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	if got := sysctl(t, "net/ipv6/conf/vs0/addr_gen_mode"); got == "1" {
		t.Error("addr_gen_mode is as wanted: the test does not test cosmetic sysctls")
	}
}

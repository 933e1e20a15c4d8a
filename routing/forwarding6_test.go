package routing

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/query"
	"vstun/testdata/testkit"
)

func forwardIPv6() State {
	return State{Sysctls: []Sysctl{{Key: "net/ipv6/conf/vs0/accept_ra", Value: "0"}, {Key: forwarding6, Value: "1"}}}
}

// newHost6 is newHost with IPv6 on its two network devices, without addresses.
func newHost6(t *testing.T) {
	t.Helper()
	newHost(t)
	if !query.HasIPv6() {
		t.Skip("no IPv6 in this kernel")
	}
	for _, device := range []string{"east", "west"} {
		setSysctl(t, "net/ipv6/conf/"+device+"/addr_gen_mode", "1")
		setSysctl(t, "net/ipv6/conf/"+device+"/disable_ipv6", "0")
	}
}

// advertise makes east receive an advertisement of a router with a lifetime of half an hour (RFC 4861, section 4.2).
func advertise(t *testing.T) {
	t.Helper()
	advertiseRouter(t, netip.MustParseAddr("fe80::1234"), 1800, 0)
}

// advertiseRouter does so for a router with an address, a lifetime in seconds, and a preference in the flags (RFC 4191,
// section 2.2).
func advertiseRouter(t *testing.T, from netip.Addr, lifetime uint16, flags byte) {
	t.Helper()
	b := make([]byte, 40+16)
	binary.BigEndian.PutUint32(b, 6<<28)
	b[5], b[6], b[7] = 16, unix.IPPROTO_ICMPV6, 255
	copy(b[8:], from.AsSlice())
	copy(b[24:], netip.MustParseAddr("ff02::1").AsSlice())
	b[40], b[44], b[45] = 134, 64, flags
	binary.BigEndian.PutUint16(b[46:], lifetime)
	sum := uint32(16 + unix.IPPROTO_ICMPV6)
	for i := 8; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[42:], ^uint16(sum+sum>>16))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Protocol: 0xdd86, Ifindex: linkOf(t, "west").Attrs().Index,
		Halen: 6, Addr: [8]byte{0x33, 0x33, 0, 0, 0, 1}}))
}

func hasRouter(t *testing.T) bool {
	t.Helper()
	r := routeIn(t, unix.RT_TABLE_MAIN, "::/0")
	return r != nil && r.Gw.String() == "fe80::1234"
}

// TestForwardingKeepsRouters: a host whose default route comes from router advertisements keeps it while it forwards,
// and still takes advertisements.
func TestForwardingKeepsRouters(t *testing.T) {
	t.Parallel()
	newHost6(t)
	advertise(t)
	testkit.Eventually(t, "the router is known", func() bool { return hasRouter(t) })
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forwardIPv6()))
	if sysctl(t, forwarding6) != "1" || !hasRouter(t) {
		t.Errorf("forwarding %s, router known: %v", sysctl(t, forwarding6), hasRouter(t))
	}
	must(t, netlink.RouteDel(routeIn(t, unix.RT_TABLE_MAIN, "::/0")))
	advertise(t)
	testkit.Eventually(t, "the router is known again", func() bool { return hasRouter(t) })
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestForwarding6IsRestoredForEachDevice: each device gets its former value, even if others came or went meanwhile.
func TestForwarding6IsRestoredForEachDevice(t *testing.T) {
	t.Parallel()
	newHost6(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("router"), PeerName: "deaf"}))
	setSysctl(t, "net/ipv6/conf/router/forwarding", "1")
	setSysctl(t, "net/ipv6/conf/deaf/accept_ra", "0")
	setSysctl(t, "net/ipv6/conf/west/accept_ra", "2")
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forwardIPv6()))
	for device, want := range map[string]string{"east": "2", "west": "2", "deaf": "0", "router": "1", "vs0": "0",
		"lo": "1"} {
		if got := sysctl(t, "net/ipv6/conf/"+device+"/accept_ra"); got != want {
			t.Errorf("%s: accept_ra is %s, want %s", device, got, want)
		}
		if got := sysctl(t, "net/ipv6/conf/"+device+"/forwarding"); got != "1" {
			t.Errorf("%s: forwarding is %s", device, got)
		}
	}
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("new"), PeerName: "newer"}))
	_, err := m.passAgain()
	must(t, err)
	if got := sysctl(t, "net/ipv6/conf/new/accept_ra"); got != "2" {
		t.Errorf("a device that has come: accept_ra is %s", got)
	}
	must(t, m.Set(State{})) // as a reload without IPv6 does
	for key, want := range map[string]string{"accept_ra": "1", "forwarding": "0"} {
		if got := sysctl(t, "net/ipv6/conf/new/"+key); got != want {
			t.Errorf("a device that has come: %s is %s", key, got)
		}
	}
	must(t, netlink.LinkDel(linkOf(t, "new")))
	sameState(t, before, machineState(t))
	must(t, m.Set(forwardIPv6()))
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestForwarding6ThatIsOnIsNotTouched: a host that forwards already keeps its values of accept_ra.
func TestForwarding6ThatIsOnIsNotTouched(t *testing.T) {
	t.Parallel()
	newHost6(t)
	setSysctl(t, forwarding6, "1")
	setSysctl(t, "net/ipv6/conf/east/forwarding", "0")
	setSysctl(t, "net/ipv6/conf/vs0/accept_ra", "0")
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forwardIPv6()))
	sameState(t, before, machineState(t))
	must(t, m.Close())
	sameState(t, before, machineState(t))
}

// TestForwarding6AfterAKill: the next start restores all values from the journal.
func TestForwarding6AfterAKill(t *testing.T) {
	t.Parallel()
	newHost6(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(forwardIPv6()))
	if slices.Equal(before, machineState(t)) {
		t.Fatal("nothing changed")
	}
	m.lock.release() // as by a kill: nothing is undone
	next, err := Open(m.path, nil)
	must(t, err)
	sameState(t, before, machineState(t))
	must(t, next.Close())
}

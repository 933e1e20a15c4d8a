package routing

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestLookup(t *testing.T) {
	newHost(t)
	addr := netip.MustParseAddr
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.Src = unix.AF_INET, 100, 77, cidr("10.2.0.1/32")
	must(t, netlink.RuleAdd(rule))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.2.0.253"), Table: 77,
		AdvMSS: 1234}))
	for _, c := range []struct {
		dst, from netip.Addr
		want      Hop
		ok        bool
	}{
		{addr("8.8.8.8"), netip.Addr{}, Hop{Link: "east", Gateway: addr("10.1.0.254"), Source: addr("10.1.0.1"),
			Table: unix.RT_TABLE_MAIN}, true},
		{addr("8.8.8.8"), addr("10.2.0.1"), Hop{Link: "west", Gateway: addr("10.2.0.253"), Table: 77, AdvMSS: 1234},
			true},
		{addr("10.1.0.77"), netip.Addr{}, Hop{Link: "east", Source: addr("10.1.0.1"), Table: unix.RT_TABLE_MAIN}, true},
		{addr("10.1.0.1"), netip.Addr{}, Hop{Link: "lo", Local: true, Source: addr("10.1.0.1"),
			Table: unix.RT_TABLE_LOCAL}, true},
		{addr("172.19.0.1"), netip.Addr{}, Hop{}, false}, // a blackhole
		{addr("2001:db8::1"), netip.Addr{}, Hop{}, false},
		{addr("8.8.8.8"), addr("192.0.2.1"), Hop{}, false}, // nobody's address
	} {
		got, ok, err := Lookup(c.dst, c.from)
		if got != c.want || ok != c.ok || err != nil {
			t.Errorf("%s from %s: %+v, %v, %v; want %+v, %v", c.dst, c.from, got, ok, err, c.want, c.ok)
		}
	}
}

func TestDevices(t *testing.T) {
	newHost(t)
	all, err := Devices()
	must(t, err)
	at := func(name string) Device {
		return all[slices.IndexFunc(all, func(d Device) bool { return d.Name == name })]
	}
	if d := at("east"); !d.Up || d.Loopback || !slices.Contains(d.Addrs, netip.MustParsePrefix("10.1.0.1/24")) ||
		d.Index != linkOf(t, "east").Attrs().Index {
		t.Errorf("%+v", d)
	}
	if d := at("vs0"); d.Up || len(d.Addrs) > 0 {
		t.Errorf("%+v", d)
	}
	if d := at("lo"); !d.Loopback {
		t.Errorf("%+v", d)
	}
}

// Proxy ARP is that of a device for all that it routes elsewhere, or for one address.
func TestAnswersFor(t *testing.T) {
	newHost(t)
	a, other := netip.MustParseAddr("10.1.0.80"), netip.MustParseAddr("10.1.0.81")
	answers := func(link string, a netip.Addr, want bool) {
		t.Helper()
		if got, err := AnswersFor(link, a); got != want || err != nil {
			t.Errorf("%s for %s: %v, %v", link, a, got, err)
		}
	}
	answers("east", a, false)
	must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: linkOf(t, "east").Attrs().Index, Family: unix.AF_INET,
		Flags: netlink.NTF_PROXY, IP: a.AsSlice()}))
	answers("east", a, true)
	answers("east", other, false)
	answers("west", a, false)
	must(t, writeSysctl("net/ipv4/conf/west/proxy_arp", "1"))
	answers("west", a, true)
	answers("nosuch", a, false)
}

// Both ends of the pair are of this host: each answers for the addresses of the other, and for none that nobody has.
func TestWhoHas(t *testing.T) {
	newHost(t)
	from := netip.MustParseAddr("10.1.0.1")
	// A host does not take what claims to come from an address of its own for another's: west is asked in nobody's
	// name.
	asked := netip.MustParseAddr("10.1.0.9")
	for _, c := range []struct {
		link, addr string
		want       string
	}{{"east", "10.2.0.1", "west"}, {"east", "10.1.0.77", ""}, {"vs0", "10.2.0.1", ""}, {"lo", "10.2.0.1", ""}} {
		must(t, writeSysctl("net/ipv4/conf/all/rp_filter", "0"))
		must(t, writeSysctl("net/ipv4/conf/west/rp_filter", "0"))
		got, err := WhoHas(c.link, netip.MustParseAddr(c.addr), asked, 300*time.Millisecond)
		must(t, err)
		if len(got) > 1 || (len(got) == 1) != (c.want != "") || len(got) == 1 && got[0].String() != linkOf(t,
			c.want).Attrs().HardwareAddr.String() {
			t.Errorf("by %s, who has %s: %v, want %s", c.link, c.addr, got, c.want)
		}
	}
	if _, err := WhoHas("nosuch", from, from, time.Millisecond); err == nil || errors.Is(err, unix.EPERM) {
		t.Errorf("by a device that is not there: %v", err)
	}
}

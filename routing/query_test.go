package routing

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestLinkExists(t *testing.T) {
	newHost(t)
	for name, want := range map[string]bool{"east": true, "vs0": true, "nosuch": false} {
		if got, err := LinkExists(name); got != want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

func TestLocalAddr(t *testing.T) {
	newHost(t)
	for addr, want := range map[string]string{
		"10.1.0.1":        "east",
		"::ffff:10.2.0.1": "west",
		"127.0.0.5":       "lo", // by the local route, not an address
		"10.1.0.9":        "",
		"198.51.100.80":   "",
		"172.19.0.1":      "", // a blackhole
	} {
		link, ok, err := LocalAddr(netip.MustParseAddr(addr))
		if link != want || ok != (want != "") || err != nil {
			t.Errorf("%s: %q, %t, %v; want %q", addr, link, ok, err, want)
		}
	}
}

func TestPathTo(t *testing.T) {
	newHost(t)
	must(t, netlink.LinkSetMTU(linkOf(t, "west"), 1400))
	addr := netip.MustParseAddr
	for dst, want := range map[string]Path{
		"10.1.0.77":  {addr("10.1.0.1"), 1500, "east"},
		"10.2.0.77":  {addr("10.2.0.1"), 1400, "west"},
		"172.16.0.1": {addr("10.2.0.1"), 1300, "east"},
		"8.8.8.8":    {addr("10.1.0.1"), 1500, "east"},
		"10.2.0.1":   {addr("10.2.0.1"), 65536, "lo"},
	} {
		if got, err := PathTo(addr(dst)); got != want || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", dst, got, err, want)
		}
	}
	for _, dst := range []string{"172.19.0.1", "172.20.0.1", "2001:db8::1"} {
		if got, err := PathTo(addr(dst)); err == nil {
			t.Errorf("%s: %+v, want an error", dst, got)
		}
	}
}

func TestKernelTunnels(t *testing.T) {
	newHost(t)
	got, err := KernelTunnels()
	if err != nil {
		t.Fatal(err)
	}
	for _, tun := range got {
		if tun.Name == "vs0" || tun.Name == "east" || tun.Up {
			t.Errorf("not a tunnel of the kernel: %+v", tun)
		}
	}
	for _, c := range []struct {
		link netlink.Link
		want bool
	}{
		{&netlink.Iptun{Proto: 4}, true},
		{&netlink.Iptun{}, true},
		{&netlink.Iptun{Proto: 137}, false}, // mplsip
		{&netlink.Sittun{Proto: 4}, true},
		{&netlink.Sittun{}, true},
		{&netlink.Sittun{Proto: 41}, false}, // ip6ip, the default
		{&netlink.Tuntap{}, false},
		{&netlink.Gretun{}, false},
	} {
		if got := takesIPIP(c.link); got != c.want {
			t.Errorf("%T %+v: %t, want %t", c.link, c.link, got, c.want)
		}
	}
}

package query

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestKernelTunnels(t *testing.T) {
	newHost(t)
	got, err := KernelTunnels()
	must(t, err)
	for _, tun := range got {
		if tun.Name == "vs0" || tun.Name == "east" || tun.Up || len(tun.Protocols) == 0 || tun.Module == "" ||
			!tun.Takes(tun.Protocols[0], tun.Over6) || tun.Takes(tun.Protocols[0], !tun.Over6) {
			t.Errorf("not a tunnel of the kernel: %+v", tun)
		}
	}
}

func TestTunnelOf(t *testing.T) {
	up := netlink.LinkAttrs{Flags: net.FlagUp}
	v4, v6 := net.IPv4zero.To4(), net.IPv6zero
	for _, c := range []struct {
		link  netlink.Link
		over6 bool
		want  []uint8
	}{
		{&netlink.Iptun{Proto: 4}, false, []uint8{4}},
		{&netlink.Iptun{}, false, []uint8{4}},
		{&netlink.Iptun{Proto: 137}, false, nil}, // mplsip
		{&netlink.Sittun{Proto: 4}, false, []uint8{4}},
		{&netlink.Sittun{}, false, []uint8{4, 41}},
		{&netlink.Sittun{Proto: 41}, false, []uint8{41}}, // ip6ip, the default
		{&netlink.Ip6tnl{}, true, []uint8{4, 41}},
		{&netlink.Ip6tnl{Proto: 4}, true, []uint8{4}},
		{&netlink.Gretun{Local: v4}, false, []uint8{47}},
		{&netlink.Gretun{Local: v6}, true, []uint8{47}},
		{&netlink.Gretap{Local: v4}, false, []uint8{47}},
		{&netlink.Tuntap{}, false, nil},
	} {
		if got := tunnelOf(c.link); !slices.Equal(got.Protocols, c.want) || got.Over6 != c.over6 || got.Up {
			t.Errorf("%T %+v: %+v", c.link, c.link, got)
		}
	}
	director, six := net.ParseIP("10.0.0.1"), net.ParseIP("2001:db8::1")
	for _, c := range []struct {
		link netlink.Link
		want string
	}{
		{&netlink.Iptun{}, "invalid IP"}, {&netlink.Iptun{Remote: v4}, "invalid IP"}, {&netlink.Ip6tnl{Remote: v6},
			"invalid IP"},
		{&netlink.Iptun{Remote: director}, "10.0.0.1"}, {&netlink.Gretun{Remote: director.To4()}, "10.0.0.1"},
		{&netlink.Ip6tnl{Remote: six}, "2001:db8::1"},
	} {
		if got := tunnelOf(c.link).Remote; got.String() != c.want {
			t.Errorf("%+v takes packets of %v, want %s", c.link, got, c.want)
		}
	}
	if !tunnelOf(&netlink.Ip6tnl{LinkAttrs: up}).Up {
		t.Error("a device that is up is down")
	}
}

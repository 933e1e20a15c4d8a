package wire

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// TestAnswerSender: packets are routed by their source, of either family, also beside each other in one call; the path
// MTU is that of such a route.
func TestAnswerSender(t *testing.T) {
	inNamespace(t, func() {
		quiet(t)
		s, err := NewAnswerSender()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		all := map[string]string{"198.51.100.80": "192.0.2.9", "2001:db8::80": "2001:db8:9::9"}
		for _, name := range []string{"plain", "chosen"} {
			must := func(err error) {
				if err != nil {
					t.Fatal(err)
				}
			}
			peer := name + "-peer"
			must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name,
				MTU: map[string]int{"plain": 1500, "chosen": 1400}[name]}, PeerName: peer}))
			link, err := netlink.LinkByName(name)
			must(err)
			other, err := netlink.LinkByName(peer)
			must(err)
			must(errors.Join(netlink.LinkSetARPOff(link), netlink.LinkSetUp(link), netlink.LinkSetUp(other)))
			testkit.Eventually(t, "carrier, without which the kernel drops packets", func() bool {
				now, err := netlink.LinkByName(name)
				return err == nil && now.Attrs().OperState == netlink.OperUp
			})
			for src := range all {
				a := netip.MustParseAddr(src)
				everywhere := &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
				route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Scope: unix.RT_SCOPE_LINK}
				if name == "plain" {
					must(netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(),
						Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}))
				} else {
					route.Table = 77
					rule := netlink.NewRule()
					rule.Table, rule.Priority, rule.Src = 77, 77, &net.IPNet{IP: a.AsSlice(),
						Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
					must(netlink.RuleAdd(rule))
				}
				must(netlink.RouteAdd(route))
			}
		}
		next := capture(t, "chosen-peer")
		var segs []egress.Outgoing
		for src, dst := range all {
			a, b := netip.MustParseAddr(src), netip.MustParseAddr(dst)
			p := make([]byte, 100)
			if a.Is4() {
				packet.IPv4(p).Encode(packet.IPv4Fields{
					TotalLen: len(p), TTL: 64, Protocol: packet.ProtoUDP, Src: a.As4(), Dst: b.As4(),
				})
			} else {
				packet.IPv6(p).Encode(packet.IPv6Fields{
					TotalLen: len(p), HopLimit: 64, NextHeader: packet.ProtoUDP, Src: a.As16(), Dst: b.As16(),
				})
			}
			segs = append(segs, split(p, 50), egress.Packet(p))
			if mtu, err := s.PathMTU(a, b); mtu != 1400 || err != nil {
				t.Errorf("path MTU from %v: %d, %v", a, mtu, err)
			}
		}
		if errs := sendAll(t, s, segs); len(errs) > 0 {
			t.Fatal(errs)
		}
		for range segs {
			got := next()
			for got[0]>>4 == 6 && packet.IPv6(got).NextHeader() != packet.ProtoUDP { // the kernel's own
				got = next()
			}
			if len(got) != 100 {
				t.Errorf("%d bytes: %x", len(got), got)
			}
		}
	})
}

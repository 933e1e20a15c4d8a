package query

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// Tunnel is a kernel device that takes tunnel packets off the wire.
type Tunnel struct {
	Name      string
	Up        bool
	Remote    netip.Addr // the outer source of the packets that it takes; the zero Addr: any
	Over6     bool       // IPv6 packets, else IPv4
	Protocols []uint8    // IP protocols: 4 (RFC 2003), 41 (RFC 4213), 47 (GRE)
	Module    string     // the driver's name
}

// Takes reports whether t takes packets of an IP protocol off the wire, over IPv6 or over IPv4.
func (t *Tunnel) Takes(protocol uint8, over6 bool) bool {
	return t.Over6 == over6 && slices.Contains(t.Protocols, protocol)
}

// KernelTunnels lists the kernel's tunnel devices that take packets of one of the IP protocols 4, 41 and 47 off the
// wire. A device that is up takes a copy of each packet that a raw socket gets. Even if the device is down, the kernel
// answers packets that fit no tunnel with ICMP port unreachable (tunnel4_rcv in net/ipv4/tunnel4.c, tunnel6_rcv in
// net/ipv6/tunnel6.c, gre_rcv in net/ipv4/ip_gre.c).
func KernelTunnels() ([]Tunnel, error) {
	return ask(func(h *netlink.Handle) (found []Tunnel, err error) {
		links, err := kernel.Links(h)
		for _, l := range links {
			if t := tunnelOf(l); len(t.Protocols) > 0 {
				found = append(found, t)
			}
		}
		return found, err
	})
}

// tunnelOf returns l as a tunnel. If l is another device, Protocols is empty.
func tunnelOf(l netlink.Link) Tunnel {
	t := Tunnel{Name: l.Attrs().Name}
	var remote net.IP
	mode := uint8(unix.IPPROTO_IP) // of devices with modes: one protocol, or 0 for any
	switch l := l.(type) {
	case *netlink.Iptun:
		t.Module, t.Protocols, mode, remote = "ipip", []uint8{unix.IPPROTO_IPIP}, l.Proto, l.Remote
	case *netlink.Sittun:
		t.Module, t.Protocols, mode, remote = "sit", []uint8{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6}, l.Proto, l.Remote
	case *netlink.Ip6tnl:
		t.Module, t.Protocols, mode, remote = "ip6_tunnel", []uint8{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6}, l.Proto,
			l.Remote
		t.Over6 = true
	case *netlink.Gretun:
		t.Module, t.Protocols, remote = "ip_gre", []uint8{unix.IPPROTO_GRE}, l.Remote
		t.Over6 = l.Type() == "ip6gre"
	case *netlink.Gretap:
		t.Module, t.Protocols, remote = "ip_gre", []uint8{unix.IPPROTO_GRE}, l.Remote
		t.Over6 = l.Type() == "ip6gretap"
	}
	if mode != 0 {
		t.Protocols = slices.DeleteFunc(t.Protocols, func(p uint8) bool { return p != mode })
	}
	if t.Over6 && t.Module == "ip_gre" {
		t.Module = "ip6_gre"
	}
	t.Up = kernel.IsUp(l)
	if a, ok := netip.AddrFromSlice(remote); ok && !a.IsUnspecified() {
		t.Remote = a.Unmap()
	}
	return t
}

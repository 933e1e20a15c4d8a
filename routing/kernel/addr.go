package kernel

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Family returns the address family of a: AF_INET or AF_INET6.
func Family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// IPNet returns p in netlink's form.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// HostPrefix returns the prefix that contains a alone.
func HostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// PrefixOf is the reverse of IPNet. It returns the zero Prefix for nil.
func PrefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, size := n.Mask.Size()
	if a.Is4In6() && size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}

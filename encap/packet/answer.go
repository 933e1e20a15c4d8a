package packet

import (
	"net/netip"

	"vstun/encap/packet/drop"
)

// MayAnswer reports whether an ICMP error may be sent about the packet in b, which may be any bytes. RFC 1122, section
// 3.2.2, and RFC 4443, section 2.4 (e), forbid errors about an ICMP error, about a fragment other than the first, to a
// source that is not a single host, and about a packet to several hosts. MayAnswer refuses an incomplete packet, too.
// The caller limits the rate.
func MayAnswer(b []byte) bool {
	if Version(b) == 6 {
		return mayAnswer6(b)
	}
	h := IPv4(b)
	if h.Check() != drop.Accept || h.FragOffset() != 0 || !oneHost(h.Src()) || !oneHost(h.Dst()) {
		return false
	}
	return h.Protocol() != ProtoICMP || icmpQuery(h.Payload())
}

func mayAnswer6(h IPv6) bool {
	t, d := h.parse()
	if d != drop.Accept || t.FragOffset > 0 || !oneHost(h.Src()) || !oneHost(h.Dst()) {
		return false
	}
	if t.Proto != ProtoICMPv6 {
		return true
	}
	m := ICMP(h[t.Offset:h.TotalLen()])
	return len(m) > 0 && m.Type() >= ICMPv6Echo && m.Type() != icmp6Redirect
}

// OneToOne reports whether f is between two addresses that can belong to one host each. Other flows get no answers.
func (f *Flow) OneToOne() bool { return oneHost(f.Src) && oneHost(f.Dst) }

// oneHost reports whether a can be the address of one host on a network: no multicast, limited broadcast, loopback or
// unspecified address, and nothing of IPv4's 0/8 and 240/4.
func oneHost(a netip.Addr) bool {
	if a.Is4() {
		first := a.As4()[0]
		return first != 0 && first != 127 && first < 224
	}
	return !a.IsMulticast() && !a.IsLoopback() && !a.IsUnspecified()
}

// icmpQuery reports whether the ICMP message t is a request or an answer to one; unknown types count as errors, as in
// Linux (net/ipv4/icmp.c, icmp_pointers).
func icmpQuery(t []byte) bool {
	if len(t) == 0 {
		return false
	}
	switch ICMP(t).Type() {
	case ICMPEchoReply, ICMPEcho, 13, 14, 15, 16, 17,
		18: // timestamp, information and address mask, each with its answer
		return true
	}
	return false
}

package packet

import (
	"net/netip"

	"vstun/encap/packet/drop"
)

// ICMPv6 types and codes (RFC 4443). Types below 128 are errors.
const (
	ICMPv6Unreachable  = 1
	ICMPv6TooBig       = 2
	ICMPv6TimeExceeded = 3
	ICMPv6ParamProblem = 4
	ICMPv6Echo         = 128
	ICMPv6EchoReply    = 129

	ICMPv6CodeAddress = 3
	ICMPv6CodePort    = 4

	icmp6RouterSolicitation = 133 // the first type of neighbour discovery: RFC 4861, section 4
	icmp6Redirect           = 137 // the last one

	icmp6MaxLen = 1280 // of an ICMPv6 error in all: IPv6's smallest MTU, RFC 4443, section 2.4 (c)
)

// PacketTooBig writes the ICMPError "packet too big" about the IPv6 packet b, with the path MTU mtu in bytes (RFC 4443,
// section 3.2).
func PacketTooBig(dst, b []byte, from netip.Addr, mtu int) int {
	return ICMPError(dst, b, from, ICMPFields{Type: ICMPv6TooBig, Rest: uint32(mtu)})
}

// NeighbourDiscovery reports whether the packet in b, of either family, is a message of neighbour discovery (RFC 4861).
// p is the result of parsing b.
func NeighbourDiscovery(b []byte, p *Info) bool {
	if p.Flow.Proto != ProtoICMPv6 || p.Offset >= p.Len {
		return false
	}
	t := ICMP(b[p.Offset:p.Len]).Type()
	return t >= icmp6RouterSolicitation && t <= icmp6Redirect
}

// echoReply6 is EchoReply for IPv6. A request with extension headers is refused: its answer would be a shorter packet.
func echoReply6(b []byte) drop.Reason {
	h := IPv6(b)
	t := ICMP(b[IPv6HeaderLen:h.TotalLen()])
	if h.NextHeader() != ProtoICMPv6 || t.Type() != ICMPv6Echo || t.Code() != 0 {
		return drop.ICMP
	}
	pseudo := h.PseudoSum(ProtoICMPv6, len(t))
	if Fold(Sum(t, pseudo)) != 0xffff {
		return drop.BadChecksum
	}
	t.SetType(ICMPv6EchoReply)
	t.SetChecksum(pseudo) // swapping the addresses does not change the sum
	var src [16]byte
	copy(src[:], h[8:24])
	copy(h[8:24], h[24:40])
	copy(h[24:40], src[:])
	h[1], h[2], h[3] = h[1]&0xf0, 0, 0 // no flow label
	h.SetHopLimit(ownTTL)
	return drop.Accept
}

// icmpError6 is ICMPError for IPv6.
func icmpError6(dst, b []byte, from netip.Addr, f ICMPFields) int {
	about := IPv6(b)
	quote := b[:min(len(b), about.TotalLen(), icmp6MaxLen-IPv6HeaderLen-ICMPHeaderLen)]
	n := IPv6HeaderLen + ICMPHeaderLen + len(quote)
	h := IPv6(dst[:n])
	h.Encode(IPv6Fields{
		TotalLen: n, HopLimit: ownTTL, NextHeader: ProtoICMPv6, Src: from.As16(), Dst: about.Src().As16(),
	})
	t := ICMP(h[IPv6HeaderLen:])
	t.Encode(f)
	copy(t.Payload(), quote)
	t.SetChecksum(h.PseudoSum(ProtoICMPv6, len(t)))
	return n
}

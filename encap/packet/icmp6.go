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

	ICMPv6CodePort = 4

	icmp6Redirect = 137  // RFC 4861, section 4.5
	icmp6MaxLen   = 1280 // of an ICMPv6 error in all: IPv6's smallest MTU, RFC 4443, section 2.4 (c)
)

// PacketTooBig is the ICMPError (RFC 4443, section 3.2) that tells the sender of the IPv6 packet b that what leads on
// takes packets of at most mtu bytes.
func PacketTooBig(dst, b []byte, from netip.Addr, mtu int) int {
	return ICMPError(dst, b, from, ICMPv6TooBig, 0, uint32(mtu))
}

// echoReply6 is EchoReply for IPv6. A request with extension headers is refused: its answer would be a shorter packet.
func echoReply6(b []byte) drop.Reason {
	h := IPv6(b)
	t := b[IPv6HeaderLen:h.TotalLen()]
	if h.NextHeader() != ProtoICMPv6 || t[0] != ICMPv6Echo || t[1] != 0 {
		return drop.ICMP
	}
	pseudo := h.PseudoSum(ProtoICMPv6, len(t))
	if Fold(Sum(t, pseudo)) != 0xffff {
		return drop.BadChecksum
	}
	t[0] = ICMPv6EchoReply
	t[2], t[3] = 0, 0
	PutChecksum(t[2:], Sum(t, pseudo), false) // the addresses change places, and their sum stays
	var src [16]byte
	copy(src[:], h[8:24])
	copy(h[8:24], h[24:40])
	copy(h[24:40], src[:])
	h[1], h[2], h[3] = h[1]&0xf0, 0, 0 // a flow label of ours: none
	h[7] = ownTTL
	return drop.Accept
}

// icmpError6 is ICMPError for IPv6.
func icmpError6(dst, b []byte, from netip.Addr, kind, code uint8, rest uint32) int {
	quote := b[:min(len(b), IPv6(b).TotalLen(), icmp6MaxLen-IPv6HeaderLen-icmpHeaderLen)]
	n := IPv6HeaderLen + icmpHeaderLen + len(quote)
	h := IPv6(dst[:n])
	PutIPv6(h, 0, n, ownTTL, ProtoICMPv6, from.As16(), IPv6(b).Src().As16())
	t := h[IPv6HeaderLen:]
	putICMP(t, kind, code, rest, quote)
	PutChecksum(t[2:], Sum(t, h.PseudoSum(ProtoICMPv6, len(t))), false)
	return n
}

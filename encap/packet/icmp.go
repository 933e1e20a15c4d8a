package packet

import (
	"encoding/binary"
	"net/netip"

	"vstun/encap/packet/drop"
)

// ICMP types and codes (RFC 792).
const (
	ICMPEchoReply    = 0
	ICMPUnreachable  = 3
	ICMPSourceQuench = 4
	ICMPEcho         = 8
	ICMPTimeExceeded = 11

	ICMPCodePort       = 3
	ICMPCodeFragNeeded = 4

	icmpHeaderLen = 8
	icmpMaxLen    = 576  // of an ICMP error in all, RFC 1812, section 4.3.2.3
	icmpErrorTOS  = 0xc0 // precedence "internetwork control", RFC 1812, section 4.3.2.5 …
	icmpKeepTOS   = 0x1e // … and of the packet's TOS what is no precedence (Linux net/ipv4/icmp.c, __icmp_send)
	ownTTL        = 64   // RFC 1700; packets that we begin ourselves
)

// ICMPRoom is the length of the longest ICMP error that is made here, in bytes.
const ICMPRoom = icmp6MaxLen

// EchoReply turns the ICMP echo request in b, a packet of either family that Parse has accepted, into its answer (RFC
// 792, page 14; RFC 4443, section 4.2), in place. It returns drop.BadChecksum for a request that was damaged, drop.ICMP
// for any other ICMP message.
func EchoReply(b []byte) drop.Reason {
	if b[0]>>4 == 6 {
		return echoReply6(b)
	}
	h := IPv4(b)
	t := h.Payload()
	if t[0] != ICMPEcho || t[1] != 0 {
		return drop.ICMP
	}
	if Checksum(t) != 0 {
		return drop.BadChecksum
	}
	t[0] = ICMPEchoReply
	t[2], t[3] = 0, 0
	binary.BigEndian.PutUint16(t[2:], Checksum(t))
	var src [4]byte
	copy(src[:], h[12:16])
	copy(h[12:16], h[16:20])
	copy(h[16:20], src[:])
	h[4], h[5], h[6], h[7] = 0, 0, 0, 0 // the kernel gives it an ID
	h[8] = ownTTL
	h.SetChecksum()
	return drop.Accept
}

// EchoFlow is the flow of the ICMP echo request in b, of either family, p its headers: as a port of its source it has
// its identifier. It is false for any other message.
func EchoFlow(b []byte, p *Info) (Flow, bool) {
	t := b[p.Offset:p.Len]
	if p.Flow.Proto == ProtoICMP && t[0] != ICMPEcho || p.Flow.Proto == ProtoICMPv6 && t[0] != ICMPv6Echo {
		return Flow{}, false
	}
	f := p.Flow
	f.SrcPort = binary.BigEndian.Uint16(t[4:])
	return f, true
}

// ICMPError writes into dst, of at least ICMPRoom bytes, an ICMP error about the packet b to its sender, with as much
// of b as it may quote. b is a checked packet of either family, for which MayAnswer says true, or the front of one that
// QuotedPacket has read; kind, code and the four bytes called rest are of its family's ICMP, and from is the error's
// source. It returns the error's length in bytes.
func ICMPError(dst, b []byte, from netip.Addr, kind, code uint8, rest uint32) int {
	if b[0]>>4 == 6 {
		return icmpError6(dst, b, from, kind, code, rest)
	}
	quote := b[:min(len(b), IPv4(b).TotalLen(), icmpMaxLen-IPv4HeaderLen-icmpHeaderLen)]
	n := IPv4HeaderLen + icmpHeaderLen + len(quote)
	h, to := IPv4(dst[:n]), IPv4(b).Src().As4()
	PutIPv4(h, icmpErrorTOS|b[1]&icmpKeepTOS, n, ownTTL, ProtoICMP, from.As4(), to)
	t := h[IPv4HeaderLen:]
	putICMP(t, kind, code, rest, quote)
	binary.BigEndian.PutUint16(t[2:], Checksum(t))
	return n
}

// putICMP writes an ICMP error to t, of either family, with 0 as checksum.
func putICMP(t []byte, kind, code uint8, rest uint32, quote []byte) {
	t[0], t[1], t[2], t[3] = kind, code, 0, 0
	binary.BigEndian.PutUint32(t[4:], rest)
	copy(t[icmpHeaderLen:], quote)
}

// FragmentationNeeded is the ICMPError (RFC 1191, section 4) that tells the sender of the IPv4 packet b that what leads
// on takes packets of at most mtu bytes.
func FragmentationNeeded(dst, b []byte, from netip.Addr, mtu int) int {
	return ICMPError(dst, b, from, ICMPUnreachable, ICMPCodeFragNeeded, uint32(uint16(mtu)))
}

// PortUnreachable is the ICMPError (RFC 792, page 4; RFC 4443, section 3.1) that tells the sender of b, of either
// family, that nobody serves the port.
func PortUnreachable(dst, b []byte, from netip.Addr) int {
	if b[0]>>4 == 6 {
		return ICMPError(dst, b, from, ICMPv6Unreachable, ICMPv6CodePort, 0)
	}
	return ICMPError(dst, b, from, ICMPUnreachable, ICMPCodePort, 0)
}

package packet

import (
	"encoding/binary"
	"net/netip"
)

// ICMP types and codes (RFC 792).
const (
	ICMPEchoReply      = 0
	ICMPUnreachable    = 3
	ICMPEcho           = 8
	ICMPCodeFragNeeded = 4

	icmpHeaderLen = 8
	icmpMaxLen    = 576  // of an ICMP error in all, RFC 1812, section 4.3.2.3
	icmpErrorTOS  = 0xc0 // precedence "internetwork control", RFC 1812, section 4.3.2.5
	ownTTL        = 64   // RFC 1700; packets that we begin ourselves
)

// EchoReply turns the ICMP echo request in b, a whole and checked IPv4 packet, into its answer (RFC 792, page 14), in place. It
// returns DropBadChecksum for a request that was damaged, DropICMP for any other ICMP message.
func EchoReply(b []byte) Drop {
	h := IPv4(b)
	t := h.Payload()
	if t[0] != ICMPEcho || t[1] != 0 {
		return DropICMP
	}
	if Checksum(t) != 0 {
		return DropBadChecksum
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
	return Accept
}

// FragmentationNeeded writes into dst, of at least 576 bytes, the ICMP error (RFC 1191, section 4) that tells the sender of the IPv4
// packet b that what leads on takes packets of at most mtu bytes. Its source is from. It returns the error's length in bytes.
func FragmentationNeeded(dst []byte, b []byte, from netip.Addr, mtu int) int {
	quote := b[:min(IPv4(b).TotalLen(), icmpMaxLen-IPv4HeaderLen-icmpHeaderLen)]
	n := IPv4HeaderLen + icmpHeaderLen + len(quote)
	h, to := IPv4(dst[:n]), IPv4(b).Src().As4()
	PutIPv4(h, icmpErrorTOS, n, ownTTL, ProtoICMP, from.As4(), to)
	t := h[IPv4HeaderLen:]
	t[0], t[1] = ICMPUnreachable, ICMPCodeFragNeeded
	binary.BigEndian.PutUint32(t[2:], 0)
	binary.BigEndian.PutUint16(t[6:], uint16(mtu))
	copy(t[icmpHeaderLen:], quote)
	binary.BigEndian.PutUint16(t[2:], Checksum(t))
	return n
}

// PutIPv4 writes an IPv4 header without options, ID or flags, with its checksum, to the front of dst. n is the packet's length in bytes.
func PutIPv4(dst IPv4, tos byte, n int, ttl, proto byte, src, to [4]byte) {
	dst[0], dst[1] = 0x45, tos
	dst.SetTotalLen(n)
	binary.BigEndian.PutUint32(dst[4:], 0)
	dst[8], dst[9] = ttl, proto
	copy(dst[12:16], src[:])
	copy(dst[16:20], to[:])
	dst.SetChecksum()
}

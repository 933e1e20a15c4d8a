package packet

import "encoding/binary"

const (
	tcpHeaderLen = 20   // without options
	ecnMask      = 0x03 // of the TOS and the traffic class, RFC 3168
)

// ResetRoom is the length of the longest TCP reset that Reset makes, in bytes.
const ResetRoom = IPv6HeaderLen + tcpHeaderLen

// Reset writes to dst, of at least ResetRoom bytes, the RST with which the destination of the TCP segment in b answers
// if it does not know the segment's connection (RFC 9293, section 3.10.7.1), and returns the RST's length in bytes. p
// is what Parse has found in b. b may be a super-packet, or have an unfinished checksum.
//
// Reset returns 0 if the segment must not be answered: it is a RST, one of its addresses is not of a single host, its
// header is longer than the packet, or its checksum is wrong. The IP header is as Linux makes it: the segment's DSCP,
// DF, and neither an ID nor a flow label (Linux net/ipv4/tcp_ipv4.c, tcp_v4_send_reset, net/ipv6/tcp_ipv6.c).
func Reset(dst []byte, b *Buf, p *Info) int {
	in := b.Bytes()[:p.Len]
	t := in[p.Offset:]
	header := int(t[12]>>4) * 4
	if p.TCPFlags&FlagRST != 0 || !p.Flow.OneToOne() || header < tcpHeaderLen || header > len(t) {
		return 0
	}
	six := in[0]>>4 == 6
	if !b.Offload.Partial && b.Offload.GSO == GSONone && Fold(Sum(t, tcpPseudoSum(in, six, len(t)))) != 0xffff {
		return 0
	}

	n := IPv4HeaderLen + tcpHeaderLen
	if six {
		n = IPv6HeaderLen + tcpHeaderLen
		h := IPv6(in)
		PutIPv6(dst, h.TrafficClass()&^ecnMask, n, ownTTL, ProtoTCP, p.Flow.Dst.As16(), p.Flow.Src.As16())
	} else {
		h := IPv4(dst)
		PutIPv4(h, IPv4(in).TOS()&^ecnMask, n, ownTTL, ProtoTCP, p.Flow.Dst.As4(), p.Flow.Src.As4())
		binary.BigEndian.PutUint16(h[6:], flagDF)
		h.SetChecksum()
	}
	r := dst[n-tcpHeaderLen : n]
	clear(r)
	copy(r[0:2], t[2:4])
	copy(r[2:4], t[0:2])
	r[12], r[13] = tcpHeaderLen/4<<4, FlagRST
	if p.TCPFlags&FlagACK != 0 {
		copy(r[4:8], t[8:12])
	} else {
		length := uint32(len(t) - header) // SEG.LEN: SYN and FIN count
		if p.TCPFlags&FlagSYN != 0 {
			length++
		}
		if p.TCPFlags&FlagFIN != 0 {
			length++
		}
		binary.BigEndian.PutUint32(r[8:], binary.BigEndian.Uint32(t[4:])+length)
		r[13] |= FlagACK
	}
	PutChecksum(r[tcpChecksumAt:], Sum(r, tcpPseudoSum(dst, six, len(r))), false)
	return n
}

// tcpPseudoSum is the sum of the pseudo-header of the TCP packet in b, whose TCP header and payload have n bytes.
func tcpPseudoSum(b []byte, six bool, n int) uint64 {
	if six {
		return IPv6(b).PseudoSum(ProtoTCP, n)
	}
	return IPv4(b).PseudoSum(n)
}

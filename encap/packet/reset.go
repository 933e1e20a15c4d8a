package packet

const ecnMask = 0x03 // of TOS and traffic class, RFC 3168

// ResetRoom is the length of the longest TCP reset that Reset makes, in bytes.
const ResetRoom = IPv6HeaderLen + TCPHeaderLen

// Reset writes to dst, of at least ResetRoom bytes, the RST that answers the TCP segment in b for an unknown connection
// (RFC 9293, section 3.10.7.1). It returns the RST's length in bytes. p is the result of parsing b. b may be a GSO
// packet, or have an unfinished checksum.
//
// Reset returns 0 if the segment must not be answered: it is a RST, one of its addresses is not a single host's, its
// header is longer than the packet, or its checksum is wrong. The IP header is as Linux makes it: the segment's DSCP,
// DF, and neither an ID nor a flow label (Linux net/ipv4/tcp_ipv4.c, tcp_v4_send_reset, net/ipv6/tcp_ipv6.c).
func Reset(dst []byte, b *Buf, p *Info) int {
	in := b.Bytes()[:p.Len]
	t := TCP(in[p.Offset:])
	header := t.HeaderLen()
	if p.TCPFlags&FlagRST != 0 || !p.Flow.OneToOne() || header < TCPHeaderLen || header > len(t) {
		return 0
	}
	six := Version(in) == 6
	if !b.Offload.Partial && b.Offload.GSO == GSONone && Fold(Sum(t, PseudoSum(in, ProtoTCP, len(t)))) != 0xffff {
		return 0
	}

	n := IPv4HeaderLen + TCPHeaderLen
	if six {
		n = IPv6HeaderLen + TCPHeaderLen
		IPv6(dst).Encode(IPv6Fields{
			TrafficClass: IPv6(in).TrafficClass() &^ ecnMask, TotalLen: n, HopLimit: ownTTL, NextHeader: ProtoTCP,
			Src: p.Flow.Dst.As16(), Dst: p.Flow.Src.As16(),
		})
	} else {
		h := IPv4(dst)
		h.Encode(IPv4Fields{
			TOS: IPv4(in).TOS() &^ ecnMask, TotalLen: n, TTL: ownTTL, Protocol: ProtoTCP,
			Src: p.Flow.Dst.As4(), Dst: p.Flow.Src.As4(),
		})
		h.SetDF(true)
		h.SetChecksum()
	}
	r := TCP(dst[n-TCPHeaderLen : n])
	clear(r)
	r.SetSrcPort(t.DstPort())
	r.SetDstPort(t.SrcPort())
	r.SetHeaderLen(TCPHeaderLen)
	if p.TCPFlags&FlagACK != 0 {
		r.SetFlags(FlagRST)
		r.SetSeq(t.Ack())
	} else {
		length := uint32(len(t) - header) // SEG.LEN: SYN and FIN count
		if p.TCPFlags&FlagSYN != 0 {
			length++
		}
		if p.TCPFlags&FlagFIN != 0 {
			length++
		}
		r.SetFlags(FlagRST | FlagACK)
		r.SetAck(t.Seq() + length)
	}
	r.SetChecksum(PseudoSum(dst, ProtoTCP, len(r)))
	return n
}

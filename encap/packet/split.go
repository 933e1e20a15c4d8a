package packet

import (
	"encoding/binary"

	"vstun/encap/packet/drop"
)

// MaxPieces is the largest number of pieces that a packet is cut into: the largest packet, cut for the smallest MTU of
// IPv4 (RFC 791, section 3.2), 68.
const MaxPieces = (MaxLen-IPv4HeaderLen)/(68-IPv4HeaderLen) + 1

// PieceRoom is the room that the headers of one packet's pieces may need, in bytes: whatever a tunnel puts before them,
// and the longest IPv4 and TCP header each. A packet with longer ones, which IPv6 allows, may have fewer pieces.
const PieceRoom = MaxPieces * (Headroom + 60 + 60)

// SplitSize tells how Split will cut the super-packet in b, p its headers: the length of its headers from the inner IP
// header on, and the largest payload of a segment that fits mtu bytes. TCP may be cut finer than it came, UDP may not:
// its payload can be larger than what fits.
func SplitSize(b *Buf, p *Info, mtu int) (headers, payload int, d drop.Reason) {
	in := b.Bytes()
	o := &b.Offload
	switch {
	case o.GSO == GSOTCP && p.Flow.Proto == ProtoTCP:
		headers = p.Offset + int(in[p.Offset+12]>>4)*4
		if headers < p.Offset+20 {
			return 0, 0, drop.Offload
		}
		payload = min(int(o.Size), mtu-headers)
	case o.GSO == GSOUDP && p.Flow.Proto == ProtoUDP:
		headers, payload = p.Offset+8, int(o.Size)
	default:
		return 0, 0, drop.Offload
	}
	if payload <= 0 || headers > len(in) {
		return 0, 0, drop.Offload
	}
	if pieces := (len(in) - headers + payload - 1) / payload; pieces > MaxPieces ||
		pieces*(Headroom+headers) > PieceRoom {
		return 0, 0, drop.Offload
	}
	return headers, payload, drop.Accept
}

// Split cuts the wrapped super-packet in b into packets of at most payload bytes behind their headers, and appends them
// to segs; their headers stand in room, the payload is not copied. overhead is the length of what a tunnel has put
// before the packet, an IP header first, whose length is made right; 0 without one. headers and payload are
// SplitSize's. What is left of room is returned.
//
// It does what Linux does for a device without offloads: net/ipv4/af_inet.c inet_gso_segment, net/ipv6/ip6_offload.c
// ipv6_gso_segment, tcp_offload.c tcp_gso_segment, udp_offload.c __udp_gso_segment. Extension headers are the same in
// each packet.
func Split(segs []Segment, b *Buf, p *Info, overhead, headers, payload int, room []byte) ([]Segment, []byte) {
	whole := b.Bytes()
	n := overhead + headers
	head, body := whole[:n], whole[n:]
	ip := head[overhead:]
	t := ip[p.Offset:]
	tcp := p.Flow.Proto == ProtoTCP
	six := ip[0]>>4 == 6

	// What all segments' headers have in common is summed once, with the fields that differ as 0.
	var id uint16
	var ipSum, pseudo uint64
	if six {
		pseudo = IPv6(ip).PseudoSum(p.Flow.Proto, 0)
	} else {
		ip := IPv4(ip)
		id = ip.ID()
		ip.SetTotalLen(0)
		ip[4], ip[5], ip[10], ip[11] = 0, 0, 0, 0
		ipSum = uint64(Fold(Sum(ip[:p.Offset], 0)))
		pseudo = ip.PseudoSum(0)
	}
	var seq uint32
	var flags byte
	checksumAt := udpChecksumAt
	if tcp {
		checksumAt = tcpChecksumAt
		seq, flags = binary.BigEndian.Uint32(t[4:]), t[13]
	} else {
		t[4], t[5] = 0, 0
	}
	// illegal over IPv6: RFC 8200, section 8.1
	unchecked := !tcp && !six && t[6] == 0 && t[7] == 0 && !b.Offload.Partial
	t[checksumAt], t[checksumAt+1] = 0, 0

	const fin, psh, cwr = 0x01, 0x08, 0x80
	for first := true; first || len(body) > 0; first = false {
		part := body[:min(payload, len(body))]
		body = body[len(part):]
		h := room[:n:n]
		room = room[n:]
		copy(h, head)

		if overhead > 0 {
			setTotalLen(h, n+len(part))
		}
		ip, t := h[overhead:], h[overhead+p.Offset:]
		inner := headers + len(part)
		setTotalLen(ip, inner)
		if !six {
			binary.BigEndian.PutUint16(ip[4:], id)
			PutChecksum(ip[10:], ipSum+uint64(inner)+uint64(id), false)
			id++
		}

		if tcp {
			binary.BigEndian.PutUint32(t[4:], seq)
			seq += uint32(len(part))
			f := flags
			if len(body) > 0 {
				f &^= fin | psh
			}
			if !first {
				f &^= cwr
			}
			t[13] = f
		} else {
			binary.BigEndian.PutUint16(t[4:], uint16(8+len(part)))
		}
		if !unchecked {
			sum := Sum(part, Sum(t, pseudo+uint64(inner-p.Offset)))
			PutChecksum(t[checksumAt:], sum, !tcp)
		}
		segs = append(segs, Segment{Head: h, Body: part})
	}
	return segs, room
}

// setTotalLen writes the length of the packet in h, of either family, to its header.
func setTotalLen(h []byte, n int) {
	if h[0]>>4 == 6 {
		IPv6(h).SetPayloadLen(n - IPv6HeaderLen)
	} else {
		IPv4(h).SetTotalLen(n)
	}
}

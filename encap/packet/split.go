package packet

import "vstun/encap/packet/drop"

// MaxPieces is the largest number of pieces that a packet is cut into: the largest packet, cut for the smallest MTU of
// IPv4 (RFC 791, section 3.2), 68.
const MaxPieces = (MaxLen-IPv4HeaderLen)/(68-IPv4HeaderLen) + 1

// PieceRoom is the room for the headers of one packet's pieces, in bytes. It is enough for MaxPieces pieces with
// Headroom bytes of tunnel headers and the longest IPv4 and TCP header. A packet with longer headers, which IPv6
// allows, is cut into fewer pieces.
const PieceRoom = MaxPieces * (Headroom + 60 + 60)

// Cut describes how to cut a GSO packet into segments.
type Cut struct {
	Overhead int // length of the tunnel's headers before the packet; 0 without a tunnel
	Headers  int // length of the packet's own headers
	Payload  int // largest payload of a segment
}

// Segments is the number of packets that a packet of n bytes, without Overhead, is cut into.
func (c *Cut) Segments(n int) int { return (n - c.Headers + c.Payload - 1) / c.Payload }

// NewCut returns the Cut for the GSO packet in b, whose headers are p. The caller sets Overhead. TCP segments fit mtu
// bytes: NewCut makes them smaller if necessary. UDP datagrams keep their size and may be larger than mtu. It returns
// drop.Offload if Split has no room for the segments.
func NewCut(b *Buf, p *Info, mtu int) (Cut, drop.Reason) {
	c, d := KernelCut(b, p, mtu)
	if d == drop.Accept && !c.HasRoom(b.Len()) {
		return Cut{}, drop.Offload
	}
	return c, d
}

// HasRoom reports whether Split has room for a packet of n bytes, without Overhead.
func (c *Cut) HasRoom(n int) bool {
	s := c.Segments(n)
	return s <= MaxPieces && s*(Headroom+c.Headers) <= PieceRoom
}

// KernelCut is NewCut for a packet that the kernel cuts. The number of segments has no bound.
func KernelCut(b *Buf, p *Info, mtu int) (Cut, drop.Reason) {
	in := b.Bytes()
	o := &b.Offload
	var c Cut
	switch {
	case o.GSO == GSOTCP && p.Flow.Proto == ProtoTCP:
		c.Headers = p.Offset + TCP(in[p.Offset:]).HeaderLen()
		if c.Headers < p.Offset+TCPHeaderLen {
			return Cut{}, drop.Offload
		}
		c.Payload = min(int(o.Size), mtu-c.Headers)
	case o.GSO == GSOUDP && p.Flow.Proto == ProtoUDP:
		c.Headers, c.Payload = p.Offset+UDPHeaderLen, int(o.Size)
	default:
		return Cut{}, drop.Offload
	}
	if c.Payload <= 0 || c.Headers > len(in) {
		return Cut{}, drop.Offload
	}
	return c, drop.Accept
}

// Split cuts the GSO packet in b, whose headers are p, into packets and appends them to segs. It writes their headers
// to room and does not copy the payload. It sets the length in the outer IP header if c.Overhead is not 0. Split
// returns the rest of room.
//
// It works like Linux for a device without offloads: net/ipv4/af_inet.c inet_gso_segment, net/ipv6/ip6_offload.c
// ipv6_gso_segment, tcp_offload.c tcp_gso_segment, udp_offload.c __udp_gso_segment. Extension headers are the same in
// each packet.
func Split(segs []Segment, b *Buf, p *Info, c Cut, room []byte) ([]Segment, []byte) {
	whole := b.Bytes()
	n := c.Overhead + c.Headers
	head, body := whole[:n], whole[n:]
	s := newSplitter(b, p, head[c.Overhead:])
	for first := true; first || len(body) > 0; first = false {
		part := body[:min(c.Payload, len(body))]
		body = body[len(part):]
		h := room[:n:n]
		room = room[n:]
		copy(h, head)
		if c.Overhead > 0 {
			setTotalLen(h, n+len(part))
		}
		s.segment(h[c.Overhead:], part, first, len(body) == 0)
		segs = append(segs, Segment{Head: h, Body: part})
	}
	return segs, room
}

// splitter makes the headers of segments. It sums the fields that all headers have in common once.
type splitter struct {
	offset    int // of the transport header
	tcp, six  bool
	unchecked bool // UDP without checksum
	flags     uint8
	id        uint16 // of the next segment
	seq       uint32 // of the next segment
	ipSum     uint64 // of an IPv4 header without length, ID and checksum
	pseudo    uint64 // of the pseudo-header without length
}

// newSplitter returns the splitter of the packet in b, whose headers are ip. It clears the fields in ip that differ
// between segments.
func newSplitter(b *Buf, p *Info, ip []byte) splitter {
	s := splitter{offset: p.Offset, tcp: p.Flow.Proto == ProtoTCP, six: Version(ip) == 6}
	if s.six {
		s.pseudo = IPv6(ip).PseudoSum(p.Flow.Proto, 0)
	} else {
		h := IPv4(ip)
		s.id = h.ID()
		h.SetTotalLen(0)
		h.SetID(0)
		h.ClearChecksum()
		s.ipSum = uint64(Fold(Sum(h[:p.Offset], 0)))
		s.pseudo = h.PseudoSum(0)
	}
	if s.tcp {
		t := TCP(ip[p.Offset:])
		s.seq, s.flags = t.Seq(), t.Flags()
		t.ClearChecksum()
		return s
	}
	u := UDP(ip[p.Offset:])
	s.unchecked = !s.six && u.Checksum() == 0 && !b.Offload.Partial // illegal over IPv6: RFC 8200, section 8.1
	u.SetLen(0)
	u.ClearChecksum()
	return s
}

// segment completes h, a copy of the packet's headers, for the segment with this payload.
func (s *splitter) segment(h, payload []byte, first, last bool) {
	t := h[s.offset:]
	n := len(h) + len(payload)
	setTotalLen(h, n)
	if !s.six {
		ip := IPv4(h)
		ip.SetID(s.id)
		PutChecksum(ip[10:], s.ipSum+uint64(n)+uint64(s.id), false)
		s.id++
	}
	checksumAt := UDPChecksumAt
	if s.tcp {
		checksumAt = TCPChecksumAt
		t := TCP(t)
		t.SetSeq(s.seq)
		s.seq += uint32(len(payload))
		flags := s.flags
		if !last {
			flags &^= FlagFIN | FlagPSH
		}
		if !first {
			flags &^= FlagCWR
		}
		t.SetFlags(flags)
	} else {
		UDP(t).SetLen(UDPHeaderLen + len(payload))
	}
	if !s.unchecked {
		PutChecksum(t[checksumAt:], Sum(payload, Sum(t, s.pseudo+uint64(n-s.offset))), !s.tcp)
	}
}

// setTotalLen writes the length of the packet in h, of either family, to its header.
func setTotalLen(h []byte, n int) {
	if Version(h) == 6 {
		IPv6(h).SetPayloadLen(n - IPv6HeaderLen)
	} else {
		IPv4(h).SetTotalLen(n)
	}
}

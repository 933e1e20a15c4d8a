package packet

import (
	"encoding/binary"
	"net/netip"

	"vstun/encap/packet/drop"
)

// Quoted is the contents of an ICMP error: its type and code, and the headers of the packet that it quotes.
type Quoted struct {
	// Flow is the quoted packet's flow. For a realserver's answer from the VIP to the client, Flow.Reverse is the
	// connection's flow.
	Flow       Flow
	Type, Code uint8 // of the family's ICMP
	// MTU is the MTU in "fragmentation needed" or "packet too big", in bytes, at most MaxLen. 0: the router does not
	// report it (RFC 1191, section 5).
	MTU    int
	Offset int // of the quoted packet in b, in bytes
	// Payload is the offset in b of the bytes behind the quoted packet's IP headers: its transport header, or the
	// tunnel header. There may be none.
	Payload int
}

// TooBig reports whether the error is "fragmentation needed" or "packet too big".
func (q *Quoted) TooBig() bool {
	if q.Flow.Src.Is4() {
		return q.Type == ICMPUnreachable && q.Code == ICMPCodeFragNeeded
	}
	return q.Type == ICMPv6TooBig
}

// QuotedFlow reads the ICMP error in b, of either family, which may be any bytes. The quote's IP headers suffice, with
// four bytes behind them if the protocol has ports. An unfinished checksum must have been finished (Buf.Finish).
//
// It returns drop.ICMP for a packet that is no error of ICMP's types 3, 4 and 11 or ICMPv6's 1 to 4, and for an error
// that goes to another address than the source of the quoted packet. It returns drop.BadChecksum for a damaged error,
// and drop.Fragment for an error that is a fragment, or quotes one without ports. drop.Truncated and drop.BadHeader
// apply to error and quote alike.
func QuotedFlow(b []byte) (q Quoted, d drop.Reason) {
	if Version(b) == 6 {
		d = q.parse6(b)
	} else {
		d = q.parse4(b)
	}
	if d != drop.Accept {
		return Quoted{}, d
	}
	return q, drop.Accept
}

// QuotedPacket reads b, the front of a packet of either family, which may be any bytes. It is the inner packet of a
// tunnel packet that an ICMP error quotes. Type, Code and MTU of the result are not set. IP headers suffice, with four
// bytes behind them if the protocol has ports. The reasons are QuotedFlow's. The IP header's checksum is not checked:
// the quote need not be complete.
func QuotedPacket(b []byte) (q Quoted, d drop.Reason) {
	switch {
	case len(b) >= IPv6HeaderLen && Version(b) == 6:
		d = q.packet6(b, IPv6(b).Src())
	case len(b) >= IPv4HeaderLen:
		d = q.packet4(b, IPv4(b).Src())
	default:
		d = drop.Truncated
	}
	if d != drop.Accept {
		return Quoted{}, d
	}
	return q, drop.Accept
}

func (q *Quoted) parse4(h IPv4) drop.Reason {
	if d := h.Check(); d != drop.Accept {
		return d
	}
	if h.Fragment() {
		return drop.Fragment
	}
	t := ICMP(h.Payload())
	if h.Protocol() != ProtoICMP {
		return drop.ICMP
	}
	if len(t) < ICMPHeaderLen {
		return drop.Truncated
	}
	q.Type, q.Code = t.Type(), t.Code()
	switch q.Type {
	case ICMPUnreachable, ICMPSourceQuench, ICMPTimeExceeded:
	default:
		return drop.ICMP
	}
	if Checksum(t) != 0 {
		return drop.BadChecksum
	}
	if q.Type == ICMPUnreachable && q.Code == ICMPCodeFragNeeded {
		q.MTU = t.MTU4()
	}
	q.Offset = h.HeaderLen() + ICMPHeaderLen
	return q.packet4(t.Payload(), h.Dst())
}

// packet4 reads in, the front of a packet at q.Offset, whose source must be from.
func (q *Quoted) packet4(in IPv4, from netip.Addr) drop.Reason {
	if len(in) < IPv4HeaderLen || in.HeaderLen() > len(in) {
		return drop.Truncated
	}
	if in.Version() != 4 || in.HeaderLen() < IPv4HeaderLen {
		return drop.BadHeader
	}
	if in.Src() != from {
		return drop.ICMP
	}
	if in.FragOffset() != 0 {
		return drop.Fragment
	}
	q.Flow = Flow{Src: in.Src(), Dst: in.Dst(), Proto: in.Protocol()}
	q.Payload = q.Offset + in.HeaderLen()
	return q.ports(in[in.HeaderLen():])
}

func (q *Quoted) parse6(h IPv6) drop.Reason {
	x, d := h.parse()
	if d != drop.Accept {
		return d
	}
	if x.Fragment {
		return drop.Fragment
	}
	t := ICMP(h[x.Offset:h.TotalLen()])
	if x.Proto != ProtoICMPv6 {
		return drop.ICMP
	}
	if len(t) < ICMPHeaderLen {
		return drop.Truncated
	}
	q.Type, q.Code = t.Type(), t.Code()
	if q.Type < ICMPv6Unreachable || q.Type > ICMPv6ParamProblem {
		return drop.ICMP
	}
	if Fold(Sum(t, h.PseudoSum(ProtoICMPv6, len(t)))) != 0xffff {
		return drop.BadChecksum
	}
	if q.Type == ICMPv6TooBig {
		q.MTU = int(min(t.MTU6(), MaxLen))
	}
	q.Offset = x.Offset + ICMPHeaderLen
	return q.packet6(t.Payload(), h.Dst())
}

// packet6 is packet4 for IPv6.
func (q *Quoted) packet6(in IPv6, from netip.Addr) drop.Reason {
	if len(in) < IPv6HeaderLen {
		return drop.Truncated
	}
	if in.Version() != 6 || mapped(in[8:]) || mapped(in[24:]) {
		return drop.BadHeader
	}
	if in.Src() != from {
		return drop.ICMP
	}
	y, d := in.walk(min(len(in), in.TotalLen()))
	if d != drop.Accept {
		return d
	}
	if y.FragOffset > 0 {
		return drop.Fragment
	}
	q.Flow = Flow{Src: in.Src(), Dst: in.Dst(), Proto: y.Proto}
	q.Payload = q.Offset + y.Offset
	return q.ports(in[y.Offset:])
}

// ports reads them from the front of the quoted transport header t.
func (q *Quoted) ports(t []byte) drop.Reason {
	switch q.Flow.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if len(t) < 4 {
			return drop.Truncated
		}
		q.Flow.SrcPort, q.Flow.DstPort = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	}
	return drop.Accept
}

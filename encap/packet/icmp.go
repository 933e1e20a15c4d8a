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

	ICMPCodeHost       = 1
	ICMPCodePort       = 3
	ICMPCodeFragNeeded = 4

	icmpMaxLen   = 576  // of an ICMP error in all, RFC 1812, section 4.3.2.3
	icmpErrorTOS = 0xc0 // precedence "internetwork control", RFC 1812, section 4.3.2.5 …
	icmpKeepTOS  = 0x1e // … and the other bits from the packet's TOS (Linux net/ipv4/icmp.c, __icmp_send)
	ownTTL       = 64   // RFC 1700; for packets that this host creates
)

// Sizes of ICMP messages of either family, in bytes.
const (
	ICMPHeaderLen  = 8
	icmpChecksumAt = 2 // offset of the checksum
)

// ICMP is a view over an ICMP message of either family (RFC 792; RFC 4443, section 2.1). Its methods need the first 8
// bytes to be there, but for Type, which needs 1.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|     Type      |     Code      |           Checksum            |  0
//	+---------------+---------------+-------------------------------+
//	|     Rest: identifier and sequence number, MTU, or unused      |  4
//	+---------------------------------------------------------------+
//	|            Data: of an error, the packet it is about          |  8
//	+---------------------------------------------------------------+
type ICMP []byte

// ICMPFields is the header fields of an ICMP message of either family.
type ICMPFields struct {
	Type, Code uint8
	Rest       uint32
}

func (h ICMP) Type() uint8      { return h[0] }
func (h ICMP) Code() uint8      { return h[1] }
func (h ICMP) Checksum() uint16 { return binary.BigEndian.Uint16(h[2:]) }
func (h ICMP) Rest() uint32     { return binary.BigEndian.Uint32(h[4:]) }
func (h ICMP) ID() uint16       { return binary.BigEndian.Uint16(h[4:]) }
func (h ICMP) Seq() uint16      { return binary.BigEndian.Uint16(h[6:]) }
func (h ICMP) Payload() []byte  { return h[ICMPHeaderLen:] }
func (h ICMP) SetType(v uint8)  { h[0] = v }

// MTU4 is the MTU in "fragmentation needed", in bytes. 0: the router does not report it (RFC 1191, section 5).
func (h ICMP) MTU4() int { return int(binary.BigEndian.Uint16(h[6:])) }

// MTU6 is the MTU in "packet too big" (RFC 4443, section 3.2), in bytes.
func (h ICMP) MTU6() uint32 { return h.Rest() }

// SetChecksum computes the checksum of the message h and puts it in place. pseudo is the sum of the pseudo-header over
// IPv6, 0 over IPv4, which has none.
func (h ICMP) SetChecksum(pseudo uint64) {
	h[2], h[3] = 0, 0
	PutChecksum(h[2:], Sum(h, pseudo), false)
}

// Encode writes a header without checksum.
func (h ICMP) Encode(f ICMPFields) {
	h[0], h[1], h[2], h[3] = f.Type, f.Code, 0, 0
	binary.BigEndian.PutUint32(h[4:], f.Rest)
}

// ICMPRoom is the length of the longest ICMP error that is made here, in bytes.
const ICMPRoom = icmp6MaxLen

// EchoReply turns the ICMP echo request in b, a packet of either family that Parse has accepted, into its answer (RFC
// 792, page 14; RFC 4443, section 4.2), in place. It returns drop.BadChecksum for a request that was damaged, drop.ICMP
// for any other ICMP message.
func EchoReply(b []byte) drop.Reason {
	if Version(b) == 6 {
		return echoReply6(b)
	}
	h := IPv4(b)
	t := ICMP(h.Payload())
	if t.Type() != ICMPEcho || t.Code() != 0 {
		return drop.ICMP
	}
	if Checksum(t) != 0 {
		return drop.BadChecksum
	}
	t.SetType(ICMPEchoReply)
	t.SetChecksum(0)
	var src [4]byte
	copy(src[:], h[12:16])
	copy(h[12:16], h[16:20])
	copy(h[16:20], src[:])
	h.SetID(0) // the kernel gives it one
	h.SetFragment(0, false)
	h.SetTTL(ownTTL)
	h.SetChecksum()
	return drop.Accept
}

// EchoFlow is the flow of the ICMP echo request in b, of either family. p is the result of parsing b. The flow's source
// port is the request's identifier. EchoFlow returns false for any other ICMP message.
func EchoFlow(b []byte, p *Info) (Flow, bool) {
	t := ICMP(b[p.Offset:p.Len])
	if p.Flow.Proto == ProtoICMP && t.Type() != ICMPEcho || p.Flow.Proto == ProtoICMPv6 && t.Type() != ICMPv6Echo {
		return Flow{}, false
	}
	f := p.Flow
	f.SrcPort = t.ID()
	return f, true
}

// ICMPError writes an ICMP error about the packet b into dst, which has at least ICMPRoom bytes. It quotes as much of b
// as the RFCs allow. from is the error's source, and b's source its destination. b is a checked packet of either family
// that MayAnswer allows errors about, or the front of one that QuotedPacket has read; f is of its family's ICMP.
// ICMPError returns the error's length in bytes.
func ICMPError(dst, b []byte, from netip.Addr, f ICMPFields) int {
	if Version(b) == 6 {
		return icmpError6(dst, b, from, f)
	}
	about := IPv4(b)
	quote := b[:min(len(b), about.TotalLen(), icmpMaxLen-IPv4HeaderLen-ICMPHeaderLen)]
	n := IPv4HeaderLen + ICMPHeaderLen + len(quote)
	h := IPv4(dst[:n])
	h.Encode(IPv4Fields{
		TOS: icmpErrorTOS | about.TOS()&icmpKeepTOS, TotalLen: n, TTL: ownTTL, Protocol: ProtoICMP,
		Src: from.As4(), Dst: about.Src().As4(),
	})
	t := ICMP(h[IPv4HeaderLen:])
	t.Encode(f)
	copy(t.Payload(), quote)
	t.SetChecksum(0)
	return n
}

// FragmentationNeeded writes the ICMPError "fragmentation needed" about the IPv4 packet b, with the path MTU mtu in
// bytes (RFC 1191, section 4).
func FragmentationNeeded(dst, b []byte, from netip.Addr, mtu int) int {
	f := ICMPFields{Type: ICMPUnreachable, Code: ICMPCodeFragNeeded, Rest: uint32(uint16(mtu))}
	return ICMPError(dst, b, from, f)
}

// PortUnreachable writes the ICMPError "port unreachable" about the packet b, of either family (RFC 792, page 4; RFC
// 4443, section 3.1).
func PortUnreachable(dst, b []byte, from netip.Addr) int {
	if Version(b) == 6 {
		return ICMPError(dst, b, from, ICMPFields{Type: ICMPv6Unreachable, Code: ICMPv6CodePort})
	}
	return ICMPError(dst, b, from, ICMPFields{Type: ICMPUnreachable, Code: ICMPCodePort})
}

// HostUnreachable writes the ICMPError "host unreachable" or "address unreachable" about the packet b, of either family
// (RFC 792, page 4; RFC 4443, section 3.1).
func HostUnreachable(dst, b []byte, from netip.Addr) int {
	if Version(b) == 6 {
		return ICMPError(dst, b, from, ICMPFields{Type: ICMPv6Unreachable, Code: ICMPv6CodeAddress})
	}
	return ICMPError(dst, b, from, ICMPFields{Type: ICMPUnreachable, Code: ICMPCodeHost})
}

// TimeExceeded writes the ICMPError "time exceeded" in transit about the packet b, of either family (RFC 792, page 6;
// RFC 4443, section 3.3).
func TimeExceeded(dst, b []byte, from netip.Addr) int {
	if Version(b) == 6 {
		return ICMPError(dst, b, from, ICMPFields{Type: ICMPv6TimeExceeded})
	}
	return ICMPError(dst, b, from, ICMPFields{Type: ICMPTimeExceeded})
}

package packet

import (
	"encoding/binary"
	"net/netip"

	"vstun/encap/packet/drop"
)

// Protocol numbers that belong to IPv6 (IANA), and sizes.
const (
	ProtoIPv6   = 41 // IPv6 in a tunnel
	ProtoICMPv6 = 58

	IPv6HeaderLen = 40 // without extension headers
)

// IPv6 is a view over an IPv6 packet (RFC 8200, section 3). Its methods need the first 40 bytes to be there.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+---------------+---------------------------------------+
//	|Version| Traffic Class |              Flow Label               |  0
//	+-------+---------------+-------+---------------+---------------+
//	|        Payload Length         |  Next Header  |   Hop Limit   |  4
//	+-------------------------------+---------------+---------------+
//	|                    Source Address, 16 bytes                   |  8
//	+---------------------------------------------------------------+
//	|                 Destination Address, 16 bytes                 | 24
//	+---------------------------------------------------------------+
//	|                       Extension Headers                       | 40
//	+---------------------------------------------------------------+
type IPv6 []byte

func (h IPv6) Version() int         { return int(h[0] >> 4) }
func (h IPv6) TrafficClass() byte   { return h[0]<<4 | h[1]>>4 }
func (h IPv6) FlowLabel() uint32    { return binary.BigEndian.Uint32(h) & 0xfffff }
func (h IPv6) PayloadLen() int      { return int(binary.BigEndian.Uint16(h[4:])) }
func (h IPv6) TotalLen() int        { return IPv6HeaderLen + h.PayloadLen() }
func (h IPv6) NextHeader() byte     { return h[6] }
func (h IPv6) HopLimit() byte       { return h[7] }
func (h IPv6) Src() netip.Addr      { return netip.AddrFrom16([16]byte(h[8:24])) }
func (h IPv6) Dst() netip.Addr      { return netip.AddrFrom16([16]byte(h[24:40])) }
func (h IPv6) SetPayloadLen(n int)  { binary.BigEndian.PutUint16(h[4:], uint16(n)) }
func (h IPv6) SetNextHeader(v byte) { h[6] = v }
func (h IPv6) SetHopLimit(v byte)   { h[7] = v }
func (h IPv6) SetTrafficClass(v byte) {
	h[0], h[1] = h[0]&0xf0|v>>4, h[1]&0x0f|v<<4
}

// ClearSrc makes the source ::.
func (h IPv6) ClearSrc() { clear(h[8:24]) }

// Addrs is source and destination as they stand in the header.
func (h IPv6) Addrs() []byte { return h[8:40] }

// Check reports whether h holds one whole IPv6 packet with right headers: version, lengths, no IPv4-mapped address,
// extension headers that can be walked (Transport). The packet may be shorter than h (a link's padding); it is never
// longer. A jumbogram (RFC 2675) is refused.
func (h IPv6) Check() drop.Reason {
	_, d := h.parse()
	return d
}

// parse is Check and Transport in one walk.
func (h IPv6) parse() (Transport, drop.Reason) {
	if d := h.checkHeader(); d != drop.Accept {
		return Transport{}, d
	}
	return h.walk(h.TotalLen())
}

// checkHeader is Check without extension headers.
func (h IPv6) checkHeader() drop.Reason {
	if len(h) < IPv6HeaderLen {
		return drop.Truncated
	}
	if h.Version() != 6 {
		return drop.NotIPv4
	}
	if h.TotalLen() > len(h) {
		return drop.Truncated
	}
	if mapped(h[8:]) || mapped(h[24:]) {
		return drop.BadHeader
	}
	return drop.Accept
}

// mapped reports whether the address at the front of b is an IPv4-mapped one, ::ffff:0:0/96 (RFC 4291, section
// 2.5.5.2). Such addresses must not appear on a wire. Sockets and tables would treat them as IPv4.
func mapped(b []byte) bool {
	return binary.BigEndian.Uint64(b) == 0 && binary.BigEndian.Uint32(b[8:]) == 0xffff
}

// PseudoSum is the sum of the pseudo-header of a packet over IPv6 (RFC 8200, section 8.1): n is the length of the
// transport header with its payload, in bytes, proto its protocol, which is not the IPv6 header's next header if there
// are extension headers. It is folded, so that a little more may be added to it.
func (h IPv6) PseudoSum(proto uint8, n int) uint64 {
	return uint64(Fold(Sum(h[8:40], uint64(proto)+uint64(n))))
}

// IPv6Fields is the fields of an IPv6 header that Encode takes from its caller.
type IPv6Fields struct {
	TrafficClass         byte
	TotalLen             int // of the packet with this header, in bytes
	HopLimit, NextHeader byte
	Src, Dst             [16]byte
}

// Encode writes a header without flow label to the front of h.
func (h IPv6) Encode(f IPv6Fields) {
	binary.BigEndian.PutUint32(h, 6<<28|uint32(f.TrafficClass)<<20)
	h.SetPayloadLen(f.TotalLen - IPv6HeaderLen)
	h[6], h[7] = f.NextHeader, f.HopLimit
	copy(h[8:24], f.Src[:])
	copy(h[24:40], f.Dst[:])
}

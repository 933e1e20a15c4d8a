package encap

import (
	"encoding/binary"

	"vstun/encap/packet"
)

const ipv6HeaderLen = 40

// ipv6 is a view over an IPv6 packet (RFC 8200, section 3), of at least 40 bytes for all but Version and Check.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+---------------+---------------------------------------+
//	|Version| Traffic Class |              Flow Label               |  0
//	+-------+---------------+-------+---------------+---------------+
//	|        Payload Length         |  Next Header  |   Hop Limit   |  4
//	+-------------------------------+---------------+---------------+
//	|                   Source Address, 16 bytes                    |  8
//	|                 Destination Address, 16 bytes                 | 24
//	+---------------------------------------------------------------+
type ipv6 []byte

func (h ipv6) Version() int        { return int(h[0] >> 4) }
func (h ipv6) TrafficClass() byte  { return h[0]<<4 | h[1]>>4 }
func (h ipv6) TotalLen() int       { return ipv6HeaderLen + int(binary.BigEndian.Uint16(h[4:])) }
func (h ipv6) NextHeader() byte    { return h[6] }
func (h ipv6) HopLimit() byte      { return h[7] }
func (h ipv6) SetPayloadLen(n int) { binary.BigEndian.PutUint16(h[4:], uint16(n)) }

func (h ipv6) SetTrafficClass(v byte) { h[0], h[1] = h[0]&0xf0|v>>4, v<<4|h[1]&0x0f }

// Check tells whether h begins with one whole IPv6 packet.
func (h ipv6) Check() packet.Drop {
	switch {
	case len(h) < ipv6HeaderLen:
		return packet.DropTruncated
	case h.Version() != 6:
		return packet.DropNotIPv4
	case h.TotalLen() > len(h):
		return packet.DropTruncated
	}
	return packet.Accept
}

// PseudoSum is the folded sum of the pseudo-header (RFC 8200, section 8.1): n is the length of the transport header with its payload, in bytes.
func (h ipv6) PseudoSum(proto uint8, n int) uint64 {
	return uint64(packet.Fold(packet.Sum(h[8:40], uint64(proto)+uint64(n))))
}

// putIPv6 writes a header of traffic class, flow label, payload length and hop limit 0 to the front of dst.
func putIPv6(dst ipv6, next byte, src, to [16]byte) {
	binary.BigEndian.PutUint64(dst, 6<<60|uint64(next)<<8)
	copy(dst[8:24], src[:])
	copy(dst[24:40], to[:])
}

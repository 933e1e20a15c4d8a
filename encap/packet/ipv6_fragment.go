package packet

import "encoding/binary"

// IPv6FragmentLen is the length of an IPv6 fragment header, in bytes.
const IPv6FragmentLen = 8

// IPv6Fragment is a view over the fragment extension header of an IPv6 packet (RFC 8200, section 4.5). Its methods need
// 8 bytes to be there.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------+---+-+
//	|  Next Header  |   Reserved    |     Fragment Offset     |Res|M|  0
//	+---------------+---------------+-------------------------+---+-+
//	|                        Identification                         |  4
//	+---------------------------------------------------------------+
type IPv6Fragment []byte

// IPv6FragmentFields is the fields of a fragment header. Offset is in bytes, a multiple of 8.
type IPv6FragmentFields struct {
	NextHeader uint8
	Offset     int
	More       bool
	ID         uint32
}

func (h IPv6Fragment) NextHeader() uint8 { return h[0] }
func (h IPv6Fragment) Offset() int       { return int(binary.BigEndian.Uint16(h[2:]) &^ 7) }
func (h IPv6Fragment) More() bool        { return h[3]&1 != 0 }
func (h IPv6Fragment) ID() uint32        { return binary.BigEndian.Uint32(h[4:]) }

// Encode writes a fragment header.
func (h IPv6Fragment) Encode(f IPv6FragmentFields) {
	field := uint16(f.Offset)
	if f.More {
		field |= 1
	}
	h[0], h[1] = f.NextHeader, 0
	binary.BigEndian.PutUint16(h[2:], field)
	binary.BigEndian.PutUint32(h[4:], f.ID)
}

package packet

import "encoding/binary"

// GUEHeaderLen is the length of a GUE header without extension fields, in bytes.
const GUEHeaderLen = 4

// GUE is a view over a GUE header of variant 0 (draft-ietf-intarea-gue, section 3.1) and the packet behind it. Its
// methods need the first 4 bytes to be there, but for Variant, which needs 1.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---+-+---------+---------------+-------------------------------+
//	| 0 |C|  Hlen   |  Proto/ctype  |             Flags             |  0
//	+---+-+---------+---------------+-------------------------------+
//	|               Extension fields, Hlen × 4 bytes                |  4
//	+---------------------------------------------------------------+
//
// Variant 1 (section 4) has no header: its first two bits, 01, are those of the IP version that follows, 4 (0100) or 6
// (0110).
type GUE []byte

func (h GUE) Variant() int     { return int(h[0] >> 6) }
func (h GUE) Proto() uint8     { return h[1] }
func (h GUE) SetProto(p uint8) { h[1] = p }

// Plain reports whether a header of variant 0 has neither control bit, extension fields nor flags.
func (h GUE) Plain() bool { return h[0] == 0 && binary.BigEndian.Uint16(h[2:]) == 0 }

// Version is the IP version that the protocol names, 0 for another protocol.
func (h GUE) Version() int {
	switch h.Proto() {
	case ProtoIPIP:
		return 4
	case ProtoIPv6:
		return 6
	}
	return 0
}

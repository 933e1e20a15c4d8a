package encap

import (
	"encoding/binary"

	"vstun/encap/packet"
)

// gue is a view over a GUE header of variant 0 (draft-ietf-intarea-gue, section 3.1), and what it carries.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---+-+---------+---------------+-------------------------------+
//	| 0 |C|  Hlen   |  Proto/ctype  |             Flags             |  0
//	+---+-+---------+---------------+-------------------------------+
//	|               Extension fields, Hlen × 4 bytes                |  4
//	+---------------------------------------------------------------+
//
// In variant 1 (section 4) there is no header: the first two bits, 01, are those of the IP version that comes, 4 (0100)
// or 6 (0110).
type gue []byte

const gueHeaderLen = 4 // without extension fields

// variant is which of the formats h is of.
func (h gue) variant() int { return int(h[0] >> 6) }

// plain reports whether a header of variant 0 has neither control bit, extension fields nor flags.
func (h gue) plain() bool { return h[0] == 0 && binary.BigEndian.Uint16(h[2:]) == 0 }

// version is the IP version that the protocol names, 0 for another protocol.
func (h gue) version() int {
	switch h[1] {
	case packet.ProtoIPIP:
		return 4
	case packet.ProtoIPv6:
		return 6
	}
	return 0
}

func (h gue) setProto(p byte) { h[1] = p }

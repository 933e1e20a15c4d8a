package packet

import "encoding/binary"

// GREMinLen is the length of a GRE header without optional fields, in bytes.
const GREMinLen = 4

// Flags of a GRE header (RFC 2784, section 2.1; RFC 2890, section 2).
const (
	GREChecksum = 0x8000 // C
	GREKey      = 0x2000 // K
	// GREIgnored is bits 6 to 12, which a receiver ignores. It refuses the others (RFC 2784, section 2.3).
	GREIgnored = 0x03f8
)

// GRE is a view over a GRE header (RFC 2784, section 2.1; RFC 2890, section 2) and the packet behind it. Its methods
// need the first 4 bytes to be there; Checksum and Key need HeaderLen bytes.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-----------------+-----+-------------------------------+
//	|C| |K|S|    Reserved0    | Ver |         Protocol Type         |  0
//	+-+-+-+-+-----------------+-----+-------------------------------+
//	|      Checksum, with C         |           Reserved1           |  4
//	+-------------------------------+-------------------------------+
//	|                         Key, with K                           |  4, or 8 behind a checksum
//	+---------------------------------------------------------------+
type GRE []byte

// GREFields is the optional fields of a GRE header.
type GREFields struct {
	Checksum bool
	HasKey   bool
	Key      uint32
}

func (h GRE) Flags() uint16   { return binary.BigEndian.Uint16(h) }
func (h GRE) Type() uint16    { return binary.BigEndian.Uint16(h[2:]) }
func (h GRE) Payload() []byte { return h[h.HeaderLen():] }

// HeaderLen is the header's length in bytes, by its flags C and K.
func (h GRE) HeaderLen() int {
	n := GREMinLen
	if h.Flags()&GREChecksum != 0 {
		n += 4
	}
	if h.Flags()&GREKey != 0 {
		n += 4
	}
	return n
}

// Key is the key of a header that has one.
func (h GRE) Key() uint32 { return binary.BigEndian.Uint32(h[h.HeaderLen()-4:]) }

// Checksum is the checksum of a header that has one.
func (h GRE) Checksum() uint16 { return binary.BigEndian.Uint16(h[GREMinLen:]) }

// SetChecksum computes the checksum of h, a header that has one and the packet behind it, and writes it to the header.
// rest is the sum of the bytes behind h. If there are any, the length of h is even.
func (h GRE) SetChecksum(rest uint64) {
	h[GREMinLen], h[GREMinLen+1] = 0, 0
	PutChecksum(h[GREMinLen:], Sum(h, rest), false)
}

// Version is the IP version that the protocol type names, 0 for another protocol.
func (h GRE) Version() int { return etherVersion(h.Type()) }

// SetVersion writes the protocol type of IP version 4 or 6.
func (h GRE) SetVersion(version int) { binary.BigEndian.PutUint16(h[2:], EtherType(version)) }

// SetType writes the protocol type.
func (h GRE) SetType(t uint16) { binary.BigEndian.PutUint16(h[2:], t) }

// Encode writes a header for IPv4, with checksum 0 where it has one, to the front of h. It returns the header's length
// in bytes.
func (h GRE) Encode(f GREFields) int {
	var flags uint16
	if f.Checksum {
		flags |= GREChecksum
	}
	if f.HasKey {
		flags |= GREKey
	}
	binary.BigEndian.PutUint16(h, flags)
	h.SetVersion(4)
	n := h.HeaderLen()
	clear(h[GREMinLen:n])
	if f.HasKey {
		binary.BigEndian.PutUint32(h[n-4:], f.Key)
	}
	return n
}

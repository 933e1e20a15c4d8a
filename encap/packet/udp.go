package packet

import "encoding/binary"

// Sizes of UDP headers, in bytes.
const (
	UDPHeaderLen  = 8
	UDPChecksumAt = 6 // offset of the checksum
)

// UDP is a view over a UDP datagram (RFC 768). Its methods need the first 8 bytes to be there, but for the ports, which
// need 4.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|          Source Port          |       Destination Port        |  0
//	+-------------------------------+-------------------------------+
//	|            Length             |           Checksum            |  4
//	+-------------------------------+-------------------------------+
type UDP []byte

func (h UDP) SrcPort() uint16     { return binary.BigEndian.Uint16(h) }
func (h UDP) DstPort() uint16     { return binary.BigEndian.Uint16(h[2:]) }
func (h UDP) Len() int            { return int(binary.BigEndian.Uint16(h[4:])) }
func (h UDP) Checksum() uint16    { return binary.BigEndian.Uint16(h[UDPChecksumAt:]) }
func (h UDP) Payload() []byte     { return h[UDPHeaderLen:] }
func (h UDP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(h, v) }
func (h UDP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(h[2:], v) }
func (h UDP) SetLen(n int)        { binary.BigEndian.PutUint16(h[4:], uint16(n)) }

// ClearChecksum writes 0 to the checksum: the datagram has none.
func (h UDP) ClearChecksum() { h[6], h[7] = 0, 0 }

// SetChecksum computes the checksum of the datagram h, whose pseudo-header has the sum pseudo, and puts it in place. If
// pseudo includes the sum of the bytes behind h, the checksum covers them, too. The length of h must then be even.
func (h UDP) SetChecksum(pseudo uint64) {
	h.ClearChecksum()
	PutChecksum(h[UDPChecksumAt:], Sum(h, pseudo), true)
}

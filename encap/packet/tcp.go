package packet

import "encoding/binary"

// Sizes of TCP headers, in bytes.
const (
	TCPHeaderLen  = 20 // without options
	TCPChecksumAt = 16 // offset of the checksum
)

// TCP flags (RFC 9293, section 3.1).
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
	FlagURG
	FlagECE // RFC 3168, section 6.1
	FlagCWR
)

// TCP is a view over a TCP segment (RFC 9293, section 3.1). Its methods need the first 20 bytes to be there.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|          Source Port          |       Destination Port        |  0
//	+-------------------------------+-------------------------------+
//	|                        Sequence Number                        |  4
//	+---------------------------------------------------------------+
//	|                    Acknowledgment Number                      |  8
//	+-------+-------+-+-+-+-+-+-+-+-+-------------------------------+
//	| Data  | Rsrvd |C|E|U|A|P|R|S|F|                               |
//	| Offset|       |W|C|R|C|S|S|Y|I|            Window             | 12
//	|       |       |R|E|G|K|H|T|N|N|                               |
//	+-------+-------+-+-+-+-+-+-+-+-+-------------------------------+
//	|           Checksum            |         Urgent Pointer        | 16
//	+-------------------------------+-------------------------------+
//	|                           Options                             | 20
//	+---------------------------------------------------------------+
type TCP []byte

func (h TCP) SrcPort() uint16     { return binary.BigEndian.Uint16(h) }
func (h TCP) DstPort() uint16     { return binary.BigEndian.Uint16(h[2:]) }
func (h TCP) Seq() uint32         { return binary.BigEndian.Uint32(h[4:]) }
func (h TCP) Ack() uint32         { return binary.BigEndian.Uint32(h[8:]) }
func (h TCP) HeaderLen() int      { return int(h[12]>>4) * 4 }
func (h TCP) Flags() uint8        { return h[13] }
func (h TCP) Window() uint16      { return binary.BigEndian.Uint16(h[14:]) }
func (h TCP) Checksum() uint16    { return binary.BigEndian.Uint16(h[TCPChecksumAt:]) }
func (h TCP) Options() []byte     { return h[TCPHeaderLen:h.HeaderLen()] }
func (h TCP) Payload() []byte     { return h[h.HeaderLen():] }
func (h TCP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(h, v) }
func (h TCP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(h[2:], v) }
func (h TCP) SetSeq(v uint32)     { binary.BigEndian.PutUint32(h[4:], v) }
func (h TCP) SetAck(v uint32)     { binary.BigEndian.PutUint32(h[8:], v) }
func (h TCP) SetHeaderLen(n int)  { h[12] = byte(n/4)<<4 | h[12]&0x0f }
func (h TCP) SetFlags(v uint8)    { h[13] = v }
func (h TCP) SetWindow(v uint16)  { binary.BigEndian.PutUint16(h[14:], v) }

// Reserved is the four bits between data offset and flags. Accurate ECN has one of them (RFC 9768).
func (h TCP) Reserved() uint8 { return h[12] & 0x0f }

// Ports is source and destination port as they stand in the header: equal for the packets of one connection.
func (h TCP) Ports() uint32 { return binary.BigEndian.Uint32(h) }

// ClearChecksum writes 0 to the checksum.
func (h TCP) ClearChecksum() { h[TCPChecksumAt], h[TCPChecksumAt+1] = 0, 0 }

// SetChecksum computes the checksum of the segment h, whose pseudo-header has the sum pseudo, and puts it in place.
func (h TCP) SetChecksum(pseudo uint64) {
	h.ClearChecksum()
	PutChecksum(h[TCPChecksumAt:], Sum(h, pseudo), false)
}

// SetPartialChecksum leaves the checksum to the kernel (Offload.Partial): in its place is the sum of the pseudo-header.
func (h TCP) SetPartialChecksum(pseudo uint64) {
	binary.BigEndian.PutUint16(h[TCPChecksumAt:], Fold(pseudo))
}

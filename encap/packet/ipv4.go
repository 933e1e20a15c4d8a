package packet

import (
	"encoding/binary"
	"net/netip"

	"vstun/encap/packet/drop"
)

// Protocol numbers (IANA) and sizes.
const (
	ProtoICMP = 1
	ProtoIPIP = 4
	ProtoTCP  = 6
	ProtoUDP  = 17
	ProtoGRE  = 47
	ProtoSCTP = 132

	IPv4HeaderLen = 20 // without options
	ipChecksumAt  = 10 // offset of the header's checksum
)

// Flags and offset of the fragment field.
const (
	flagDF     = 0x4000
	flagMF     = 0x2000
	fragOffset = 0x1fff
)

// IPv4 is a view over an IPv4 packet (RFC 791, section 3.1). Its methods need the first 20 bytes to be there.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-------+---------------+-------------------------------+
//	|Version|  IHL  |Type of Service|          Total Length         |  0
//	+-------+-------+---------------+-----+-------------------------+
//	|         Identification        |Flags|      Fragment Offset    |  4
//	+---------------+---------------+-----+-------------------------+
//	|  Time to Live |    Protocol   |         Header Checksum       |  8
//	+---------------+---------------+-------------------------------+
//	|                       Source Address                          | 12
//	+---------------------------------------------------------------+
//	|                    Destination Address                        | 16
//	+---------------------------------------------------------------+
//	|                    Options and Padding                        | 20
//	+---------------------------------------------------------------+
type IPv4 []byte

func (h IPv4) Version() int       { return int(h[0] >> 4) }
func (h IPv4) HeaderLen() int     { return int(h[0]&0x0f) * 4 }
func (h IPv4) TOS() byte          { return h[1] }
func (h IPv4) TotalLen() int      { return int(binary.BigEndian.Uint16(h[2:])) }
func (h IPv4) ID() uint16         { return binary.BigEndian.Uint16(h[4:]) }
func (h IPv4) DF() bool           { return h.frag()&flagDF != 0 }
func (h IPv4) Fragment() bool     { return h.frag()&(flagMF|fragOffset) != 0 }
func (h IPv4) TTL() byte          { return h[8] }
func (h IPv4) Protocol() byte     { return h[9] }
func (h IPv4) Src() netip.Addr    { return netip.AddrFrom4([4]byte(h[12:16])) }
func (h IPv4) Dst() netip.Addr    { return netip.AddrFrom4([4]byte(h[16:20])) }
func (h IPv4) Payload() []byte    { return h[h.HeaderLen():h.TotalLen()] }
func (h IPv4) SetTOS(v byte)      { h[1] = v }
func (h IPv4) SetTotalLen(n int)  { binary.BigEndian.PutUint16(h[2:], uint16(n)) }
func (h IPv4) SetID(v uint16)     { binary.BigEndian.PutUint16(h[4:], v) }
func (h IPv4) SetTTL(v byte)      { h[8] = v }
func (h IPv4) SetProtocol(v byte) { h[9] = v }

// Flags is the three flags, the reserved one, DF and MF, as a number.
func (h IPv4) Flags() byte { return h[6] >> 5 }

// More reports whether more fragments of the packet follow: flag MF.
func (h IPv4) More() bool { return h.frag()&flagMF != 0 }

// FragOffset is the offset of a fragment's data in the data of the whole packet, in bytes.
func (h IPv4) FragOffset() int { return int(h.frag()&fragOffset) * 8 }

// SetSrc writes the source.
func (h IPv4) SetSrc(a [4]byte) { copy(h[12:16], a[:]) }

// SetDF sets or clears the flag DF.
func (h IPv4) SetDF(df bool) {
	var bit byte
	if df {
		bit = flagDF >> 8
	}
	h[6] = h[6]&^(flagDF>>8) | bit
}

// SetFragment makes h the header of a fragment, or of a whole packet if offset is 0 and more is false. offset is in
// bytes, a multiple of 8. DF is cleared.
func (h IPv4) SetFragment(offset int, more bool) {
	field := uint16(offset / 8)
	if more {
		field |= flagMF
	}
	binary.BigEndian.PutUint16(h[6:], field)
}

// Addrs is source and destination as they stand in the header.
func (h IPv4) Addrs() []byte { return h[12:20] }

// PseudoSum is the sum of the pseudo-header of a TCP or UDP packet over IPv4 (RFC 9293, section 3.1): n is the length
// of the transport header with its payload, in bytes. It is folded, so that a little more may be added to it.
func (h IPv4) PseudoSum(n int) uint64 { return uint64(Fold(Sum(h[12:20], uint64(h[9])+uint64(n)))) }

// frag is flags and offset as they stand in the header: the offset counts units of 8 bytes.
func (h IPv4) frag() uint16 { return binary.BigEndian.Uint16(h[6:]) }

// ClearChecksum writes 0 to the checksum.
func (h IPv4) ClearChecksum() { h[10], h[11] = 0, 0 }

// SetChecksum computes the header's checksum and puts it in place.
func (h IPv4) SetChecksum() {
	h.ClearChecksum()
	binary.BigEndian.PutUint16(h[10:], Checksum(h[:h.HeaderLen()]))
}

// Check reports whether h holds one whole IPv4 packet with a right header: version, lengths, checksum, and no source
// route. The packet may be shorter than h (a link's padding); it is never longer.
func (h IPv4) Check() drop.Reason {
	if len(h) < IPv4HeaderLen {
		return drop.Truncated
	}
	if h.Version() != 4 {
		return drop.NotIPv4
	}
	n := h.HeaderLen()
	if n < IPv4HeaderLen || h.TotalLen() < n {
		return drop.BadHeader
	}
	if h.TotalLen() > len(h) {
		return drop.Truncated
	}
	if Fold(Sum(h[:n], 0)) != 0xffff {
		return drop.BadChecksum
	}
	if n > IPv4HeaderLen {
		return h.checkOptions()
	}
	return drop.Accept
}

// checkOptions walks the options (RFC 791, section 3.1) and refuses source routes, with which a sender would choose the
// path.
func (h IPv4) checkOptions() drop.Reason {
	const end, nop, looseRoute, strictRoute = 0, 1, 131, 137
	for o := h[IPv4HeaderLen:h.HeaderLen()]; len(o) > 0; {
		switch o[0] {
		case end:
			return drop.Accept
		case nop:
			o = o[1:]
			continue
		case looseRoute, strictRoute:
			return drop.SourceRoute
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return drop.BadHeader
		}
		o = o[o[1]:]
	}
	return drop.Accept
}

// IPv4Fields is the fields of an IPv4 header that Encode takes from its caller.
type IPv4Fields struct {
	TOS           byte
	TotalLen      int // of the packet, in bytes
	TTL, Protocol byte
	Src, Dst      [4]byte
}

// Encode writes a header without options, ID or flags, with its checksum, to the front of h.
func (h IPv4) Encode(f IPv4Fields) {
	h[0], h[1] = 0x45, f.TOS
	h.SetTotalLen(f.TotalLen)
	binary.BigEndian.PutUint32(h[4:], 0)
	h[8], h[9] = f.TTL, f.Protocol
	copy(h[12:16], f.Src[:])
	copy(h[16:20], f.Dst[:])
	h.SetChecksum()
}

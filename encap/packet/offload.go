package packet

import "vstun/encap/packet/drop"

// GSO is the kind of a GSO packet.
type GSO uint8

const (
	GSONone    GSO = iota
	GSOTCP         // segments of one TCP connection
	GSOUDP         // datagrams of one UDP flow
	GSOUnknown     // another kind, which the reader has not enabled
)

// Offload is the work that is left to do in a packet: left by the kernel in a packet that was read, or left to the
// kernel in a packet to write. The zero value is a complete packet.
type Offload struct {
	GSO        GSO
	Size       uint16 // bytes of payload in each segment but the last
	Partial    bool   // the transport checksum is the sum of the pseudo-header only
	CsumStart  uint16 // offset from which the checksum is computed
	CsumOffset uint16 // offset of the checksum from there
}

// Finish computes the transport checksum that the kernel left unfinished. It returns drop.Offload if the checksum field
// lies outside the packet.
func (b *Buf) Finish() drop.Reason {
	o := &b.Offload
	if !o.Partial {
		return drop.Accept
	}
	p := b.Bytes()
	start, at := int(o.CsumStart), int(o.CsumStart)+int(o.CsumOffset)
	if start > len(p) || at+2 > len(p) {
		return drop.Offload
	}
	PutChecksum(p[at:], Sum(p[start:], 0), o.CsumOffset == UDPChecksumAt)
	o.Partial = false
	return drop.Accept
}

// Misplaced reports whether the unfinished checksum is not the one of the transport header that p describes. Finish
// would then change bytes that were checked before. The sender chooses the place, and can be a hostile guest on the
// same machine. A checksum inside a datagram, behind all checked headers, is not misplaced: it belongs to a packet in a
// client's own tunnel.
func (o *Offload) Misplaced(p *Info) bool {
	if !o.Partial {
		return false
	}
	at := uint16(TCPChecksumAt)
	switch p.Flow.Proto {
	case ProtoTCP:
	case ProtoUDP:
		if o.GSO == GSONone && int(o.CsumStart) >= p.Offset+UDPHeaderLen {
			return false
		}
		at = UDPChecksumAt
	default:
		return true
	}
	return int(o.CsumStart) != p.Offset || o.CsumOffset != at
}

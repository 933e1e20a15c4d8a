package packet

import "vstun/encap/packet/drop"

// GSO is the kind of a GSO packet.
type GSO uint8

const (
	GSONone    GSO = iota
	GSOTCP         // segments of one TCP connection
	GSOUDP         // datagrams of one UDP flow
	GSOUnknown     // another kind, which the reader did not ask the kernel for
)

// Offload is what the kernel has left to do in a packet that it gave us, or what it has to do in a packet that we give
// it. The zero value is a packet that is complete.
type Offload struct {
	GSO        GSO
	Size       uint16 // bytes of payload in each segment but the last
	Partial    bool   // the transport checksum is the sum of the pseudo-header only
	CsumStart  uint16 // offset from which the checksum is computed
	CsumOffset uint16 // offset of the checksum from there
}

// Finish computes the transport checksum that the kernel left to us. It returns drop.Offload if that lies outside the
// packet.
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

// Misplaced reports whether the checksum that is left to us is not the one in the packet's transport header, which p
// has found: to compute it would change bytes that were checked already. The sender chooses its place, and can be a
// hostile host on the same machine. A checksum inside a datagram, behind all headers that were checked, is not
// misplaced: it belongs to a packet in a tunnel of the client's.
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

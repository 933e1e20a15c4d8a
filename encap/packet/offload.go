package packet

import (
	"encoding/binary"

	"vstun/encap/packet/drop"
)

// GSO is the kind of a super-packet: one packet that stands for several with the same headers.
type GSO uint8

const (
	GSONone    GSO = iota
	GSOTCP         // segments of one TCP connection
	GSOUDP         // datagrams of one UDP flow
	GSOUnknown     // of a kind that nobody asked the kernel for
)

// Offload is what the kernel has left to do in a packet that it gave us, and may have to do in one that we give it
// (struct virtio_net_hdr, linux/virtio_net.h). The zero value is a packet that is complete.
type Offload struct {
	GSO        GSO
	Size       uint16 // bytes of payload in each segment but the last
	Partial    bool   // the transport checksum holds the sum of the pseudo-header only
	CsumStart  uint16 // offset from which the checksum is computed
	CsumOffset uint16 // offset of the checksum from there
}

// VnetLen is the length of a struct virtio_net_hdr in its oldest form, in bytes.
const VnetLen = 10

// Flags and types of struct virtio_net_hdr.
const (
	vnetNeedsCsum = 1
	vnetNone      = 0
	vnetTCPv4     = 1
	vnetTCPv6     = 4
	vnetUDPL4     = 5
	vnetECN       = 0x80
)

// TakeVnet reads the struct virtio_net_hdr that stands before b's packet, in host order, into b.Offload.
func (b *Buf) TakeVnet() {
	h := b.mem[b.off-VnetLen : b.off]
	o := Offload{}
	switch h[1] &^ vnetECN {
	case vnetNone:
	case vnetTCPv4, vnetTCPv6:
		o.GSO = GSOTCP
	case vnetUDPL4:
		o.GSO = GSOUDP
	default:
		o.GSO = GSOUnknown
	}
	if o.GSO != GSONone {
		o.Size = binary.NativeEndian.Uint16(h[4:])
	}
	if h[0]&vnetNeedsCsum != 0 {
		o.Partial = true
		o.CsumStart, o.CsumOffset = binary.NativeEndian.Uint16(h[6:]), binary.NativeEndian.Uint16(h[8:])
	}
	b.Offload = o
}

// PutVnet writes the struct virtio_net_hdr for b.Offload to h.
func (b *Buf) PutVnet(h *[VnetLen]byte) {
	clear(h[:])
	o := &b.Offload
	if o.GSO != GSONone {
		h[1] = vnetTCPv4
		header := 20
		if b.mem[b.off]>>4 == 6 {
			h[1] = vnetTCPv6
		}
		if o.GSO == GSOUDP {
			h[1], header = vnetUDPL4, 8
		} else if start := b.off + int(o.CsumStart) + 12; start < b.end {
			header = int(b.mem[start]>>4) * 4
		}
		binary.NativeEndian.PutUint16(h[2:], o.CsumStart+uint16(header))
		binary.NativeEndian.PutUint16(h[4:], o.Size)
	}
	if o.Partial {
		h[0] = vnetNeedsCsum
		binary.NativeEndian.PutUint16(h[6:], o.CsumStart)
		binary.NativeEndian.PutUint16(h[8:], o.CsumOffset)
	}
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

// Misplaced reports whether the checksum that is left to us is another one than that of the packet's transport header,
// which p has found: to compute it would change what has been looked at. Who may set it, a host on the same machine for
// one, is not to be trusted with that. One inside a datagram, behind all that was looked at, is none of these: it is
// that of a packet in a tunnel of the client's.
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

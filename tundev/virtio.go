package tundev

import (
	"encoding/binary"

	"vstun/encap/packet"
)

// vnetLen is the length of a struct virtio_net_hdr in its oldest form, in bytes.
const vnetLen = 10

// Flags and GSO types of a vnetHeader.
const (
	vnetNeedsCsum = 1
	vnetNone      = 0
	vnetTCPv4     = 1
	vnetTCPv6     = 4
	vnetUDPL4     = 5
	vnetECN       = 0x80
)

// vnetHeader is a struct virtio_net_hdr (linux/virtio_net.h), which stands before each packet of a device with
// IFF_VNET_HDR. Numbers are in host order.
//
//	bytes  1       1          2         2          2            2
//	       flags │ GSO type │ hdr_len │ gso_size │ csum_start │ csum_offset
type vnetHeader [vnetLen]byte

// offload returns the work that the kernel has left to do, by the header.
func (h *vnetHeader) offload() (o packet.Offload) {
	switch h[1] &^ vnetECN {
	case vnetNone:
	case vnetTCPv4, vnetTCPv6:
		o.GSO = packet.GSOTCP
	case vnetUDPL4:
		o.GSO = packet.GSOUDP
	default:
		o.GSO = packet.GSOUnknown
	}
	if o.GSO != packet.GSONone {
		o.Size = binary.NativeEndian.Uint16(h[4:])
	}
	if h[0]&vnetNeedsCsum != 0 {
		o.Partial = true
		o.CsumStart, o.CsumOffset = binary.NativeEndian.Uint16(h[6:]), binary.NativeEndian.Uint16(h[8:])
	}
	return o
}

// encode writes the header for the packet in b: the work that the kernel has to do.
func (h *vnetHeader) encode(b *packet.Buf) {
	clear(h[:])
	o := &b.Offload
	if o.GSO != packet.GSONone {
		p, header := b.Bytes(), packet.TCPHeaderLen
		h[1] = vnetTCPv4
		if packet.Version(p) == 6 {
			h[1] = vnetTCPv6
		}
		if o.GSO == packet.GSOUDP {
			h[1], header = vnetUDPL4, packet.UDPHeaderLen
		} else if t := int(o.CsumStart); t+packet.TCPHeaderLen <= len(p) {
			header = packet.TCP(p[t:]).HeaderLen()
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

package packet

import "encoding/binary"

// VirtioLen is the length of a struct virtio_net_hdr in its oldest form, in bytes.
const VirtioLen = 10

// Flags and GSO types of a VirtioHeader.
const (
	VirtioNeedsCsum = 1
	virtioNone      = 0
	VirtioTCPv4     = 1
	VirtioTCPv6     = 4
	VirtioUDPL4     = 5
	VirtioECN       = 0x80 // a flag of the TCP types: the packet has CWR, which only its first segment keeps
)

// VirtioHeader is a struct virtio_net_hdr (linux/virtio_net.h), which stands before each packet of a TUN device with
// IFF_VNET_HDR and of a packet socket with PACKET_VNET_HDR. Numbers are in host order.
//
//	bytes  1       1          2         2          2            2
//	       flags │ GSO type │ hdr_len │ gso_size │ csum_start │ csum_offset
type VirtioHeader [VirtioLen]byte

// Offload returns the work that the kernel has left to do, by the header.
func (h *VirtioHeader) Offload() (o Offload) {
	switch h[1] &^ VirtioECN {
	case virtioNone:
	case VirtioTCPv4, VirtioTCPv6:
		o.GSO = GSOTCP
	case VirtioUDPL4:
		o.GSO = GSOUDP
	default:
		o.GSO = GSOUnknown
	}
	if o.GSO != GSONone {
		o.Size = binary.NativeEndian.Uint16(h[4:])
	}
	if h[0]&VirtioNeedsCsum != 0 {
		o.Partial = true
		o.CsumStart, o.CsumOffset = binary.NativeEndian.Uint16(h[6:]), binary.NativeEndian.Uint16(h[8:])
	}
	return o
}

// Encode writes the header for the packet in b: the work that the kernel has to do. link is the length of the
// link-layer header between the two.
func (h *VirtioHeader) Encode(b *Buf, link int) {
	clear(h[:])
	o := &b.Offload
	if o.GSO != GSONone {
		p, header := b.Bytes(), TCPHeaderLen
		h[1] = VirtioTCPv4
		if Version(p) == 6 {
			h[1] = VirtioTCPv6
		}
		if o.GSO == GSOUDP {
			h[1], header = VirtioUDPL4, UDPHeaderLen
		} else if t := int(o.CsumStart); o.Partial && t+TCPHeaderLen <= len(p) {
			header = TCP(p[t:]).HeaderLen()
			if TCP(p[t:]).Flags()&FlagCWR != 0 { // as in Linux net/ipv4/tcp_offload.c, tcp_gro_complete
				h[1] |= VirtioECN
			}
		}
		binary.NativeEndian.PutUint16(h[2:], uint16(link)+o.CsumStart+uint16(header))
		binary.NativeEndian.PutUint16(h[4:], o.Size)
	}
	if o.Partial {
		h[0] = VirtioNeedsCsum
		binary.NativeEndian.PutUint16(h[6:], uint16(link)+o.CsumStart)
		binary.NativeEndian.PutUint16(h[8:], o.CsumOffset)
	}
}

package wire

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/wire/pollfd"
)

// LinkSender sends whole IPv4 and IPv6 packets to the link-layer addresses of neighbours (packet(7)). GSO packets leave
// whole, and unfinished checksums are left to the network card (PACKET_VNET_HDR). One socket, which is bound to no
// device, serves all devices. It is an egress.Port for hops of Kind Link. One goroutine uses it.
type LinkSender struct {
	msgs  mmsg
	iovs  [Batch][3]unix.Iovec
	names [Batch]unix.RawSockaddrLinklayer
	heads [Batch]linkHead
}

// linkHead is the front of a message: struct virtio_net_hdr and the Ethernet header.
type linkHead struct {
	vnet packet.VirtioHeader
	link [packet.EthernetHeaderLen]byte
}

// ErrNoPacketSockets is the error of NewLinkSender if there are no packet sockets.
var ErrNoPacketSockets = errors.New("no packet sockets: the kernel lacks CONFIG_PACKET, or the program's unit does " +
	"not allow AF_PACKET (RestrictAddressFamilies)")

// NewLinkSender opens the socket. Its protocol is 0, so it receives nothing. It needs CAP_NET_RAW.
func NewLinkSender() (*LinkSender, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, ErrNoPacketSockets
	}
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", advise(err))
	}
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket: PACKET_VNET_HDR: %w", err)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", advise(err))
	}
	s := &LinkSender{msgs: mmsg{fd: f, trap: unix.SYS_SENDMMSG, events: unix.POLLOUT, hdrs: make([]mmsghdr, Batch)}}
	for i := range s.msgs.hdrs {
		s.names[i].Family, s.names[i].Halen = unix.AF_PACKET, 6
		h, head := &s.msgs.hdrs[i].hdr, &s.heads[i]
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), unix.SizeofSockaddrLinklayer
		h.Iov = &s.iovs[i][0]
		s.iovs[i][0].Base = (*byte)(unsafe.Pointer(head))
		s.iovs[i][0].SetLen(int(unsafe.Sizeof(*head)))
	}
	return s, nil
}

// Send sends the first packets of out in order to their hops' MAC addresses, and returns how many it sent: at most
// Batch. It changes no byte of them. If the kernel refuses a packet, Send has sent the ones before it. The next call
// that begins with this packet returns 0 and its error, an unwrapped unix.Errno: EMSGSIZE for a packet that is larger
// than the device's MTU and no GSO packet, ENXIO for a device that does not exist any more, ENETDOWN for one that is
// down, ENOBUFS if the device's queue is full. Send waits while the socket is full. It returns os.ErrClosed after
// Close.
func (s *LinkSender) Send(out []egress.Outgoing) (int, error) {
	out = out[:min(len(out), Batch)]
	for i := range out {
		p, head, name := &out[i], &s.heads[i], &s.names[i]
		if p.Buf != nil {
			head.vnet.Encode(p.Buf, packet.EthernetHeaderLen)
		} else {
			head.vnet = packet.VirtioHeader{}
		}
		protocol := packet.EtherType(packet.Version(p.Head))
		link := packet.Ethernet(head.link[:])
		link.SetDst(p.To.MAC)
		link.SetSrc(p.To.OwnMAC)
		link.SetType(protocol)
		name.Protocol, name.Ifindex = protocol<<8|protocol>>8, int32(p.To.Device)
		*(*[6]byte)(name.Addr[:]) = p.To.MAC
		iov := &s.iovs[i]
		iov[1].Base = &p.Head[0]
		iov[1].SetLen(len(p.Head))
		h := &s.msgs.hdrs[i].hdr
		h.SetIovlen(2)
		if len(p.Body) > 0 {
			iov[2].Base = &p.Body[0]
			iov[2].SetLen(len(p.Body))
			h.SetIovlen(3)
		}
	}
	return s.msgs.do(len(out))
}

// SetPriority is Sender.SetPriority.
func (s *LinkSender) SetPriority(priority int) error { return setPriority(s.msgs.fd, priority) }

// Close closes the socket; a Send that waits returns.
func (s *LinkSender) Close() error { return s.msgs.fd.Close() }

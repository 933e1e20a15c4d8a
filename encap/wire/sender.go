package wire

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/pollfd"
)

// Batch is the largest number of packets in one system call.
const Batch = 64

// sendBuffer is the room that a sender's socket asks for, in bytes: bursts wait there and not in the TUN device.
const sendBuffer = 4 << 20

// Sender sends whole IPv4 packets to where their own headers say. One goroutine uses it.
type Sender struct {
	fd    *pollfd.FD
	msgs  mmsg
	addrs [Batch]unix.RawSockaddrInet4
	iovs  [Batch][2]unix.Iovec
}

// NewSender opens a raw socket that sends and, as it has the protocol IPPROTO_RAW, receives nothing. It needs CAP_NET_RAW.
func NewSender() (*Sender, error) {
	fd, err := openRaw(unix.IPPROTO_RAW, func(fd int) error {
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s := &Sender{fd: fd, msgs: mmsg{fd: fd, trap: unix.SYS_SENDMMSG, events: unix.POLLOUT, hdrs: make([]mmsghdr, Batch)}}
	for i := range s.msgs.hdrs {
		s.addrs[i].Family = unix.AF_INET
		h := &s.msgs.hdrs[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.addrs[i])), unix.SizeofSockaddrInet4
		h.Iov = &s.iovs[i][0]
	}
	return s, nil
}

// Send sends the packets of segs, the first Batch of them at the most, in their order, and returns how many went out. The kernel fills in
// total length, checksum, an ID of 0 and a source of 0. When a packet is refused, the ones before it have gone out, and the next call
// that begins with it returns 0 and its error: EMSGSIZE where it is larger than the link's MTU. Send waits while the socket is full; it
// returns os.ErrClosed after Close.
func (s *Sender) Send(segs []packet.Segment) (int, error) {
	n := min(len(segs), Batch)
	for i := range segs[:n] {
		seg := &segs[i]
		copy(s.addrs[i].Addr[:], seg.Head[16:20])
		iov := &s.iovs[i]
		iov[0].Base = &seg.Head[0]
		iov[0].SetLen(len(seg.Head))
		h := &s.msgs.hdrs[i].hdr
		h.SetIovlen(1)
		if len(seg.Body) > 0 {
			iov[1].Base = &seg.Body[0]
			iov[1].SetLen(len(seg.Body))
			h.SetIovlen(2)
		}
	}
	return s.msgs.do(n)
}

// Close closes the socket; a Send that waits returns.
func (s *Sender) Close() error { return s.fd.Close() }

// openRaw opens a raw IPv4 socket that gives and takes whole packets. setup is called before packets can be missed for its sake.
func openRaw(protocol int, setup func(fd int) error) (*pollfd.FD, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("raw socket of protocol %d: %w: run as root, or with CAP_NET_RAW", protocol, err)
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_HDRINCL, 1); err == nil {
		err = setup(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("raw socket of protocol %d: %w", protocol, err)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return nil, fmt.Errorf("raw socket of protocol %d: %w", protocol, err)
	}
	return f, nil
}

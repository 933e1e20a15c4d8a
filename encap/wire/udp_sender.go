package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/pollfd"
)

// UDPSender sends the segments of super-packets, wrapped in UDP, by one system call for many (UDP_SEGMENT, Linux net/ipv4/udp.c,
// udp_send_skb): they stay one packet in the kernel until the network card, or all the way on a virtual network. It has some sockets, so that flows have
// different source ports. One goroutine uses it.
type UDPSender struct {
	fds     []*pollfd.FD
	ports   []uint16
	to      unix.RawSockaddrInet4
	hdr     unix.Msghdr
	iovs    [2 * maxSegments]unix.Iovec
	control [3][unix.SizeofCmsghdr + 8]byte // control messages: the segments' size, TOS, TTL
}

const (
	maxSegments = 64    // of one call: UDP_MAX_SEGMENTS of kernels before 6.9
	maxPayload  = 65507 // bytes of one call
)

// NewUDPSender opens n sockets. They receive nothing.
func NewUDPSender(n int) (_ *UDPSender, err error) {
	s := &UDPSender{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("UDP socket: %w", err), s.Close())
		}
	}()
	for range n {
		fd, port, err := openUDP()
		if err != nil {
			return nil, err
		}
		s.fds, s.ports = append(s.fds, fd), append(s.ports, port)
	}
	s.to.Family = unix.AF_INET
	s.hdr.Name, s.hdr.Namelen = (*byte)(unsafe.Pointer(&s.to)), unix.SizeofSockaddrInet4
	s.hdr.Iov = &s.iovs[0]
	s.hdr.Control = &s.control[0][0]
	s.hdr.SetControllen(int(unsafe.Sizeof(s.control)))
	for i, kind := range []struct{ level, name, size int32 }{{unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2}, {unix.IPPROTO_IP, unix.IP_TOS, 4}, {unix.IPPROTO_IP, unix.IP_TTL, 4}} {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&s.control[i]))
		c.Level, c.Type = kind.level, kind.name
		c.SetLen(unix.SizeofCmsghdr + int(kind.size))
	}
	return s, nil
}

// openUDP opens a socket on a port that the kernel chooses, which sends with DF and takes the kernel's word for the way's MTU.
func openUDP() (_ *pollfd.FD, port uint16, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	var name unix.Sockaddr
	for _, step := range []func() error{
		func() error { return filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}) },
		func() error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		},
		func() error { return unix.Bind(fd, &unix.SockaddrInet4{}) },
		func() (err error) { name, err = unix.Getsockname(fd); return err },
	} {
		if err := step(); err != nil {
			unix.Close(fd)
			return nil, 0, err
		}
	}
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	f, err := pollfd.New(fd)
	return f, uint16(name.(*unix.SockaddrInet4).Port), err
}

// Ports are the sockets' source ports.
func (s *UDPSender) Ports() []uint16 { return s.ports }

// Send sends the first packets of segs, which are wrapped in IPv4 without options and UDP, from one of Ports, to one destination, and of one size but
// for the last, and returns how many went out. The kernel makes the IP and UDP headers: of
// those in the packets only TOS, TTL, destination and ports count. An
// error is about all of them; os.ErrClosed after Close.
func (s *UDPSender) Send(segs []packet.Segment) (int, error) {
	const headers = packet.IPv4HeaderLen + 8
	first := segs[0].Head
	port := binary.BigEndian.Uint16(first[packet.IPv4HeaderLen:])
	var f *pollfd.FD
	for i, p := range s.ports {
		if p == port {
			f = s.fds[i]
		}
	}
	if f == nil {
		return 0, fmt.Errorf("UDP port %d is none of ours", port)
	}
	copy(s.to.Addr[:], first[16:20])
	*(*[2]byte)(unsafe.Pointer(&s.to.Port)) = [2]byte(first[packet.IPv4HeaderLen+2:])
	size := segs[0].Len() - headers
	binary.NativeEndian.PutUint16(s.control[0][unix.SizeofCmsghdr:], uint16(size))
	binary.NativeEndian.PutUint32(s.control[1][unix.SizeofCmsghdr:], uint32(first[1]))
	binary.NativeEndian.PutUint32(s.control[2][unix.SizeofCmsghdr:], uint32(max(first[8], 1)))
	n, iovs := 0, 0
	for n < len(segs) && n < maxSegments && (n+1)*size <= maxPayload {
		seg := &segs[n]
		head := seg.Head[headers:]
		s.iovs[iovs].Base = &head[0]
		s.iovs[iovs].SetLen(len(head))
		iovs++
		if len(seg.Body) > 0 {
			s.iovs[iovs].Base = &seg.Body[0]
			s.iovs[iovs].SetLen(len(seg.Body))
			iovs++
		}
		n++
	}
	s.hdr.SetIovlen(iovs)
	return n, s.send(f)
}

func (s *UDPSender) send(f *pollfd.FD) error {
	fd, err := f.Acquire()
	if err != nil {
		return err
	}
	defer f.Release()
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.hdr)), unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			if err := f.Wait(unix.POLLOUT); err != nil {
				return err
			}
		default:
			return errno
		}
	}
}

// Close closes the sockets.
func (s *UDPSender) Close() error {
	var errs []error
	for _, f := range s.fds {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

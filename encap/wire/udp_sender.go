package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/wire/pollfd"
)

// UDPSender sends several UDP packets by one system call (UDP_SEGMENT, Linux net/ipv4/udp.c, udp_send_skb). They stay
// one packet in the kernel until the network card, or all the way on a virtual network. It has several sockets, so that
// flows have different source ports. Each socket sends over IPv4 and IPv6. One goroutine uses it.
type UDPSender struct {
	fds   []*pollfd.FD
	ports []uint16
	iovs  [2 * maxSegments]unix.Iovec
	four  udpCall
	six   udpCall
	able  bool // the kernel has UDP_SEGMENT
}

const (
	maxSegments = 64    // of one call: UDP_MAX_SEGMENTS of kernels before 6.9
	maxPayload  = 65507 // bytes of one call
)

// udpCall is the call for one IP version.
type udpCall struct {
	hdr     unix.Msghdr
	name    [unix.SizeofSockaddrInet6]byte // destination: struct sockaddr_in or sockaddr_in6
	dst     []byte                         // the address in name
	control [128]byte                      // control messages, which contain:
	size    []byte                         // size of the segments: 2 bytes
	class   []byte                         // TOS or traffic class: 4 bytes
	ttl     []byte                         // or hop limit: 4 bytes
	src     []byte                         // source address; 0: the kernel's route has it
}

// NewUDPSender opens n sockets. They receive nothing.
func NewUDPSender(n int) (*UDPSender, error) {
	s, err := newUDPSender(n, unix.AF_INET6)
	if errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		return newUDPSender(n, unix.AF_INET)
	}
	return s, err
}

// newUDPSender opens sockets of family. Sockets of AF_INET do not send over IPv6.
func newUDPSender(n, family int) (_ *UDPSender, err error) {
	s := &UDPSender{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("UDP socket: %w", advise(err)), s.Close())
		}
	}()
	for range n {
		fd, port, err := openUDP(family)
		if err != nil {
			return nil, err
		}
		s.fds, s.ports = append(s.fds, fd), append(s.ports, port)
	}
	s.able = segments(s.fds[0])
	if family == unix.AF_INET6 {
		s.six.init(s, family, 8, unix.SizeofSockaddrInet6)
		s.six.fields(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.IPV6_HOPLIMIT)
		s.six.src = s.six.add(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)[:16]
		s.four.init(s, family, 8+12, unix.SizeofSockaddrInet6)
		copy(s.four.name[8+10:], []byte{0xff, 0xff}) // an IPv4-mapped address
	} else {
		s.four.init(s, family, 4, unix.SizeofSockaddrInet4)
	}
	s.four.fields(unix.IPPROTO_IP, unix.IP_TOS, unix.IP_TTL)
	s.four.src = s.four.add(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:8]
	return s, nil
}

// segments reports whether the kernel has UDP_SEGMENT, as Linux does since 4.18. An older kernel ignores UDP_SEGMENT
// and sends all segments as one datagram.
func segments(f *pollfd.FD) bool {
	fd, err := f.Acquire()
	if err != nil {
		return false
	}
	defer f.Release()
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0) == nil
}

// init makes a call on sockets of family; at is the place of the address in its name.
func (c *udpCall) init(s *UDPSender, family, at, namelen int) {
	binary.NativeEndian.PutUint16(c.name[:], uint16(family))
	c.dst = c.name[at:namelen]
	c.hdr.Name, c.hdr.Namelen = &c.name[0], uint32(namelen)
	c.hdr.Iov = &s.iovs[0]
	c.hdr.Control = &c.control[0]
}

// fields adds the control messages that both IP versions have: segment size, class and TTL.
func (c *udpCall) fields(level, class, ttl int32) {
	c.size = c.add(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	c.class = c.add(level, class, 4)
	c.ttl = c.add(level, ttl, 4)
}

// add adds a control message, and returns its n bytes.
func (c *udpCall) add(level, name int32, n int) []byte {
	at := int(c.hdr.Controllen)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.control[at]))
	h.Level, h.Type = level, name
	h.SetLen(unix.CmsgLen(n))
	c.hdr.SetControllen(at + unix.CmsgSpace(n))
	return c.control[at+unix.CmsgLen(0):][:n]
}

// openUDP opens a socket on a port that the kernel chooses. The socket sends with DF and respects the path MTU that the
// kernel has learned. A socket of AF_INET6 also sends over IPv4.
func openUDP(family int) (_ *pollfd.FD, port uint16, err error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	set := func(level, name, value int) func() error {
		return func() error { return unix.SetsockoptInt(fd, level, name, value) }
	}
	steps := []func() error{
		func() error { return filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}) },
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
	}
	var anywhere unix.Sockaddr = &unix.SockaddrInet4{}
	if family == unix.AF_INET6 {
		anywhere = &unix.SockaddrInet6{}
		steps = append(steps, set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0), set(unix.IPPROTO_IPV6,
			unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO))
	}
	var name unix.Sockaddr
	steps = append(steps,
		func() error { return unix.Bind(fd, anywhere) },
		func() (err error) { name, err = unix.Getsockname(fd); return err })
	for _, step := range steps {
		if err := step(); err != nil {
			unix.Close(fd)
			return nil, 0, err
		}
	}
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	f, err := pollfd.New(fd)
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		port = uint16(name.Port)
	case *unix.SockaddrInet6:
		port = uint16(name.Port)
	}
	return f, port, err
}

// Ports are the sockets' source ports.
func (s *UDPSender) Ports() []uint16 { return s.ports }

// Send sends the first packets of out, and returns how many it sent. The packets have the Kind egress.UDP, neither IP
// options nor extension headers, a source port of Ports, and the same five-tuple, class and TTL. They have the same
// size, except that the last may be smaller. The kernel makes the IP and UDP headers from their Hop. It always computes
// the UDP checksum: UDP_SEGMENT requires it. An error applies to all packets. It is an unwrapped unix.Errno: EOPNOTSUPP
// from a kernel without UDP_SEGMENT, EIO if the path's device does not allow it. Send returns os.ErrClosed after Close.
func (s *UDPSender) Send(out []egress.Outgoing) (int, error) {
	if !s.able {
		return 0, unix.EOPNOTSUPP
	}
	h, c, headers := &out[0].Hop, &s.four, packet.IPv4HeaderLen+packet.UDPHeaderLen
	if h.To.Dst.Is6() {
		if s.six.hdr.Name == nil {
			return 0, unix.EAFNOSUPPORT
		}
		c, headers = &s.six, packet.IPv6HeaderLen+packet.UDPHeaderLen
	}
	f := s.socket(h.SrcPort)
	if f == nil {
		return 0, fmt.Errorf("UDP port %d is none of ours", h.SrcPort)
	}
	putAddr(c.src, h.To.Src)
	putAddr(c.dst, h.To.Dst)
	binary.BigEndian.PutUint16(c.name[2:], h.To.DstPort)
	size := out[0].Len() - headers
	binary.NativeEndian.PutUint16(c.size, uint16(size))
	binary.NativeEndian.PutUint32(c.class, uint32(h.Class))
	binary.NativeEndian.PutUint32(c.ttl, uint32(max(h.TTL, 1)))
	n, iovs := 0, 0
	for n < len(out) && n < maxSegments && (n+1)*size <= maxPayload {
		p := &out[n]
		head := p.Head[headers:]
		s.iovs[iovs].Base = &head[0]
		s.iovs[iovs].SetLen(len(head))
		iovs++
		if len(p.Body) > 0 {
			s.iovs[iovs].Base = &p.Body[0]
			s.iovs[iovs].SetLen(len(p.Body))
			iovs++
		}
		n++
	}
	c.hdr.SetIovlen(iovs)
	return n, c.send(f)
}

// socket returns the socket with a source port, or nil.
func (s *UDPSender) socket(port uint16) *pollfd.FD {
	for i, p := range s.ports {
		if p == port {
			return s.fds[i]
		}
	}
	return nil
}

func (c *udpCall) send(f *pollfd.FD) error {
	fd, err := f.Acquire()
	if err != nil {
		return err
	}
	defer f.Release()
	return sendmsg(f, fd, &c.hdr)
}

// Close closes the sockets.
func (s *UDPSender) Close() error {
	var errs []error
	for _, f := range s.fds {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

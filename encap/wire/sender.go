package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/wire/pollfd"
)

// Batch is the largest number of packets in one system call.
const Batch = 64

// sendBuffer is the socket buffer that a sender requests, in bytes. It holds bursts, which would otherwise wait in the
// TUN device.
const sendBuffer = 4 << 20

// Sender sends whole IPv4 and IPv6 packets to their hops' destinations. It is an egress.Port. One goroutine uses it.
type Sender struct {
	four *rawSender
	six  *rawSender // nil: the kernel has no IPv6
}

// NewSender opens raw sockets for sending. Their protocol is IPPROTO_RAW, so they receive nothing. It needs
// CAP_NET_RAW.
func NewSender() (*Sender, error) { return newSender(false) }

// NewAnswerSender is NewSender for packets whose sources are addresses of this host. The kernel routes each packet by
// its source, too, as it routes its own sockets' packets.
func NewAnswerSender() (*Sender, error) { return newSender(true) }

func newSender(bySource bool) (*Sender, error) {
	four, err := newRawSender(unix.AF_INET, bySource)
	if err != nil {
		return nil, err
	}
	six, err := newRawSender(unix.AF_INET6, bySource)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, errors.Join(err, four.fd.Close())
	}
	return &Sender{four, six}, nil
}

// Share returns a Sender for another goroutine, by the same sockets. It needs no capability. Closing either one closes
// both.
func (s *Sender) Share() *Sender {
	shared := &Sender{four: newCalls(s.four.fd, unix.AF_INET, s.four.bySource)}
	if s.six != nil {
		shared.six = newCalls(s.six.fd, unix.AF_INET6, s.six.bySource)
	}
	return shared
}

// Send sends the first packets of out in order, and returns how many it sent: at most Batch, all of one IP version. In
// an IPv4 packet the kernel fills in the total length, the checksum, an ID of 0 and a source of 0. It fills in nothing
// in an IPv6 packet. If the kernel refuses a packet, Send has sent the ones before it. The next call that begins with
// this packet returns 0 and its error, an unwrapped unix.Errno: EMSGSIZE for a packet that is larger than the link's
// MTU, EAFNOSUPPORT for an IPv6 packet if the kernel has no IPv6. Send waits while the socket is full. It returns
// os.ErrClosed after Close.
func (s *Sender) Send(out []egress.Outgoing) (int, error) {
	n, four := 1, out[0].To.Dst.Is4()
	for n < min(len(out), Batch) && out[n].To.Dst.Is4() == four {
		n++
	}
	switch {
	case four:
		return s.four.send(out[:n])
	case s.six == nil:
		return 0, unix.EAFNOSUPPORT
	}
	return s.six.send(out[:n])
}

// SendVia sends one packet to a neighbour of the packet's family. It ignores the route to the packet's destination.
// device is the index of the neighbour's device, which a link-local address needs. Its errors are those of Send. It
// does not wait.
func (s *Sender) SendVia(neighbour netip.Addr, device int, b []byte) error {
	r := s.four
	var to unix.Sockaddr
	if neighbour.Is4() {
		to = &unix.SockaddrInet4{Addr: neighbour.As4()}
	} else {
		r, to = s.six, &unix.SockaddrInet6{Addr: neighbour.As16(), ZoneId: uint32(device)}
	}
	if r == nil {
		return unix.EAFNOSUPPORT
	}
	fd, err := r.fd.Acquire()
	if err != nil {
		return err
	}
	defer r.fd.Release()
	return unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to)
}

// SetPriority sets the priority of packets that are sent from now on (SO_PRIORITY in socket(7)), from 0, the default,
// to 6. Queueing disciplines use it.
func (s *Sender) SetPriority(priority int) error {
	err := setPriority(s.four.fd, priority)
	if s.six != nil {
		err = errors.Join(err, setPriority(s.six.fd, priority))
	}
	return err
}

// setPriority sets the priority of the packets of a socket.
func setPriority(f *pollfd.FD, priority int) error {
	fd, err := f.Acquire()
	if err != nil {
		return err
	}
	defer f.Release()
	if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, priority); err != nil {
		return fmt.Errorf("priority of a socket: %w", err)
	}
	return nil
}

// Close closes the sockets; a Send that waits returns.
func (s *Sender) Close() error {
	err := s.four.fd.Close()
	if s.six != nil {
		err = errors.Join(err, s.six.fd.Close())
	}
	return err
}

// rawSender is the socket of one family.
type rawSender struct {
	fd   *pollfd.FD
	msgs mmsg
	iovs [Batch][2]unix.Iovec

	// For IPv4 the first bytes are a struct sockaddr_in. Port, flow label and scope stay 0.
	names [Batch]unix.RawSockaddrInet6
	at    int // of the address in names

	bySource bool // packets are routed by their source, too
	sources  [Batch]sourceMessage
	info     int // of the address in sources
}

// sourceMessage is a control message, IP_PKTINFO or IPV6_PKTINFO, that names the source by which a packet is routed.
type sourceMessage [unix.SizeofCmsghdr + 24]byte

// init makes m a message of family. It returns m's length and the offset of the address in it.
func (m *sourceMessage) init(family int) (n, at int) {
	h, size := (*unix.Cmsghdr)(unsafe.Pointer(m)), unix.SizeofInet4Pktinfo
	h.Level, h.Type, at = unix.IPPROTO_IP, unix.IP_PKTINFO, unix.CmsgLen(4) // behind the interface's index
	if family == unix.AF_INET6 {
		h.Level, h.Type, at, size = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.CmsgLen(0), unix.SizeofInet6Pktinfo
	}
	h.SetLen(unix.CmsgLen(size))
	return unix.CmsgSpace(size), at
}

func newRawSender(family int, bySource bool) (*rawSender, error) {
	fd, err := openRaw(family, unix.IPPROTO_RAW, func(fd int) error {
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return newCalls(fd, family, bySource), nil
}

// newCalls makes the system calls by which a goroutine sends by the socket fd of family.
func newCalls(fd *pollfd.FD, family int, bySource bool) *rawSender {
	s := &rawSender{fd: fd, at: 4, bySource: bySource}
	namelen := uint32(unix.SizeofSockaddrInet4)
	if family == unix.AF_INET6 {
		s.at, namelen = 8, unix.SizeofSockaddrInet6
	}
	s.msgs = mmsg{fd: fd, trap: unix.SYS_SENDMMSG, events: unix.POLLOUT, hdrs: make([]mmsghdr, Batch)}
	for i := range s.msgs.hdrs {
		s.names[i].Family = uint16(family)
		h := &s.msgs.hdrs[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), namelen
		h.Iov = &s.iovs[i][0]
		if bySource {
			var n int
			n, s.info = s.sources[i].init(family)
			h.Control = &s.sources[i][0]
			h.SetControllen(n)
		}
	}
	return s
}

// send is Sender.Send for packets of the socket's family.
func (s *rawSender) send(out []egress.Outgoing) (int, error) {
	for i := range out {
		p := &out[i]
		name := (*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&s.names[i]))
		putAddr(name[s.at:], p.To.Dst)
		if s.bySource {
			putAddr(s.sources[i][s.info:], p.To.Src)
		}
		iov := &s.iovs[i]
		iov[0].Base = &p.Head[0]
		iov[0].SetLen(len(p.Head))
		h := &s.msgs.hdrs[i].hdr
		h.SetIovlen(1)
		if len(p.Body) > 0 {
			iov[1].Base = &p.Body[0]
			iov[1].SetLen(len(p.Body))
			h.SetIovlen(2)
		}
	}
	return s.msgs.do(len(out))
}

// putAddr writes the bytes of a to the front of b.
func putAddr(b []byte, a netip.Addr) {
	if a.Is4() {
		*(*[4]byte)(b) = a.As4()
	} else {
		*(*[16]byte)(b) = a.As16()
	}
}

// openRaw opens a raw socket of a family. An IPv4 socket sends and receives whole packets. An IPv6 socket of
// IPPROTO_RAW sends whole packets; other IPv6 sockets have packets without IPv6 header. openRaw calls setup before the
// socket is used.
func openRaw(family, protocol int, setup func(fd int) error) (*pollfd.FD, error) {
	name := fmt.Sprintf("raw socket of protocol %d", protocol)
	if family == unix.AF_INET6 {
		name = "IPv6 " + name
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, advise(err))
	}
	if family == unix.AF_INET {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_HDRINCL, 1)
	}
	if err == nil {
		err = setup(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, advise(err))
	}
	return f, nil
}

// advise adds a remedy to the error of opening a socket.
func advise(err error) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w: lower queues, or raise LimitNOFILE", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: run as root, or with CAP_NET_RAW", err)
	}
	return err
}

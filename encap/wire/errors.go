package wire

import (
	"errors"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/wire/pollfd"
)

// LearnPathMTU makes the kernel learn path MTUs from "fragmentation needed" and "packet too big" about packets of
// protocol that this host sends, over IPv4 and IPv6 (Linux net/ipv4/raw.c, raw_err; net/ipv6/raw.c, rawv6_err). A
// socket of IPPROTO_RAW does not do this. LearnPathMTU opens raw sockets of protocol that receive no packets. Closing
// them ends the learning. It needs CAP_NET_RAW.
func LearnPathMTU(protocol int) (*Learner, error) {
	l := &Learner{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := openRaw(family, protocol, func(fd int) error {
			if err := filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil || family == unix.AF_INET {
				return err
			}
			// Over IPv6 the kernel learns only from errors that it also queues to the socket. The errors are not read.
			// The smallest buffer bounds their memory.
			return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0), unix.SetsockoptInt(fd,
				unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
		})
		if family == unix.AF_INET6 && errors.Is(err, unix.EAFNOSUPPORT) {
			break // a kernel without IPv6
		}
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.fds = append(l.fds, fd)
	}
	return l, nil
}

// Learner makes the kernel learn path MTUs, until Close.
type Learner struct {
	fds []*pollfd.FD // of IPv4 first
}

// nowhere are addresses to which nothing is sent by tunnels: those of a learner that rests.
var nowhere = [2]unix.Sockaddr{&unix.SockaddrInet4{Addr: [4]byte{255, 255, 255, 255}},
	&unix.SockaddrInet6{Addr: [16]byte{0xff, 0x0e, 15: 1}}}

// anywhere are the addresses of a learner that is at work.
var anywhere = [2]unix.Sockaddr{&unix.SockaddrInet4{}, &unix.SockaddrInet6{}}

// Rest ends the learning until Resume. The kernel copies each received packet of the protocol for a learner at work,
// and looks at the address of one that rests.
func (l *Learner) Rest() error { return l.bind(nowhere) }

// Resume begins the learning again. It needs no capability.
func (l *Learner) Resume() error { return l.bind(anywhere) }

func (l *Learner) bind(to [2]unix.Sockaddr) error {
	for i, fd := range l.fds {
		n, err := fd.Acquire()
		if err != nil {
			return err
		}
		err = unix.Bind(int(n), to[i])
		fd.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// Close ends the learning.
func (l *Learner) Close() error {
	var errs []error
	for _, fd := range l.fds {
		errs = append(errs, fd.Close())
	}
	return errors.Join(errs...)
}

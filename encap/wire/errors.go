package wire

import (
	"errors"
	"io"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/wire/pollfd"
)

// LearnPathMTU makes the kernel learn path MTUs from "fragmentation needed" and "packet too big" about packets of
// protocol that this host sends, over IPv4 and IPv6 (Linux net/ipv4/raw.c, raw_err; net/ipv6/raw.c, rawv6_err). A
// socket of IPPROTO_RAW does not do this. LearnPathMTU opens raw sockets of protocol that receive no packets. Closing
// them ends the learning. It needs CAP_NET_RAW.
func LearnPathMTU(protocol int) (io.Closer, error) {
	var l learner
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
		l = append(l, fd)
	}
	return l, nil
}

type learner []*pollfd.FD

func (l learner) Close() error {
	var errs []error
	for _, fd := range l {
		errs = append(errs, fd.Close())
	}
	return errors.Join(errs...)
}

package wire

import (
	"errors"
	"io"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/wire/pollfd"
)

// LearnPathMTU makes the kernel take ICMP errors about packets of protocol that this host sends, over IPv4 and over
// IPv6: from "fragmentation needed" and "packet too big" it learns the path MTU (Linux net/ipv4/raw.c, raw_err;
// net/ipv6/raw.c, rawv6_err), which a socket of IPPROTO_RAW doesn't do. It is raw sockets that receive nothing, until
// they are closed. It needs CAP_NET_RAW.
func LearnPathMTU(protocol int) (io.Closer, error) {
	var l learner
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := openRaw(family, protocol, func(fd int) error {
			if err := filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil || family == unix.AF_INET {
				return err
			}
			// Over IPv6 the kernel learns only from errors that it queues to the socket, too. They are not read: the
			// smallest buffer bounds them.
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

package wire

import (
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// Sink occupies a port of this host and discards its packets. The kernel answers them with neither RST nor ICMP port
// unreachable. A Sniffer can receive them.
type Sink struct{ fd int }

// NewSink occupies the TCP or UDP port at. Its address is one of this host or unspecified.
func NewSink(protocol uint8, at netip.AddrPort) (*Sink, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port())}
	if at.Addr().Is4() {
		sa.(*unix.SockaddrInet4).Addr = at.Addr().As4()
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	if protocol == packet.ProtoUDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("port %v: %w", at, advise(err))
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}})
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1) // the kernel runs the filter before it answers (tcp_v4_rcv in net/ipv4/tcp_ipv4.c)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("port %v: %w", at, err)
	}
	return &Sink{fd}, nil
}

// Close frees the port.
func (s *Sink) Close() error { return unix.Close(s.fd) }

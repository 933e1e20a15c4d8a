package wire

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/wire/pollfd"
)

// PathMTU returns the size of the largest packet from src, an address of this host, that the path to dst takes, in
// bytes. The kernel knows the path MTU from its routes and from ICMP errors. PathMTU sends nothing.
func (s *Sender) PathMTU(src, dst netip.Addr) (int, error) {
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU
	if dst.Is6() {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("path MTU: UDP socket: %w", advise(err))
	}
	defer unix.Close(fd)
	const discard = 9 // any port would do
	if err := unix.Bind(fd, sockaddr(src, 0)); err != nil {
		return 0, fmt.Errorf("path MTU: bind to %s: %w", src, err)
	}
	if err := unix.Connect(fd, sockaddr(dst, discard)); err != nil {
		return 0, fmt.Errorf("path MTU: connect %s to %s: %w", src, dst, err)
	}
	return unix.GetsockoptInt(fd, level, option)
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// DevicePort opens a UDP socket of both families that is bound to the device link, and returns its port, which the
// kernel chooses. The socket receives no data. It lets the kernel process ICMP errors with an MTU that come in by the
// device and are about a datagram from that port. From them the kernel learns the path MTU of routes by that device
// (Linux net/ipv4/route.c, ipv4_sk_update_pmtu; net/ipv6/route.c, ip6_sk_update_pmtu, where the datagram's source is
// ::). From errors about datagrams of a socket that is not bound to the device, the kernel learns only the path MTU of
// other routes. So it does over IPv6 from errors about datagrams with another source than ::.
func DevicePort(link string) (uint16, io.Closer, error) {
	var anywhere unix.Sockaddr = &unix.SockaddrInet6{}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT { // a kernel without IPv6
		anywhere = &unix.SockaddrInet4{}
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	} else if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("UDP socket: %w", advise(err))
	}
	var name unix.Sockaddr
	err = errors.Join(filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}), unix.BindToDevice(fd, link),
		unix.Bind(fd, anywhere))
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return 0, nil, fmt.Errorf("UDP socket on %s: %w", link, err)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return 0, nil, fmt.Errorf("UDP socket: %w", advise(err))
	}
	if name, ok := name.(*unix.SockaddrInet6); ok {
		return uint16(name.Port), f, nil
	}
	return uint16(name.(*unix.SockaddrInet4).Port), f, nil
}

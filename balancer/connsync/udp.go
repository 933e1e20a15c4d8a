package connsync

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// UDPConfig is the settings of a UDP link.
type UDPConfig struct {
	Interface string     // name of the device; "": any, with Peers only
	Group     netip.Addr // multicast group, without Peers
	Port      uint16
	Peers     []netip.Addr // unicast, all of one family
}

// socketBuffer is the size of each socket buffer, in bytes: datagrams come and go in bursts. Those to a peer that does
// not run wait for its neighbour's answer, up to 212,992 bytes of them for some seconds.
const socketBuffer = 8 << 20

// udp is a Link over UDP. As the kernel's datagrams, its own have a TTL of 1 with multicast, do not come back to their
// sender, and are fragmented if the path is too narrow (Linux ip_vs_sync.c, make_send_sock and make_receive_sock).
type udp struct {
	in, out *net.UDPConn // the same with unicast
	raw     syscall.RawConn
	to      []unix.Sockaddr
}

// OpenUDP opens the sockets. Before Linux 5.7 it needs CAP_NET_RAW for Interface. size is the largest datagram that
// the device carries, without IP and UDP headers, at most MaxSize.
func OpenUDP(c UDPConfig) (_ Link, size int, err error) {
	size = MaxSize
	var device *net.Interface
	if c.Interface != "" {
		if device, err = net.InterfaceByName(c.Interface); err != nil {
			return nil, 0, fmt.Errorf("interface %s: %w", c.Interface, err)
		}
	}
	first := c.Group
	if len(c.Peers) > 0 {
		first = c.Peers[0]
	}
	headers := 20 + 8
	if first.Is6() {
		headers = 40 + 8
	}
	size = min(size, 1500-headers)
	if device != nil {
		size = min(size, device.MTU-headers)
	}
	if len(c.Peers) > 0 {
		l, err := openUnicast(c, first.Is6())
		return l, size, err
	}
	l, err := openMulticast(c, device)
	return l, size, err
}

func openUnicast(c UDPConfig, six bool) (Link, error) {
	conn, err := listen(c, wildcard(six), c.Port, nil)
	if err != nil {
		return nil, err
	}
	return newUDP(conn, conn, c.Port, c.Peers...)
}

// newUDP makes a link of its sockets to addresses with a port.
func newUDP(in, out *net.UDPConn, port uint16, to ...netip.Addr) (Link, error) {
	raw, err := out.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &udp{in: in, out: out, raw: raw}
	for _, a := range to {
		l.to = append(l.to, sockaddr(a, port))
	}
	return l, nil
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}

func wildcard(six bool) netip.Addr {
	if six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func openMulticast(c UDPConfig, device *net.Interface) (Link, error) {
	in, err := listen(c, c.Group, c.Port, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if c.Group.Is6() {
			return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
				&unix.IPv6Mreq{Multiaddr: c.Group.As16(), Interface: uint32(device.Index)})
		}
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: c.Group.As4(), Ifindex: int32(device.Index)})
	})
	if err != nil {
		return nil, err
	}
	out, err := listen(c, wildcard(c.Group.Is6()), 0, func(fd int) error {
		if c.Group.Is6() {
			return errors.Join(
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, device.Index),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 1))
		}
		return errors.Join(
			unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF,
				&unix.IPMreqn{Ifindex: int32(device.Index)}),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 1))
	})
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return newUDP(in, out, c.Port, c.Group)
}

// listen opens a socket at an address and port. set sets its options before that; nil: none. Package net would bind the
// socket of a group to all addresses.
func listen(c UDPConfig, a netip.Addr, port uint16, set func(fd int) error) (*net.UDPConn, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "connsync")
	defer file.Close()
	if err := prepare(fd, c.Interface, a.Is6(), set); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sockaddr(a, port)); err != nil {
		return nil, fmt.Errorf("UDP port %d of %v: %w", port, a, err)
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// prepare sets the options of a socket.
func prepare(fd int, device string, six bool, set func(fd int) error) error {
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return os.NewSyscallError("SO_BINDTODEVICE "+device, err)
		}
	}
	// Without CAP_NET_ADMIN the sysctls rmem_max and wmem_max bound the buffers.
	for forced, bounded := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, forced, socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, bounded, socketBuffer)
		}
	}
	discover := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	if six {
		discover = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	}
	if discover != nil {
		return os.NewSyscallError("IP_MTU_DISCOVER", discover)
	}
	if six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("IPV6_V6ONLY", err)
		}
	}
	if set != nil {
		return set(fd)
	}
	return nil
}

// Send sends b to all peers, or to the group. It never waits: without room in the socket's buffer the datagram is lost,
// and the error is EAGAIN. An error of one peer does not keep b from the others.
func (u *udp) Send(b []byte) (err error) {
	closed := u.raw.Write(func(fd uintptr) bool {
		for _, to := range u.to {
			if sent := unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to); sent != nil && sent != unix.ECONNREFUSED {
				err = os.NewSyscallError("sendto", sent)
			}
		}
		return true
	})
	return errors.Join(closed, err)
}

// Receive reads a datagram. With unicast, datagrams of others than the peers come, too.
func (u *udp) Receive(b []byte) (int, netip.Addr, error) {
	n, from, err := u.in.ReadFromUDPAddrPort(b)
	return n, from.Addr().Unmap().WithZone(""), err
}

// Close ends Receive.
func (u *udp) Close() error {
	err := u.in.Close()
	if u.out != u.in {
		err = errors.Join(err, u.out.Close())
	}
	return err
}

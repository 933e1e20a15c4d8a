package connsync

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

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

// UDP is a Link over UDP. As the kernel's datagrams, its own have a TTL of 1 with multicast, do not come back to their
// sender, and are fragmented if the path is too narrow (Linux ip_vs_sync.c, make_send_sock and make_receive_sock).
type UDP struct {
	config UDPConfig
	closed chan struct{} // by Close

	mu      sync.Mutex // guards the fields below
	sockets sockets    // only Receive replaces them
	stale   bool       // the sockets are those of a device that has been made anew: see Renew
	ask     int        // a socket to ask for the index of the interface; -1 after Close
}

// sockets are the sockets of a UDP. The zero value: there are none, as the device is not there.
type sockets struct {
	in, out *net.UDPConn // the same with unicast
	raw     syscall.RawConn
	to      []unix.Sockaddr
	device  int // index of the interface
}

// OpenUDP opens the sockets. Before Linux 5.7 it needs CAP_NET_RAW for Interface. size is the largest datagram that
// the device carries, without IP and UDP headers, at most MaxSize.
func OpenUDP(c UDPConfig) (_ *UDP, size int, err error) {
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
	s, err := open(c, device)
	if err != nil {
		return nil, 0, err
	}
	ask, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, errors.Join(os.NewSyscallError("socket", err), s.close())
	}
	return &UDP{config: c, closed: make(chan struct{}), sockets: s, ask: ask}, size, nil
}

// open opens the sockets on a device, nil for any.
func open(c UDPConfig, device *net.Interface) (s sockets, err error) {
	to := c.Peers
	if len(c.Peers) > 0 {
		s.in, err = listen(c, wildcard(c.Peers[0].Is6()), c.Port, nil)
		s.out = s.in
	} else {
		to = []netip.Addr{c.Group}
		s.in, s.out, err = openMulticast(c, device)
	}
	if err != nil {
		return sockets{}, err
	}
	if s.raw, err = s.out.SyscallConn(); err != nil {
		return sockets{}, errors.Join(err, s.close())
	}
	for _, a := range to {
		s.to = append(s.to, sockaddr(a, c.Port))
	}
	if device != nil {
		s.device = device.Index
	}
	return s, nil
}

// close ends reads.
func (s *sockets) close() error {
	if s.in == nil {
		return nil
	}
	err := s.in.Close()
	if s.out != s.in {
		err = errors.Join(err, s.out.Close())
	}
	return err
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

func openMulticast(c UDPConfig, device *net.Interface) (in, out *net.UDPConn, err error) {
	in, err = listen(c, c.Group, c.Port, func(fd int) error {
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
		return nil, nil, err
	}
	out, err = listen(c, wildcard(c.Group.Is6()), 0, func(fd int) error {
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
		return nil, nil, errors.Join(err, in.Close())
	}
	return in, out, nil
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
func (u *UDP) Send(b []byte) (err error) {
	s := u.present()
	if s.out == nil {
		return fmt.Errorf("interface %s: %w", u.config.Interface, unix.ENODEV)
	}
	closed := s.raw.Write(func(fd uintptr) bool {
		for _, to := range s.to {
			if sent := unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to); sent != nil && sent != unix.ECONNREFUSED {
				err = os.NewSyscallError("sendto", sent)
			}
		}
		return true
	})
	return errors.Join(closed, err)
}

// present returns the sockets.
func (u *UDP) present() sockets {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sockets
}

// lookEvery is how often Receive looks for the device while no datagram comes.
const lookEvery = time.Second

// Receive reads a datagram. With unicast, datagrams of others than the peers come, too.
func (u *UDP) Receive(b []byte) (int, netip.Addr, error) {
	for {
		s := u.present()
		if s.in == nil {
			select {
			case <-u.closed:
				return 0, netip.Addr{}, net.ErrClosed
			case <-time.After(lookEvery):
			}
		} else {
			if s.device != 0 {
				_ = s.in.SetReadDeadline(time.Now().Add(lookEvery)) // fails only if it is closed
			}
			n, from, err := s.in.ReadFromUDPAddrPort(b)
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return n, from.Addr().Unmap().WithZone(""), err
			}
		}
		if err := u.follow(s.device); err != nil {
			return 0, netip.Addr{}, err
		}
	}
}

// Renew lets Receive open the sockets anew, within lookEvery. It is for an interface that was removed and made anew
// with the same index, which Receive cannot know: no socket is in the group on such a device. It may be called from any
// goroutine.
func (u *UDP) Renew() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stale = true; u.sockets.in != nil {
		_ = u.sockets.in.SetReadDeadline(time.Now())
	}
}

// follow opens the sockets anew if the interface is another device than the one with an index, 0 for none, or after
// Renew. Those of a device that has been removed are bound to its index: no datagram comes or goes by them any more.
func (u *UDP) follow(was int) error {
	name := u.config.Interface
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ask < 0 {
		return net.ErrClosed
	}
	is := u.deviceIndex(name)
	if is == was && !u.stale {
		return nil
	}
	_ = u.sockets.close() // first: the kernel would leave the group on a new device of the same index
	if u.sockets, u.stale = (sockets{}), false; is == 0 {
		return nil
	}
	s, err := open(u.config, &net.Interface{Index: is, Name: name})
	if errors.Is(err, unix.ENODEV) {
		return nil // it is gone again
	}
	if err != nil {
		return fmt.Errorf("interface %s has been made anew: %w", name, err)
	}
	u.sockets = s
	return nil
}

// deviceIndex returns the index of a device, 0 if there is none of this name. The caller holds mu.
func (u *UDP) deviceIndex(name string) int {
	request, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(u.ask, unix.SIOCGIFINDEX, request) != nil {
		return 0
	}
	return int(request.Uint32())
}

// Close ends Receive. A second call does nothing.
func (u *UDP) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ask < 0 {
		return nil
	}
	close(u.closed)
	err := errors.Join(u.sockets.close(), unix.Close(u.ask))
	u.ask = -1
	return err
}

package vrrp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// rawSocket sends and receives the packets of one family, by all devices.
type rawSocket struct {
	conn   *socket.Conn
	ipv6   bool
	closed atomic.Bool
	buf    [maxPacket]byte
	oob    [256]byte
}

// maxPacket is more than the largest packet: 255 IPv6 addresses.
const maxPacket = 8 << 10

const (
	internetControl = 0xc0 // TOS, precedence 6
	linkPriority    = 6    // SO_PRIORITY: TC_PRIO_INTERACTIVE of linux/pkt_sched.h
)

// openSocket needs CAP_NET_RAW.
func openSocket(ipv6 bool) (*rawSocket, error) {
	family, options := unix.AF_INET, [][3]int{
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1}, {unix.IPPROTO_IP, unix.IP_TTL, ttl},
		{unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, ttl}, {unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0},
		{unix.IPPROTO_IP, unix.IP_TOS, internetControl}}
	if ipv6 {
		family, options = unix.AF_INET6, [][3]int{
			{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1}, {unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl}, {unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, ttl},
			{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0}, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS, internetControl}}
	}
	c, err := socket.Socket(family, unix.SOCK_RAW, Protocol, "vrrp", nil)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("raw socket for VRRP: %w: run as root, or with CAP_NET_RAW", err)
	}
	if err != nil {
		return nil, fmt.Errorf("raw socket for VRRP: %w", err)
	}
	for _, o := range append(options, [3]int{unix.SOL_SOCKET, unix.SO_PRIORITY, linkPriority}) {
		if err := c.SetsockoptInt(o[0], o[1], o[2]); err != nil {
			return nil, errors.Join(fmt.Errorf("option %d of a raw socket for VRRP: %w", o[1], err), c.Close())
		}
	}
	return &rawSocket{conn: c, ipv6: ipv6}, nil
}

// receive returns the next packet. Its payload is valid until the next call. It returns os.ErrClosed after close.
func (s *rawSocket) receive() (p Packet, err error) {
	for {
		n, oobn, flags, from, err := s.conn.Recvmsg(context.Background(), s.buf[:], s.oob[:], 0)
		switch {
		case s.closed.Load():
			return p, os.ErrClosed
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENOBUFS):
			continue
		case err != nil:
			return p, fmt.Errorf("receive VRRP: %w", err)
		case flags&unix.MSG_TRUNC != 0:
			continue
		}
		if p, ok := s.parse(s.buf[:n], s.oob[:oobn], from); ok {
			return p, nil
		}
	}
}

// parse returns the packet of a message of the kernel. IPv4 packets have their header.
func (s *rawSocket) parse(b, oob []byte, from unix.Sockaddr) (p Packet, ok bool) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return p, false
	}
	for _, c := range controls {
		switch {
		case c.Header.Level == unix.IPPROTO_IP && c.Header.Type == unix.IP_PKTINFO && len(c.Data) >= 4:
			p.Device = int(binary.NativeEndian.Uint32(c.Data)) // in_pktinfo.ipi_ifindex
		case c.Header.Level == unix.IPPROTO_IPV6 && c.Header.Type == unix.IPV6_PKTINFO && len(c.Data) >= 20:
			p.Dst = netip.AddrFrom16([16]byte(c.Data))
			p.Device = int(binary.NativeEndian.Uint32(c.Data[16:])) // in6_pktinfo.ipi6_ifindex
		case c.Header.Level == unix.IPPROTO_IPV6 && c.Header.Type == unix.IPV6_HOPLIMIT && len(c.Data) >= 4:
			p.TTL = int(binary.NativeEndian.Uint32(c.Data))
		}
	}
	if s.ipv6 {
		at, is6 := from.(*unix.SockaddrInet6)
		if !is6 {
			return p, false
		}
		p.Src, p.Payload = netip.AddrFrom16(at.Addr), b
		return p, p.Dst.IsValid() && p.Device != 0
	}
	if len(b) < 20 || p.Device == 0 {
		return p, false
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return p, false
	}
	p.TTL = int(b[8])
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.Payload = b[header:total]
	return p, true
}

// send sends a packet from p.Src by p.Device. It never waits: a packet that finds no room is late anyway.
func (s *rawSocket) send(p Packet) error {
	if s.ipv6 {
		to := &unix.SockaddrInet6{Addr: p.Dst.As16()}
		if p.Dst.IsMulticast() || p.Dst.IsLinkLocalUnicast() {
			to.ZoneId = uint32(p.Device)
		}
		oob := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: p.Src.As16(), Ifindex: uint32(p.Device)})
		return s.sendNow(p.Payload, oob, to)
	}
	oob := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(p.Device), Spec_dst: p.Src.As4()})
	return s.sendNow(p.Payload, oob, &unix.SockaddrInet4{Addr: p.Dst.As4()})
}

func (s *rawSocket) sendNow(b, oob []byte, to unix.Sockaddr) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.Sendmsg(int(fd), b, oob, to, unix.MSG_DONTWAIT) })
	return errors.Join(cerr, err)
}

// close ends receive. A second call does nothing.
func (s *rawSocket) close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.conn.Close()
}

// membership is the multicast groups of one family, by device. A socket of its own for each needs no privilege, and no
// part of the 20 groups that a socket may have (igmp_max_memberships): raw sockets receive what any socket has joined.
type membership map[int]member

// member is a socket that has joined the group on a device.
type member struct {
	conn     *socket.Conn
	removals int // of the device: a new one with the same index has forgotten the group
}

// set joins the group on the devices, which have these Removals, and leaves it on all others. It leaves before it
// joins: the kernel would leave the group on a new device of the same index.
func (m membership) set(ipv6 bool, devices map[int]int) error {
	for index, c := range m {
		if removals, wanted := devices[index]; !wanted || removals != c.removals {
			_ = c.conn.Close()
			delete(m, index)
		}
	}
	var errs []error
	for index, removals := range devices {
		if _, has := m[index]; has {
			continue
		}
		c, err := join(ipv6, index)
		if err != nil {
			errs = append(errs, fmt.Errorf("join %v on device %d: %w", group(ipv6), index, err))
			continue
		}
		m[index] = member{c, removals}
	}
	return errors.Join(errs...)
}

// join returns a socket that is a member of the group on a device.
func join(ipv6 bool, index int) (*socket.Conn, error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	c, err := socket.Socket(family, unix.SOCK_DGRAM, 0, "vrrp group", nil)
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			if ipv6 {
				err = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
					&unix.IPv6Mreq{Multiaddr: group6.As16(), Interface: uint32(index)})
				return
			}
			err = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
				&unix.IPMreqn{Multiaddr: group4.As4(), Ifindex: int32(index)})
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

package neigh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// linkSocket is a packet socket for all devices. The kernel builds and removes the Ethernet headers. It begins parked:
// it receives nothing, and the kernel passes no packet by it.
type linkSocket struct {
	conn     *socket.Conn
	protocol uint16 // EtherType
	closed   atomic.Bool
	buf      [accepted]byte
}

// parked is the EtherType of parked sockets: no frame on the wire has it (IEEE 802, local experimental).
const parked = unix.ETH_P_802_EX1

func openLink(protocol uint16) (*linkSocket, error) {
	c, err := socket.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0, "packet", nil)
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		return nil, fmt.Errorf("packet socket: %w: the kernel needs CONFIG_PACKET, and a systemd unit AF_PACKET in "+
			"RestrictAddressFamilies", err)
	case err != nil:
		return nil, fmt.Errorf("packet socket: %w: run as root, or with CAP_NET_RAW", err)
	}
	return &linkSocket{conn: c, protocol: protocol}, nil
}

// listen makes s receive the packets that pass a filter. It needs no capability.
func (s *linkSocket) listen(filter []bpf.RawInstruction) error { return s.bind(filter, s.protocol) }

// filter makes s receive the packets that concern addrs. filter is the program for them.
func (s *linkSocket) filter(addrs []netip.Addr, filter func(addrs []netip.Addr) []bpf.RawInstruction) error {
	if len(addrs) == 0 {
		return s.park()
	}
	return s.listen(filter(addrs))
}

// park makes s receive nothing.
func (s *linkSocket) park() error { return s.bind(nothing(), parked) }

func (s *linkSocket) bind(filter []bpf.RawInstruction, protocol uint16) error {
	if err := s.conn.SetBPF(filter); err != nil {
		return fmt.Errorf("filter of a packet socket: %w", err)
	}
	if err := s.conn.Bind(&unix.SockaddrLinklayer{Protocol: networkOrder(protocol)}); err != nil {
		return fmt.Errorf("bind a packet socket: %w", err)
	}
	return nil
}

// receive returns the next packet. The bytes are valid until the next call. It returns os.ErrDeadlineExceeded after the
// deadline of stopAt, and os.ErrClosed after close.
func (s *linkSocket) receive() (received, []byte, error) {
	for {
		n, sa, err := s.conn.Recvfrom(context.Background(), s.buf[:], 0)
		if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if s.closed.Load() {
			return received{}, nil, os.ErrClosed
		}
		if err != nil {
			return received{}, nil, err
		}
		from, ok := sa.(*unix.SockaddrLinklayer)
		if !ok || from.Halen != macLen || from.Pkttype >= unix.PACKET_OTHERHOST {
			continue
		}
		return received{from.Ifindex, MAC(from.Addr[:]), from.Pkttype == unix.PACKET_HOST}, s.buf[:n], nil
	}
}

// stopAt lets receive end at a time.
func (s *linkSocket) stopAt(t time.Time) error { return s.conn.SetReadDeadline(t) }

// send sends a packet on a device.
func (s *linkSocket) send(index int, to MAC, b []byte) error {
	sa := &unix.SockaddrLinklayer{Protocol: networkOrder(s.protocol), Ifindex: index, Halen: macLen}
	copy(sa.Addr[:], to[:])
	return s.conn.Sendto(context.Background(), b, 0, sa)
}

// close ends receive. A second call does nothing.
func (s *linkSocket) close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.conn.Close()
}

// drain discards the packets that wait in the socket's queue.
func (s *linkSocket) drain() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		for err == nil {
			_, _, err = unix.Recvfrom(int(fd), s.buf[:], unix.MSG_DONTWAIT)
		}
	})
}

// networkOrder returns v as sockaddr_ll has it: packet(7).
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// groups is the multicast groups that the process is a member of. The kernel reports them to switches by MLD, and to
// the network cards. It leaves them with the socket.
type groups struct {
	conn   *socket.Conn // nil: the kernel has no IPv6
	in     map[place]bool
	closed bool
}

func openGroups() (*groups, error) {
	c, err := socket.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0, "udp6", nil)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("socket for multicast groups: %w", err)
	}
	return &groups{conn: c, in: map[place]bool{}}, nil
}

// set makes the process a member of the groups in want alone. It joins those in anew again: the device may have
// forgotten them. The error names the groups that could not be joined.
func (g *groups) set(want map[place]bool, anew func(index int) bool) error {
	if g.conn == nil {
		return nil
	}
	for p := range g.in {
		if !want[p] || anew(p.index) {
			_ = g.change(unix.IPV6_LEAVE_GROUP, p) // fails if its device is gone
			delete(g.in, p)
		}
	}
	var errs []error
	for p := range want {
		if g.in[p] {
			continue
		}
		if err := g.change(unix.IPV6_JOIN_GROUP, p); err != nil {
			errs = append(errs, fmt.Errorf("join %s on device %d: %w", p.addr, p.index, err))
			continue
		}
		g.in[p] = true
	}
	return errors.Join(errs...)
}

func (g *groups) change(option int, p place) error {
	raw, err := g.conn.SyscallConn()
	if err != nil {
		return err
	}
	request := unix.IPv6Mreq{Multiaddr: p.addr.As16(), Interface: uint32(p.index)}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, option, &request)
	})
	return errors.Join(cerr, err)
}

func (g *groups) close() error {
	if g.conn == nil || g.closed {
		return nil
	}
	g.closed = true
	return g.conn.Close()
}

// solicitedNodes returns the groups that t needs.
func (t *table) solicitedNodes() map[place]bool {
	want := map[place]bool{}
	for index, d := range t.devices {
		for _, a := range d.Addrs {
			if a.Is6() {
				want[place{index, solicitedNode(a)}] = true
			}
		}
	}
	return want
}

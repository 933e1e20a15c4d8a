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

// program returns the filter for the packets that concern addrs; nil stands for all addresses.
type program func(addrs []netip.Addr) []bpf.RawInstruction

// filter makes s receive the packets that concern addrs. It needs no capability.
func (s *linkSocket) filter(addrs []netip.Addr, p program) error {
	if len(addrs) == 0 {
		return s.park()
	}
	return s.bind(p(addrs), p(nil), s.protocol)
}

// park makes s receive nothing.
func (s *linkSocket) park() error { return s.bind(nothing(), nothing(), parked) }

// bind makes s receive the packets of a protocol that pass a filter, or wide, which is smaller and passes more, if
// there is no room for the filter.
func (s *linkSocket) bind(filter, wide []bpf.RawInstruction, protocol uint16) error {
	if err := s.attach(filter, wide); err != nil {
		return fmt.Errorf("filter of a packet socket: %w", err)
	}
	if err := s.conn.Bind(&unix.SockaddrLinklayer{Protocol: networkOrder(protocol)}); err != nil {
		return fmt.Errorf("bind a packet socket: %w", err)
	}
	return nil
}

// attach attaches a filter, else wide. Filters may take up to net.core.optmem_max bytes of a socket. The present one
// counts until it is replaced, so it makes room. Packets that pass meanwhile are examined by the receiver.
func (s *linkSocket) attach(filter, wide []bpf.RawInstruction) error {
	err := s.conn.SetBPF(filter)
	if !errors.Is(err, unix.ENOMEM) {
		return err
	}
	if err := s.conn.RemoveBPF(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err = s.conn.SetBPF(filter); errors.Is(err, unix.ENOMEM) {
		err = s.conn.SetBPF(wide)
	}
	return err
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

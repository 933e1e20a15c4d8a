// Package tunneldial connects health checks to their realservers through the tunnel. A check is a connection of this
// host to the VIP whose flow is pinned to one realserver. A ping is a check, too.
//
//	checker → Dialer: bind, pin the flow, connect → kernel → TUN → worker: pinned → tunnel → realserver
//	                                          ↑                                                │
//	                                          └───────────── answer from the VIP ──────────────┘
package tunneldial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/ping"
	"vstun/encap/packet"
)

// Pins pins flows of this host to a realserver: a *balancer.Balancer.
type Pins interface {
	Pin(f packet.Flow, t balancer.Target, over bool, now conntab.Ticks) error
	Unpin(f packet.Flow, now, rest conntab.Ticks)
}

// Tunnel connects to one realserver through its tunnel. Its methods may be called by any number of goroutines.
type Tunnel struct {
	Pins   Pins
	Pinger *ping.Pinger
	Clock  func() conntab.Ticks
	Target balancer.Target
	// Source returns this host's address for checks of a VIP, or the zero Addr if it has none of the VIP's family.
	Source func(vip netip.Addr) netip.Addr
}

// The time for which a flow stays pinned after its check, in ticks. Meanwhile no check of another realserver gets its
// port, so a late answer cannot reach that check. Sequence numbers also identify TCP's answers, and a token a ping's; a
// datagram has no such mark.
const (
	rest    = 3 * conntab.PerSecond
	restUDP = 60 * conntab.PerSecond
)

// The number of ports to try. A port may be in use: by a flow that is still pinned, or by a connection in the table.
// The first triesFree ports must be free; later ones may be taken from a connection in the table, since no socket of
// this host has the port any more. Otherwise a program on this host that often connects to a VIP, or an attacker who
// forges this host's address, could use up the ports, and no check could find a realserver's state.
//
// Linux gives bound TCP sockets only every other port (net/ipv4/inet_connection_sock.c, inet_csk_find_open_port):
// 14,116 of the usual range.
const (
	tries     = 32
	triesFree = 16
)

// DialContext connects to address, a VIP and a port, at the realserver; network is "tcp" or "udp". The connection is a
// *TCPConn or a *UDPConn. Closing a TCP connection sends a RST, as other balancers' checks do: the kernel retransmits
// nothing afterwards, and no port is in TIME_WAIT.
func (t *Tunnel) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	f := packet.Flow{Dst: to.Addr(), DstPort: to.Port(), Proto: packet.ProtoTCP}
	if network == "udp" {
		f.Proto = packet.ProtoUDP
	}
	if f.Src, err = t.source(f.Dst); err != nil {
		return nil, err
	}
	for try := range tries {
		c, err := t.dial(ctx, network, address, f, try >= triesFree)
		if !errors.Is(err, balancer.ErrPinned) {
			return c, localError(err)
		}
	}
	return nil, localError(balancer.ErrPinned)
}

// localError replaces errors of this host by error numbers that checks do not attribute to the realserver.
func localError(err error) error {
	switch {
	case errors.Is(err, balancer.ErrPinned): // every port that was tried is pinned
		return unix.EADDRNOTAVAIL
	case errors.Is(err, balancer.ErrUnknown): // a reload is under way
		return unix.EAGAIN
	case errors.Is(err, balancer.ErrFull):
		return unix.ENOBUFS
	}
	return err
}

func (t *Tunnel) source(vip netip.Addr) (netip.Addr, error) {
	if s := t.Source(vip); s.IsValid() {
		return s, nil
	}
	if t.Target.Address.Is4() == vip.Is4() {
		return netip.Addr{}, fmt.Errorf("no route to realserver %v that gives an address to check VIP %v from",
			t.Target.Address, vip)
	}
	family := "IPv4"
	if vip.Is6() {
		family = "IPv6"
	}
	// Clients' packets reach the realserver nevertheless.
	return netip.Addr{}, noAddress{fmt.Errorf("the director has no %s address to check VIP %v from: give it one, "+
		"and set source", family, vip)}
}

// noAddress is an error of this host, not of the realserver: see localError.
type noAddress struct{ error }

// Unwrap lets errors.Is find the error number.
func (noAddress) Unwrap() error { return unix.EADDRNOTAVAIL }

// dial tries one port, which the kernel chooses.
func (t *Tunnel) dial(ctx context.Context, network, address string, f packet.Flow, over bool) (net.Conn, error) {
	pinned := false
	d := net.Dialer{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) (err error) {
		refused := c.Control(func(fd uintptr) {
			if f.SrcPort, err = bind(int(fd), f.Src); err == nil {
				err = t.Pins.Pin(f, t.Target, over, t.Clock())
				pinned = err == nil
			}
		})
		return errors.Join(refused, err)
	}}
	d.SetMultipathTCP(false)
	end := func() {
		if pinned {
			t.unpin(f)
		}
	}
	switch c, err := d.DialContext(ctx, network, address); c := c.(type) {
	case *net.TCPConn:
		return &TCPConn{c, end}, nil
	case *net.UDPConn:
		return &UDPConn{c, end}, nil
	default:
		end()
		return nil, err
	}
}

func (t *Tunnel) unpin(f packet.Flow) {
	after := conntab.Ticks(rest)
	if f.Proto == packet.ProtoUDP {
		after = restUDP
	}
	t.Pins.Unpin(f, t.Clock(), after)
}

// bind binds the socket fd to the address a and a free port, which it returns.
func bind(fd int, a netip.Addr) (port uint16, err error) {
	// x/sys/unix's Getsockname asks for the protocol each time
	var sa syscall.Sockaddr = &syscall.SockaddrInet6{Addr: a.As16()}
	if a.Is4() {
		sa = &syscall.SockaddrInet4{Addr: a.As4()}
	}
	if err := syscall.Bind(fd, sa); err != nil {
		return 0, fmt.Errorf("bind to %v: %w", a, err)
	}
	if sa, err = syscall.Getsockname(fd); err != nil {
		return 0, fmt.Errorf("port of a socket: %w", err)
	}
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return uint16(sa.Port), nil
	case *syscall.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, errors.New("port of a socket: of no IP family")
}

// TCPConn is a connection whose flow is pinned until it is closed.
type TCPConn struct {
	*net.TCPConn
	end func()
}

// SetLinger does nothing: Close always sends a RST.
func (c *TCPConn) SetLinger(int) error { return nil }

// Close ends the connection with a RST, and unpins its flow.
func (c *TCPConn) Close() error {
	_ = c.TCPConn.SetLinger(0)
	err := c.TCPConn.Close()
	c.end()
	return err
}

// UDPConn is a connected socket whose flow is pinned until it is closed.
type UDPConn struct {
	*net.UDPConn
	end func()
}

// Close closes the socket, and unpins its flow.
func (c *UDPConn) Close() error {
	err := c.UDPConn.Close()
	c.end()
	return err
}

// Ping sends an ICMP echo request to a VIP and waits for the realserver's answer.
func (t *Tunnel) Ping(ctx context.Context, vip netip.Addr) error {
	f := packet.Flow{Dst: vip, Proto: packet.ProtoICMP}
	if vip.Is6() {
		f.Proto = packet.ProtoICMPv6
	}
	var err error
	if f.Src, err = t.source(vip); err != nil {
		return err
	}
	for range tries {
		f.SrcPort = t.Pinger.NextID()
		err := t.Pins.Pin(f, t.Target, false, t.Clock())
		if errors.Is(err, balancer.ErrPinned) {
			continue
		}
		if err != nil {
			return localError(err)
		}
		defer t.unpin(f)
		return t.Pinger.PingFrom(ctx, vip, ping.From{Source: f.Src, ID: f.SrcPort})
	}
	return localError(balancer.ErrPinned)
}

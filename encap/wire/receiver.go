package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/wire/pollfd"
)

const (
	// recvBuffer is the socket buffer that a receiver requests, in bytes. It holds bursts.
	recvBuffer = 8 << 20

	// recvBytes is roughly the largest batch of a receiver, in bytes. A batch of this size is still in the processor's
	// cache when it is processed.
	recvBytes = 256 << 10

	// controlLen is the room for the control messages of a packet: class and UDP_GRO, 24 bytes each.
	controlLen = 64
)

// Socket selects the packets of one socket: those of IP protocol Protocol that reach this host over IPv4, or over IPv6
// if Over6 is set. Port further selects UDP packets by destination port.
type Socket struct {
	Protocol uint8
	Over6    bool
	Port     uint16
}

func (s Socket) String() string {
	family := 4
	if s.Over6 {
		family = 6
	}
	if s.Protocol == packet.ProtoUDP {
		return fmt.Sprintf("UDP port %d over IPv%d", s.Port, family)
	}
	return fmt.Sprintf("raw socket of protocol %d over IPv%d", s.Protocol, family)
}

// headers is the length of the headers that the kernel removes, in bytes.
func (s Socket) headers() int {
	switch udp := s.Protocol == packet.ProtoUDP; {
	case udp && s.Over6:
		return packet.IPv6HeaderLen + packet.UDPHeaderLen
	case udp:
		return packet.IPv4HeaderLen + packet.UDPHeaderLen
	case s.Over6:
		return packet.IPv6HeaderLen
	}
	return 0
}

// Receiver receives the packets of several sockets, reassembled by the kernel. While a Receiver is open, the kernel
// does not answer these packets with "protocol unreachable". One goroutine reads from it.
type Receiver struct {
	fds     *pollfd.Group
	sockets []Socket // in the order of fds: those in use first; behind them raw sockets that are parked
	used    int      // of sockets
	next    int      // the socket in use to look at next
	limit   int      // packets in a batch
	lost    uint64   // overruns of closed sockets: see Overruns

	hdrs     [Batch]mmsghdr
	iovs     [Batch]unix.Iovec
	names    [Batch]unix.RawSockaddrInet6 // long enough for IPv4
	controls [Batch][controlLen]byte
}

// NewReceivers makes n receivers that share the packets of sockets. All packets of a flow go to one receiver. Raw
// sockets need CAP_NET_RAW.
func NewReceivers(n int, sockets ...Socket) (Receivers, error) {
	var all Receivers
	for i := range n {
		r, err := newReceiver(sockets, i, n)
		if err != nil {
			for _, r := range all {
				r.Close()
			}
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func newReceiver(sockets []Socket, i, n int) (*Receiver, error) {
	var fds []int
	for _, s := range sockets {
		fd, err := s.open(i, n)
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		fds = append(fds, fd)
	}
	group, err := pollfd.NewGroup(fds)
	if err != nil {
		return nil, advise(err)
	}
	r := &Receiver{fds: group, sockets: sockets, used: len(sockets), next: len(sockets), limit: Batch}
	for i := range r.hdrs {
		r.hdrs[i].hdr.Iov = &r.iovs[i]
		r.hdrs[i].hdr.SetIovlen(1)
	}
	return r, nil
}

// open opens the socket of receiver i of n.
func (s Socket) open(i, n int) (fd int, err error) {
	family, kind, protocol := unix.AF_INET, unix.SOCK_RAW, int(s.Protocol)
	if s.Over6 {
		family = unix.AF_INET6
	}
	udp := s.Protocol == packet.ProtoUDP
	if udp {
		kind = unix.SOCK_DGRAM
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol); err != nil {
		return -1, advise(err)
	}
	opened := fd
	defer func() {
		if err != nil {
			unix.Close(opened)
		}
	}()
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	if err = s.ignorePMTUErrors(fd); err != nil {
		return -1, err
	}
	if s.Over6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	} else if udp {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	}
	if err != nil {
		return -1, err
	}
	if !udp {
		if n > 1 {
			err = filter(fd, share(s, i, n))
		}
		return fd, err
	}
	if i == 0 {
		if err = s.checkFree(); err != nil {
			return -1, err
		}
	}
	return fd, s.bind(fd)
}

// ignorePMTUErrors keeps the kernel from learning a path MTU from ICMP errors about packets of fd. The socket sends no
// packets, so every such error is forged.
func (s Socket) ignorePMTUErrors(fd int) error {
	if s.Over6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_INTERFACE)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_INTERFACE)
}

// checkFree returns an error if another program has the UDP port. With SO_REUSEPORT the kernel would give each program
// a share of the flows.
func (s Socket) checkFree() error {
	family := unix.AF_INET
	if s.Over6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return advise(err)
	}
	defer unix.Close(fd)
	return s.bindTo(fd)
}

// bind binds fd to its UDP port. The program's sockets at that port share the flows (SO_REUSEPORT).
func (s Socket) bind(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return err
	}
	// Linux has UDP_GRO since 5.0; without it, packets come one by one.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	return s.bindTo(fd)
}

// bindTo binds fd to the port, of its own family only.
func (s Socket) bindTo(fd int) error {
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(s.Port)}
	if s.Over6 {
		at = &unix.SockaddrInet6{Port: int(s.Port)}
		for _, o := range []struct{ level, name int }{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},
			{unix.IPPROTO_UDP, udpNoCheck6RX},
		} {
			if err := unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
				return err
			}
		}
	}
	switch err := unix.Bind(fd, at); {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program has it: end it, or set another encap_port here and at the directors",
			err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: a port below 1024: give CAP_NET_BIND_SERVICE, or set another encap_port here and at "+
			"the directors", err)
	default:
		return err
	}
}

// udpNoCheck6RX is UDP_NO_CHECK6_RX (linux/udp.h): the socket accepts packets without checksum also over IPv6, as RFC
// 6935 allows for tunnels.
const udpNoCheck6RX = 102

// ReadBatch waits for packets and puts them into bufs, at most Batch, all of one socket. Each begins with an outer IP
// header: as on the wire from a raw IPv4 socket, otherwise one with only the packet's source, class, protocol and
// length. UDP packets have a UDP header behind it, with the right ports. Datagrams of one flow that the kernel has
// merged (UDP_GRO) are one GSO packet. ReadBatch returns the number of packets, or os.ErrClosed after Close.
func (r *Receiver) ReadBatch(bufs []packet.Buf) (int, error) {
	for {
		if n, err := r.readBatch(bufs); err != pollfd.ErrChanged {
			return n, err
		}
	}
}

// readBatch is ReadBatch, but returns pollfd.ErrChanged if the sockets are about to change.
func (r *Receiver) readBatch(bufs []packet.Buf) (int, error) {
	if err := r.fds.Acquire(); err != nil {
		return 0, err
	}
	defer r.fds.Release()
	for {
		for r.next < r.used {
			i := r.next
			r.next++
			if !r.fds.Ready(i) {
				continue
			}
			n, err := r.read(i, bufs)
			if r.used == 1 && n > 0 {
				r.next = 0 // there may be more; it is cheaper to try than to wait
			}
			if n > 0 || err != nil {
				return n, err
			}
		}
		if err := r.fds.Wait(unix.POLLIN); err != nil {
			return 0, err
		}
		r.next = 0
	}
}

// read reads the packets that wait in socket i, if any.
func (r *Receiver) read(i int, bufs []packet.Buf) (int, error) {
	s := r.sockets[i]
	headers := s.headers()
	n := min(len(bufs), r.limit)
	for i := range bufs[:n] {
		room := bufs[i].Room()
		r.iovs[i].Base = &room[0]
		h := &r.hdrs[i].hdr
		if headers > 0 {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
			h.Control = &r.controls[i][0]
			h.SetControllen(controlLen)
		} else {
			h.Name, h.Namelen, h.Control = nil, 0, nil
			h.SetControllen(0)
		}
		if s.Protocol == packet.ProtoUDP {
			room = room[headers:] // headers and payload must fit a packet
		}
		r.iovs[i].SetLen(len(room))
	}
	// The call never waits, so it may bypass Go's scheduler.
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, r.fds.Num(i), uintptr(unsafe.Pointer(&r.hdrs)), uintptr(n),
		unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	default:
		return 0, fmt.Errorf("%s: %w", s, errno)
	}
	bytes := 0
	for i := range bufs[:got] {
		size := int(r.hdrs[i].n)
		bufs[i].SetLen(size)
		bytes += size
		if headers > 0 {
			r.finish(s, &bufs[i], i)
		}
	}
	if bytes > recvBytes {
		r.limit = max(r.limit/2, 4)
	} else {
		r.limit = min(r.limit*2, Batch)
	}
	return int(got), nil
}

// finish puts headers before message i, which is in b.
func (r *Receiver) finish(s Socket, b *packet.Buf, i int) {
	n := b.Len()
	class, size := r.ancillary(i)
	if size > 0 && size < n {
		b.Offload = packet.Offload{GSO: packet.GSOUDP, Size: uint16(size)}
	}
	headers, name := s.headers(), &r.names[i] // the port has the same place in both families' names
	h := b.Prepend(headers)
	if s.Over6 {
		packet.IPv6(h).Encode(packet.IPv6Fields{
			TrafficClass: class, TotalLen: headers + n, NextHeader: s.Protocol, Src: name.Addr,
		})
	} else {
		packet.IPv4(h).Encode(packet.IPv4Fields{
			TOS: class, TotalLen: headers + n, Protocol: s.Protocol,
			Src: (*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr,
		})
	}
	if s.Protocol == packet.ProtoUDP {
		u := packet.UDP(h[headers-packet.UDPHeaderLen:])
		copy(u, (*[2]byte)(unsafe.Pointer(&name.Port))[:])
		u.SetDstPort(s.Port)
		u.SetLen(packet.UDPHeaderLen + n)
		u.ClearChecksum()
	}
}

// ancillary returns the contents of message i's control messages: TOS or traffic class, and the size of merged
// datagrams, 0 for a single datagram.
func (r *Receiver) ancillary(i int) (class byte, size int) {
	c := r.controls[i][:min(int(r.hdrs[i].hdr.Controllen), controlLen)]
	for len(c) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(c) {
			return class, size
		}
		data := c[unix.SizeofCmsghdr:n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			class = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			class = byte(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		}
		c = c[min((n+7)&^7, len(c)):]
	}
	return class, size
}

// Overruns is the number of packets that the kernel dropped because they were not read in time.
func (r *Receiver) Overruns() (n uint64) {
	if r.fds.Acquire() != nil {
		return 0
	}
	defer r.fds.Release()
	n = r.lost
	for i := range r.sockets {
		n += overruns(r.fds.Num(i))
	}
	return n
}

// overruns is the number of packets that the kernel dropped for want of room in the socket fd.
func overruns(fd uintptr) uint64 {
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[unix.SK_MEMINFO_DROPS])
}

// Close closes the sockets; a ReadBatch that waits returns.
func (r *Receiver) Close() error { return r.fds.Close() }

// SetBuffers requests buffers of size bytes for a socket, as setBuffer does.
func SetBuffers(socket syscall.Conn, size int) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = raw.Control(func(fd uintptr) {
		setBuffer(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, size)
		setBuffer(int(fd), unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, size)
	})
}

// setBuffer requests a socket buffer of size bytes. It exceeds the system's limit if the process may (CAP_NET_ADMIN). A
// smaller buffer is no error: it holds only smaller bursts.
func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

package wire

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/pollfd"
)

// UDPReceiver receives the UDP packets that reach this host at a port. One goroutine reads from it.
type UDPReceiver struct {
	fd       *pollfd.FD
	port     uint16
	msgs     mmsg
	iovs     [Batch]unix.Iovec
	names    [Batch]unix.RawSockaddrInet4
	controls [Batch][controlLen]byte
}

// controlLen is the room for the control messages of a packet: IP_TOS and UDP_GRO, 24 bytes each.
const controlLen = 64

// NewUDPReceivers opens n sockets at a port, each of which gets its share of the flows (SO_REUSEPORT).
func NewUDPReceivers(port uint16, n int) ([]*UDPReceiver, error) {
	var all []*UDPReceiver
	for range n {
		r, err := newUDPReceiver(port)
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

func newUDPReceiver(port uint16) (*UDPReceiver, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	for _, o := range []struct{ level, name int }{{unix.SOL_SOCKET, unix.SO_REUSEPORT}, {unix.IPPROTO_IP, unix.IP_RECVTOS}} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("UDP socket: %w", err)
		}
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // Linux has it since 5.0; without it, packets come one by one
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("UDP port %d: %w: another program has it: end it, or set another encap_port here and at the directors", port, err)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	r := &UDPReceiver{fd: f, port: port, msgs: mmsg{fd: f, trap: unix.SYS_RECVMMSG, events: unix.POLLIN, hdrs: make([]mmsghdr, Batch)}}
	for i := range r.msgs.hdrs {
		h := &r.msgs.hdrs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Name, h.Control = (*byte)(unsafe.Pointer(&r.names[i])), &r.controls[i][0]
	}
	return r, nil
}

// ReadBatch waits for packets and puts them into bufs, Batch of them at the most. Each is given an IPv4 and a UDP header, with the source, the port and the
// TOS that it came with, as it would come from a raw socket. Where the kernel has put datagrams of one flow together (UDP_GRO), Offload has GSOUDP,
// and the size of each but the last. It returns how many it read, or os.ErrClosed after Close.
func (r *UDPReceiver) ReadBatch(bufs []packet.Buf) (int, error) {
	n := min(len(bufs), Batch)
	for i := range bufs[:n] {
		room := bufs[i].Room()
		r.iovs[i].Base = &room[0]
		r.iovs[i].SetLen(len(room) - udpHeaders) // so that headers and payload are no longer than a packet may be
		h := &r.msgs.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet4
		h.SetControllen(controlLen)
	}
	got, err := r.msgs.do(n)
	if err != nil {
		return 0, err
	}
	for i := range bufs[:got] {
		r.finish(&bufs[i], i)
	}
	return got, nil
}

const udpHeaders = packet.IPv4HeaderLen + 8

// finish makes a packet of message i, which is in b.
func (r *UDPReceiver) finish(b *packet.Buf, i int) {
	n := int(r.msgs.hdrs[i].n)
	b.SetLen(n)
	tos, size := r.ancillary(i)
	if size > 0 && size < n {
		b.Offload = packet.Offload{GSO: packet.GSOUDP, Size: uint16(size)}
	}
	name := &r.names[i]
	h := packet.IPv4(b.Prepend(udpHeaders))
	packet.PutIPv4(h, tos, udpHeaders+n, 0, packet.ProtoUDP, name.Addr, [4]byte{})
	u := h[packet.IPv4HeaderLen:]
	copy(u, (*[2]byte)(unsafe.Pointer(&name.Port))[:])
	binary.BigEndian.PutUint16(u[2:], r.port)
	binary.BigEndian.PutUint16(u[4:], uint16(8+n))
	binary.BigEndian.PutUint16(u[6:], 0)
}

// ancillary returns what message i's control messages say: the TOS, and the datagrams' size, 0 for a single one.
func (r *UDPReceiver) ancillary(i int) (tos byte, size int) {
	c := r.controls[i][:min(int(r.msgs.hdrs[i].hdr.Controllen), controlLen)]
	for len(c) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(c) {
			return tos, size
		}
		data := c[unix.SizeofCmsghdr:n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			tos = data[0]
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		}
		c = c[min((n+7)&^7, len(c)):]
	}
	return tos, size
}

// Overruns is the number of packets that the kernel dropped because nobody read them in time.
func (r *UDPReceiver) Overruns() uint64 { return overruns(r.fd) }

// Close closes the socket; a ReadBatch that waits returns.
func (r *UDPReceiver) Close() error { return r.fd.Close() }

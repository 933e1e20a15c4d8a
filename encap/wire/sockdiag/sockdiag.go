// Package sockdiag asks the kernel whether this host has a TCP connection, by socket diagnosis (sock_diag(7)). It asks
// for one socket at a time, which needs no capability.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Query asks for sockets. One goroutine uses it.
type Query struct {
	fd     int
	device uint32
	seq    uint32
	send   [requestSize]byte
	answer [4096]byte
}

// The request: struct nlmsghdr and struct inet_diag_req_v2 (linux/inet_diag.h). The id's ports and addresses are in
// network byte order, the source first, which is this host's.
const (
	headerSize  = unix.SizeofNlMsghdr
	requestSize = headerSize + 8 + idSize
	idSize      = 48 // struct inet_diag_sockid
	idAt        = headerSize + 8
	stateAt     = headerSize + 1 // in struct inet_diag_msg
	noCookie    = 0xff
	listening   = 10 // TCP_LISTEN of linux/tcp_states.h
)

// Open opens a netlink socket. Sockets that are bound to the device with this index count, too. It returns an error if
// the kernel cannot answer: Has would report no connection then.
func Open(device int) (*Query, error) {
	const kind = unix.SOCK_DGRAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_NETLINK, kind, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("socket diagnosis: %w", err)
	}
	q := &Query{fd: fd, device: uint32(device)}
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("connect", err), q.Close())
	}
	if err := q.check(); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return q, nil
}

// check asks for a socket that is there.
func (q *Query) check() error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("socket diagnosis: %w", err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	state, err := q.state(netip.AddrPortFrom(at.Addr(), 1), at)
	if err != nil {
		return err
	}
	if state != listening {
		return errors.New("socket diagnosis: the kernel knows no TCP sockets: modprobe tcp_diag, or a kernel with " +
			"CONFIG_INET_DIAG")
	}
	return nil
}

// Has reports whether this host has a connection of a remote end to a local one. A listening socket is none.
func (q *Query) Has(remote, local netip.AddrPort) (bool, error) {
	state, err := q.state(remote, local)
	return state != 0 && state != listening, err
}

// state returns the state of the socket for packets of remote to local, 0 if there is none.
func (q *Query) state(remote, local netip.AddrPort) (uint8, error) {
	q.seq++
	b := &q.send
	*b = [requestSize]byte{}
	*(*unix.NlMsghdr)(unsafe.Pointer(b)) = unix.NlMsghdr{Len: requestSize, Type: unix.SOCK_DIAG_BY_FAMILY,
		Flags: unix.NLM_F_REQUEST, Seq: q.seq}
	b[headerSize], b[headerSize+1] = unix.AF_INET, unix.IPPROTO_TCP
	id := b[idAt:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	if local.Addr().Is4() {
		*(*[4]byte)(id[4:]), *(*[4]byte)(id[20:]) = local.Addr().As4(), remote.Addr().As4()
	} else {
		b[headerSize] = unix.AF_INET6
		*(*[16]byte)(id[4:]), *(*[16]byte)(id[20:]) = local.Addr().As16(), remote.Addr().As16()
	}
	binary.NativeEndian.PutUint32(id[36:], q.device)
	for i := range id[40:48] {
		id[40+i] = noCookie
	}
	if _, err := unix.Write(q.fd, b[:]); err != nil {
		return 0, os.NewSyscallError("socket diagnosis", err)
	}
	for {
		n, err := unix.Read(q.fd, q.answer[:]) // the kernel has answered within the call of Write
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("socket diagnosis", err)
		}
		if n < headerSize+4 {
			return 0, errors.New("socket diagnosis: a short answer")
		}
		h := (*unix.NlMsghdr)(unsafe.Pointer(&q.answer))
		if h.Seq != q.seq {
			continue // of a call that has failed
		}
		if h.Type != unix.NLMSG_ERROR {
			return q.answer[stateAt], nil
		}
		switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(q.answer[headerSize:]))); errno {
		case unix.ENOENT:
			return 0, nil
		default:
			return 0, os.NewSyscallError("socket diagnosis", errno)
		}
	}
}

// Close closes the socket.
func (q *Query) Close() error { return unix.Close(q.fd) }

// Package wire sends and receives tunnel packets in batches: raw sockets with the outer IP header in the packet (raw(7)).
package wire

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2). The two calls are made here and not through golang.org/x/net, whose ReadBatch
// allocates two values a message.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// mmsg is one system call for a batch, that waits in Go's poller when the socket is not ready. Its function value is made once,
// so that a call allocates nothing. One goroutine uses it at a time.
type mmsg struct {
	raw  syscall.RawConn
	trap uintptr // SYS_SENDMMSG or SYS_RECVMMSG
	hdrs []mmsghdr
	n    int
	err  syscall.Errno
	try  func(fd uintptr) bool
}

func (m *mmsg) init(raw syscall.RawConn, trap uintptr, batch int) {
	m.raw, m.trap, m.hdrs = raw, trap, make([]mmsghdr, batch)
	m.try = m.call
}

func (m *mmsg) call(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(m.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(m.hdrs))), uintptr(m.n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case 0:
			m.n = int(n)
		default:
			m.n = 0
		}
		m.err = errno
		return true
	}
}

func (m *mmsg) send(n int) (int, error) { return m.run(m.raw.Write, n) }
func (m *mmsg) recv(n int) (int, error) { return m.run(m.raw.Read, n) }

func (m *mmsg) run(wait func(func(uintptr) bool) error, n int) (int, error) {
	m.n, m.err = n, 0
	if err := wait(m.try); err != nil {
		return 0, err
	}
	if m.err != 0 {
		return 0, m.err
	}
	return m.n, nil
}

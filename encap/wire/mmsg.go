// Package wire has the sockets of both programs. It sends and receives tunnel packets in batches, over IPv4 and IPv6,
// by raw sockets (raw(7), ipv6(7)) and UDP sockets. It also receives ICMP errors about them.
package wire

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/wire/pollfd"
)

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2). This package makes the two calls itself: ReadBatch of
// golang.org/x/net allocates two values a message.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// mmsg is one system call for a batch. It waits if the socket is not ready. One goroutine uses it at a time.
type mmsg struct {
	fd     *pollfd.FD
	trap   uintptr // SYS_SENDMMSG or SYS_RECVMMSG
	events int16   // to wait for
	hdrs   []mmsghdr
}

// do makes the call for the first n of hdrs and returns how many messages it sent or received. The error is the first
// message's, or os.ErrClosed.
func (m *mmsg) do(n int) (int, error) {
	fd, err := m.fd.Acquire()
	if err != nil {
		return 0, err
	}
	defer m.fd.Release()
	for {
		// The call never waits, so it may bypass Go's scheduler. The scheduler would take the processor from a worker
		// whose call takes longer than about 20 µs, and wake another thread.
		got, _, errno := unix.RawSyscall6(m.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(m.hdrs))), uintptr(n),
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(got), nil
		case unix.EINTR:
		case unix.EAGAIN:
			if err := m.fd.Wait(m.events); err != nil {
				return 0, err
			}
		default:
			return 0, errno
		}
	}
}

// sendmsg sends one message, and waits while the socket is full. fd is the number of f, which the caller has acquired.
func sendmsg(f *pollfd.FD, fd uintptr, h *unix.Msghdr) error {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			if err := f.Wait(unix.POLLOUT); err != nil {
				return err
			}
		default:
			return errno
		}
	}
}

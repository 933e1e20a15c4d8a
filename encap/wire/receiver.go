package wire

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// recvBuffer is the room that a receiver's socket asks for, in bytes: bursts wait there.
const recvBuffer = 8 << 20

// Receiver receives the packets of one IP protocol that reach this host, each with its outer IPv4 header, put together if they came in
// fragments. While it is open the kernel does not answer them with "protocol unreachable". One goroutine reads from it.
type Receiver struct {
	conn *ipv4.RawConn
	raw  syscall.RawConn
	msgs mmsg
	iovs [Batch]unix.Iovec
}

// NewReceivers opens n raw sockets for protocol, each of which gets its share of the flows. It needs CAP_NET_RAW.
func NewReceivers(protocol, n int) ([]*Receiver, error) {
	var all []*Receiver
	for i := range n {
		r, err := newReceiver(protocol, i, n)
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

func newReceiver(protocol, i, n int) (*Receiver, error) {
	conn, raw, err := openRaw(protocol)
	if err != nil {
		return nil, err
	}
	if n > 1 {
		filter, err := share(i, n)
		if err == nil {
			err = conn.SetBPF(filter)
		}
		if err == nil {
			err = drain(raw) // what came before the filter is in every socket
		}
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("raw socket of protocol %d: filter: %w", protocol, err)
		}
	}
	setBuffer(raw, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	r := &Receiver{conn: conn, raw: raw}
	r.msgs.init(raw, unix.SYS_RECVMMSG, Batch)
	for i := range r.msgs.hdrs {
		h := &r.msgs.hdrs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
	}
	return r, nil
}

// drain throws away what has been received.
func drain(raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		var b [1]byte
		for {
			if _, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC); err != nil && err != unix.EINTR {
				return
			}
		}
	})
}

// ReadBatch waits for packets and puts them into bufs, Batch of them at the most. It returns how many it read, or net.ErrClosed after Close.
func (r *Receiver) ReadBatch(bufs []packet.Buf) (int, error) {
	n := min(len(bufs), Batch)
	for i := range bufs[:n] {
		room := bufs[i].Room()
		r.iovs[i].Base = &room[0]
		r.iovs[i].SetLen(len(room))
	}
	got, err := r.msgs.recv(n)
	if err != nil {
		return 0, err
	}
	for i := range bufs[:got] {
		bufs[i].SetLen(int(r.msgs.hdrs[i].n))
	}
	return got, nil
}

// Overruns is the number of packets that the kernel dropped because nobody read them in time.
func (r *Receiver) Overruns() uint64 {
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	ok := false
	err := r.raw.Control(func(fd uintptr) {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		ok = errno == 0
	})
	if err != nil || !ok {
		return 0
	}
	return uint64(info[unix.SK_MEMINFO_DROPS])
}

// Close closes the socket; a ReadBatch that waits returns.
func (r *Receiver) Close() error { return r.conn.Close() }

// setBuffer asks for a socket buffer of size bytes, past the system's bound where the process may (CAP_NET_ADMIN). A smaller one is no
// error: it only bears smaller bursts.
func setBuffer(raw syscall.RawConn, force, plain, size int) {
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, plain, size)
		}
	})
}

package wire

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/pollfd"
)

// recvBuffer is the room that a receiver's socket asks for, in bytes: bursts wait there.
const recvBuffer = 8 << 20

// Receiver receives the packets of one IP protocol that reach this host, each with its outer IPv4 header, put together if they came in
// fragments. While it is open the kernel does not answer them with "protocol unreachable". One goroutine reads from it.
type Receiver struct {
	fd   *pollfd.FD
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
	fd, err := openRaw(unix.AF_INET, protocol, func(fd int) error {
		setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
		if n == 1 {
			return nil
		}
		return filter(fd, share(i, n))
	})
	if err != nil {
		return nil, err
	}
	r := &Receiver{fd: fd, msgs: mmsg{fd: fd, trap: unix.SYS_RECVMMSG, events: unix.POLLIN, hdrs: make([]mmsghdr, Batch)}}
	for i := range r.msgs.hdrs {
		h := &r.msgs.hdrs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
	}
	return r, nil
}

// ReadBatch waits for packets and puts them into bufs, Batch of them at the most. It returns how many it read, or os.ErrClosed after Close.
func (r *Receiver) ReadBatch(bufs []packet.Buf) (int, error) {
	n := min(len(bufs), Batch)
	for i := range bufs[:n] {
		room := bufs[i].Room()
		r.iovs[i].Base = &room[0]
		r.iovs[i].SetLen(len(room))
	}
	got, err := r.msgs.do(n)
	if err != nil {
		return 0, err
	}
	for i := range bufs[:got] {
		bufs[i].SetLen(int(r.msgs.hdrs[i].n))
	}
	return got, nil
}

// Overruns is the number of packets that the kernel dropped because nobody read them in time.
func (r *Receiver) Overruns() uint64 { return overruns(r.fd) }

// overruns is what the socket f has dropped.
func overruns(f *pollfd.FD) uint64 {
	fd, err := f.Acquire()
	if err != nil {
		return 0
	}
	defer f.Release()
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[unix.SK_MEMINFO_DROPS])
}

// Close closes the socket; a ReadBatch that waits returns.
func (r *Receiver) Close() error { return r.fd.Close() }

// setBuffer asks for a socket buffer of size bytes, past the system's bound where the process may (CAP_NET_ADMIN). A smaller one is no
// error: it only bears smaller bursts.
func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

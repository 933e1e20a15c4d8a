package lab

import (
	"fmt"
	"net"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Burst is the number of frames that a Blaster sends in one system call.
const Burst = 64

// Blaster sends frames by a packet socket: they bypass the host's IP stack, and pass its link. It must be used by one
// thread only.
type Blaster struct {
	fd   int
	mac  net.HardwareAddr
	iovs [Burst]unix.Iovec
	msgs [Burst]Mmsghdr
}

// Mmsghdr is struct mmsghdr of sendmmsg(2).
type Mmsghdr struct {
	Hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// NewBlaster opens the packet socket on a link of the host in whose namespace this thread is: see Host.Do. The link ""
// is the one to the router.
func NewBlaster(link string) (*Blaster, error) {
	if link == "" {
		link = uplink
	}
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("blaster: %s: %w", link, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: it receives nothing
	if err != nil {
		return nil, fmt.Errorf("blaster: packet socket: %w", err)
	}
	b := &Blaster{fd: fd, mac: dev.HardwareAddr}
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("blaster: packet socket: %w", err)
	}
	for i := range b.msgs {
		b.msgs[i].Hdr.Iov = &b.iovs[i]
		b.msgs[i].Hdr.SetIovlen(1)
	}
	return b, nil
}

// MAC returns the MAC address of the link.
func (b *Blaster) MAC() net.HardwareAddr { return b.mac }

// Send sends count frames, at most Burst, and returns the number sent, from the first on. frame returns frame i with
// its Ethernet header.
func (b *Blaster) Send(count int, frame func(i int) []byte) (int, error) {
	for i := range count {
		f := frame(i)
		b.iovs[i].Base = &f[0]
		b.iovs[i].SetLen(len(f))
	}
	// Raw: the call does not block, and no other goroutine needs the thread.
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(b.fd), uintptr(unsafe.Pointer(&b.msgs[0])),
		uintptr(count), 0, 0, 0)
	runtime.KeepAlive(b)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR, unix.EAGAIN, unix.ENOBUFS: // a signal, or the link's queue is full
		return 0, nil
	}
	return 0, fmt.Errorf("blaster: send: %w", errno)
}

// Close closes the socket.
func (b *Blaster) Close() { unix.Close(b.fd) }

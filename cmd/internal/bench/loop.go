package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/encap/packet"
	"vstun/routing"
)

// The loops with which the director is compared. They read a TUN device and send each packet, with a constant outer
// header, to one realserver. They decide, check and count nothing.
const (
	// Floor reads until the device is empty or it has 64 packets, and sends them by one system call. This is the least
	// work of any director behind a TUN device.
	Floor = "floor"
	// Naive reads a packet, waiting in Go's poller, and sends it by net.IPConn.WriteTo, as a first version would. It
	// reads by os.File.Read on a non-blocking descriptor, as github.com/songgao/water does.
	Naive = "naive"
)

const (
	loopBatch  = 64
	loopRoom   = 2048 // bytes of a packet
	loopQueue  = 1000 // packets that can wait in the device, as in the director's
	loopMTU    = 65535
	loopMarker = "ready" // the loop writes it once it runs
)

// Loop is one of the loops.
type Loop struct {
	Kind    string     // Floor or Naive
	TUN     string     // name of the device, which the loop creates
	VIP     netip.Addr // address that is routed into the device
	From    netip.Addr // source of the outer header
	To      netip.Addr // its destination
	Journal string     // path for routing.Open
}

// Run creates the device and forwards until ctx is cancelled. It writes the word "ready" to out once it forwards.
func (l *Loop) Run(ctx context.Context, out io.Writer) (err error) {
	fd, err := openTUN(l.TUN)
	if err != nil {
		return err
	}
	network, err := routing.Open(l.Journal, slog.New(slog.DiscardHandler))
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	defer func() { err = errors.Join(err, network.Close()) }()
	err = network.Set(routing.State{
		Sysctls: []routing.Sysctl{{Key: "net/ipv6/conf/" + l.TUN + "/disable_ipv6", Value: "1", Optional: true}},
		Links:   []routing.Link{{Name: l.TUN, MTU: loopMTU, TxQueueLen: loopQueue, Up: true}},
		Routes:  []routing.Route{{Dst: netip.PrefixFrom(l.VIP, l.VIP.BitLen()), Link: l.TUN}},
	})
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	forward := l.floor
	if l.Kind == Naive {
		forward = l.naive
	}
	failed := make(chan error, 1)
	go func() { failed <- forward(fd) }() // ends with the process
	if _, err := fmt.Fprintln(out, loopMarker); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("%s loop: %w", l.Kind, err)
	}
}

// openTUN creates a TUN device with one queue and the director's flags, except for the offloads.
func openTUN(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, fmt.Errorf("TUN device %q: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w", err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("TUN device %s: %w", name, err)
	}
	return fd, nil
}

// outerHeader returns an IPv4 header for IPIP (RFC 2003). The kernel fills in total length and checksum.
func (l *Loop) outerHeader() (h [ipLen]byte) {
	ip := packet.IPv4(h[:])
	ip.Encode(packet.IPv4Fields{TTL: 64, Protocol: packet.ProtoIPIP, Src: l.From.As4(), Dst: l.To.As4()})
	ip.SetDF(true)
	return h
}

// floor runs until the device or the socket fails.
func (l *Loop) floor(tun int) error {
	runtime.LockOSThread()
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(raw)
	bufs := new([loopBatch][ipLen + loopRoom]byte)
	iovs := new([loopBatch]unix.Iovec)
	msgs := new([loopBatch]lab.Mmsghdr)
	to := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: l.To.As4()}
	header := l.outerHeader()
	for i := range msgs {
		copy(bufs[i][:], header[:])
		iovs[i].Base = &bufs[i][0]
		h := &msgs[i].Hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(to)), unix.SizeofSockaddrInet4
		h.Iov = &iovs[i]
		h.SetIovlen(1)
	}
	for {
		n := 0
		for ; n < loopBatch; n++ {
			got, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(tun), uintptr(unsafe.Pointer(&bufs[n][ipLen])),
				loopRoom)
			if errno == unix.EAGAIN || errno == unix.EINTR {
				break
			}
			if errno != 0 {
				return fmt.Errorf("read: %w", errno)
			}
			iovs[n].SetLen(ipLen + int(got))
		}
		if n == 0 {
			ready := []unix.PollFd{{Fd: int32(tun), Events: unix.POLLIN}}
			if _, err := unix.Poll(ready, -1); err != nil && err != unix.EINTR {
				return fmt.Errorf("poll: %w", err)
			}
			continue
		}
		for sent := 0; sent < n; {
			k, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(raw), uintptr(unsafe.Pointer(&msgs[sent])),
				uintptr(n-sent), 0, 0, 0)
			if errno != 0 {
				k = 1 // skip the refused packet
			}
			sent += int(k)
		}
	}
}

// naive runs until the device fails.
func (l *Loop) naive(tun int) error {
	device := os.NewFile(uintptr(tun), l.TUN)
	defer device.Close()
	conn, err := net.ListenIP("ip4:255", nil) // IPPROTO_RAW: the header is in the packet, and nothing is received
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer conn.Close()
	buf := make([]byte, ipLen+loopRoom)
	header := l.outerHeader()
	copy(buf, header[:])
	to := &net.IPAddr{IP: l.To.AsSlice()}
	for {
		n, err := device.Read(buf[ipLen:])
		if err != nil {
			return err
		}
		_, _ = conn.WriteTo(buf[:ipLen+n], to) // a refused packet is lost
	}
}

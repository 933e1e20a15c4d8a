package wire

import (
	"errors"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/wire/pollfd"
)

// ErrorReceiver receives the ICMP errors of one family that reach this host, about any packet: "unreachable", which
// includes "fragmentation needed", "packet too big" and "time exceeded". The host's own sockets get them, too. One
// goroutine reads from it.
type ErrorReceiver struct {
	fd    *pollfd.FD
	six   bool
	msgs  mmsg
	iovs  [errorBatch]unix.Iovec
	names [errorBatch]unix.RawSockaddrInet6
}

const (
	errorBatch  = 8
	errorLen    = 2048    // bytes that are read of an error: more than an error has
	errorBuffer = 1 << 20 // room that the socket asks for, in bytes
)

// NewErrorReceivers opens a receiver for IPv4, and one for IPv6 if the kernel has it. It needs CAP_NET_RAW.
func NewErrorReceivers() ([]*ErrorReceiver, error) {
	four, err := newErrorReceiver(unix.AF_INET, unix.IPPROTO_ICMP, errorFilter4())
	if err != nil {
		return nil, err
	}
	six, err := newErrorReceiver(unix.AF_INET6, unix.IPPROTO_ICMPV6, errorFilter6())
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		return []*ErrorReceiver{four}, nil
	case err != nil:
		return nil, errors.Join(err, four.Close())
	}
	return []*ErrorReceiver{four, six}, nil
}

// errorFilter4 accepts errors. A packet begins with the IP header.
func errorFilter4() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // X = length of the IP header
		bpf.LoadIndirect{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: packet.ICMPUnreachable, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: packet.ICMPTimeExceeded, SkipTrue: 1},
		bpf.RetConstant{Val: errorLen},
		bpf.RetConstant{Val: 0},
	}
}

// errorFilter6 accepts errors. On a raw IPv6 socket a packet begins with the ICMPv6 header.
func errorFilter6() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: packet.ICMPv6Unreachable, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: packet.ICMPv6TimeExceeded, SkipTrue: 1},
		bpf.RetConstant{Val: errorLen},
		bpf.RetConstant{Val: 0},
	}
}

func newErrorReceiver(family, protocol int, program []bpf.Instruction) (*ErrorReceiver, error) {
	f, err := openRaw(family, protocol, func(fd int) error {
		setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, errorBuffer)
		return filter(fd, program)
	})
	if err != nil {
		return nil, err
	}
	r := &ErrorReceiver{fd: f, six: family == unix.AF_INET6,
		msgs: mmsg{fd: f, trap: unix.SYS_RECVMMSG, events: unix.POLLIN, hdrs: make([]mmsghdr, errorBatch)}}
	for i := range r.msgs.hdrs {
		h := &r.msgs.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
	}
	return r, nil
}

// ReadBatch waits for errors and puts them into bufs as whole packets, at most errorBatch. It returns how many it read,
// or os.ErrClosed after Close.
//
// An IPv6 socket delivers no IPv6 header. ReadBatch puts one before the error, with the source of the quoted packet as
// destination. The checksum is therefore wrong if the error went to another address.
func (r *ErrorReceiver) ReadBatch(bufs []packet.Buf) (int, error) {
	n, skip := min(len(bufs), errorBatch), 0
	if r.six {
		skip = packet.IPv6HeaderLen
	}
	for i := range bufs[:n] {
		room := bufs[i].Room()[skip:errorLen]
		r.iovs[i].Base = &room[0]
		r.iovs[i].SetLen(len(room))
		r.msgs.hdrs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	got, err := r.msgs.do(n)
	if err != nil {
		return 0, err
	}
	for i := range bufs[:got] {
		n := skip + int(r.msgs.hdrs[i].n)
		if r.six {
			var to [16]byte
			const quote = packet.IPv6HeaderLen + packet.ICMPHeaderLen
			b := bufs[i].Room()
			if n >= quote+24 { // the end of the source
				to = packet.IPv6(b[quote:]).Src().As16()
			}
			packet.IPv6(b).Encode(packet.IPv6Fields{
				TotalLen: n, HopLimit: 255, NextHeader: packet.ProtoICMPv6, Src: r.names[i].Addr, Dst: to,
			})
		}
		bufs[i].SetLen(n)
	}
	return got, nil
}

// Close closes the socket; a ReadBatch that waits returns.
func (r *ErrorReceiver) Close() error { return r.fd.Close() }

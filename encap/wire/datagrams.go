package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/wire/pollfd"
)

// Datagrams is the UDP socket of one port of this host, over one IP version. It sends and receives payloads in batches.
// One goroutine receives. Any number of goroutines may send at the same time.
type Datagrams struct {
	fd    *pollfd.FD
	six   bool
	noGSO atomic.Bool // the kernel or the device cannot send several datagrams by one call
	calls sync.Pool   // of *datagramCall

	// The following belong to the receiver.
	room  []byte
	hdrs  [recvDatagrams]mmsghdr
	iovs  [recvDatagrams]unix.Iovec
	names [recvDatagrams]unix.RawSockaddrInet6 // long enough for IPv4
	infos [recvDatagrams][datagramControl]byte
	msgs  mmsg
	got   int // messages of the last call
	next  int // the message that is being handed out
	at    int // offset of its next datagram, in bytes
	zone  zone
}

// zone is the device of link-local peers: an index, as a number and as a text.
type zone struct {
	index uint32
	name  string
}

const (
	// recvDatagrams is the number of messages of one receiving call. With UDP_GRO each may be up to 64 datagrams.
	recvDatagrams = 16

	datagramRoom    = 1 << 16 // bytes of one message
	datagramControl = 96      // room for the control messages of one message: 40, 24 and 24 bytes, and to spare
)

// Ends are the addresses of a datagram: those of the peer, and the address of this host that it uses. A link-local peer
// has the index of its device as zone.
type Ends struct {
	Peer netip.AddrPort
	Own  netip.Addr // invalid: the kernel's route decides
}

// OpenDatagrams opens the socket of a UDP port, at all addresses of this host. six selects IPv6.
func OpenDatagrams(port uint16, six bool) (*Datagrams, error) {
	d, err := openDatagrams(port, six)
	if err != nil {
		version := 4
		if six {
			version = 6
		}
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: choose another port, or end what has this one (ss -lunp 'sport = %d'; the kernel's "+
				"own tunnels are in ip -d link)", err, port)
		}
		return nil, fmt.Errorf("UDP port %d over IPv%d: %w", port, version, err)
	}
	return d, nil
}

func openDatagrams(port uint16, six bool) (*Datagrams, error) {
	family, level, info, class := unix.AF_INET, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.IP_RECVTOS
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if six {
		family, level, info, class = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_RECVTCLASS
		at = &unix.SockaddrInet6{Port: int(port)}
	}
	num, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, advise(err)
	}
	setBuffer(num, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	setBuffer(num, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	_ = unix.SetsockoptInt(num, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // without it, datagrams come one by one
	err = errors.Join(unix.SetsockoptInt(num, level, info, 1), unix.SetsockoptInt(num, level, class, 1))
	if err == nil && six {
		err = unix.SetsockoptInt(num, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(num, at)
	}
	if err != nil {
		unix.Close(num)
		return nil, err
	}
	fd, err := pollfd.New(num)
	if err != nil {
		return nil, advise(err)
	}
	d := &Datagrams{fd: fd, six: six, room: make([]byte, recvDatagrams*datagramRoom)}
	d.calls.New = func() any { return newDatagramCall(six) }
	d.noGSO.Store(!segments(fd))
	d.msgs = mmsg{fd: fd, trap: unix.SYS_RECVMMSG, events: unix.POLLIN, hdrs: d.hdrs[:]}
	for i := range d.hdrs {
		d.iovs[i].Base = &d.room[i*datagramRoom]
		d.iovs[i].SetLen(datagramRoom)
		h := &d.hdrs[i].hdr
		h.Name, h.Iov, h.Control = (*byte)(unsafe.Pointer(&d.names[i])), &d.iovs[i], &d.infos[i][0]
		h.SetIovlen(1)
	}
	return d, nil
}

// Port is the socket's port. It differs from OpenDatagrams' if that was 0.
func (d *Datagrams) Port() (uint16, error) {
	fd, err := d.fd.Acquire()
	if err != nil {
		return 0, err
	}
	defer d.fd.Release()
	name, err := unix.Getsockname(int(fd))
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(name.Port), err
	case *unix.SockaddrInet6:
		return uint16(name.Port), err
	}
	return 0, err
}

// Receive waits for datagrams and copies them into bufs. It sets sizes, ends and classes (TOS or traffic class) of as
// many as it returns. Datagrams that the kernel has merged (UDP_GRO) come one by one. A datagram that is longer than
// its buffer has size 0. Receive returns os.ErrClosed after Close.
func (d *Datagrams) Receive(bufs [][]byte, sizes []int, ends []Ends, classes []uint8) (n int, err error) {
	for d.next >= d.got {
		for i := range d.hdrs {
			h := &d.hdrs[i].hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(datagramControl)
		}
		if d.got, err = d.msgs.do(recvDatagrams); err != nil {
			d.got = 0
			return 0, err
		}
		d.next, d.at = 0, 0
	}
	for n < len(bufs) && d.next < d.got {
		e, class, size := d.ancillary(d.next)
		whole := d.room[d.next*datagramRoom:][:min(int(d.hdrs[d.next].n), datagramRoom)]
		if size <= 0 {
			size = len(whole)
		}
		for n < len(bufs) && d.at <= len(whole) {
			part := whole[d.at:min(d.at+size, len(whole))]
			d.at += max(size, 1)
			ends[n], sizes[n], classes[n] = e, 0, class
			if len(part) <= len(bufs[n]) {
				sizes[n] = copy(bufs[n], part)
			}
			n++
			if d.at >= len(whole) {
				break
			}
		}
		if d.at >= len(whole) {
			d.next, d.at = d.next+1, 0
		}
	}
	return n, nil
}

// ancillary returns the ends of message i, its TOS or traffic class, and the size of the datagrams that were merged
// into it, 0 for a single one.
func (d *Datagrams) ancillary(i int) (e Ends, class uint8, size int) {
	name := &d.names[i]
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
	if d.six {
		a := netip.AddrFrom16(name.Addr)
		if name.Scope_id != 0 && a.IsLinkLocalUnicast() {
			if d.zone.index != name.Scope_id {
				d.zone = zone{name.Scope_id, strconv.FormatUint(uint64(name.Scope_id), 10)}
			}
			a = a.WithZone(d.zone.name)
		}
		e.Peer = netip.AddrPortFrom(a, port)
	} else {
		e.Peer = netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), port)
	}
	c := d.infos[i][:min(int(d.hdrs[i].hdr.Controllen), datagramControl)]
	for len(c) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(c) {
			return e, class, size
		}
		data := c[unix.SizeofCmsghdr:n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			e.Own = netip.AddrFrom4([4]byte(data[4:8])) // spec_dst, which the answer has as source
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			e.Own = netip.AddrFrom16([16]byte(data[:16]))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			class = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			class = uint8(binary.NativeEndian.Uint32(data))
		}
		c = c[min((n+7)&^7, len(c)):]
	}
	return e, class, size
}

// datagramCall is the arguments of one sending call.
type datagramCall struct {
	hdr     unix.Msghdr
	name    [unix.SizeofSockaddrInet6]byte
	iovs    [maxSegments]unix.Iovec
	control [datagramControl]byte
	own     []byte // the source address in control
	class   []byte // TOS or traffic class: 4 bytes
	size    []byte // the size of the datagrams in control
	fixed   int    // length of control without size
}

func newDatagramCall(six bool) *datagramCall {
	c := &datagramCall{}
	c.hdr.Name, c.hdr.Iov = &c.name[0], &c.iovs[0]
	family, level, info, n, at := unix.AF_INET, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo, 4
	class := unix.IP_TOS
	c.hdr.Namelen = unix.SizeofSockaddrInet4
	if six {
		family, level, info, n, at = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo, 0
		class = unix.IPV6_TCLASS
		c.hdr.Namelen = unix.SizeofSockaddrInet6
	}
	binary.NativeEndian.PutUint16(c.name[:], uint16(family))
	c.own = c.add(level, info, n)[at:]
	c.class = c.add(level, class, 4)
	c.size = c.add(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	c.fixed -= unix.CmsgSpace(2)
	return c
}

// add adds a control message, and returns its n bytes.
func (c *datagramCall) add(level, name, n int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.control[c.fixed]))
	h.Level, h.Type = int32(level), int32(name)
	h.SetLen(unix.CmsgLen(n))
	data := c.control[c.fixed+unix.CmsgLen(0):][:n]
	c.fixed += unix.CmsgSpace(n)
	return data
}

// Send sends bufs, each as a datagram, in order, and returns how many of them the kernel has refused. class returns the
// TOS or traffic class of one. Datagrams of one size and class, of which the last may be shorter, share a call
// (UDP_SEGMENT). Send waits while the socket is full. The error is that of the first one that was refused, an unwrapped
// unix.Errno; or os.ErrClosed after Close.
func (d *Datagrams) Send(bufs [][]byte, class func(b []byte) uint8, to Ends) (refused int, err error) {
	fd, err := d.fd.Acquire()
	if err != nil {
		return len(bufs), err
	}
	defer d.fd.Release()
	c := d.calls.Get().(*datagramCall)
	defer d.calls.Put(c)
	c.to(to, d.six)
	for len(bufs) > 0 {
		n, tos := 1, class(bufs[0])
		if !d.noGSO.Load() {
			n = together(bufs)
			for i := 1; i < n; i++ {
				if class(bufs[i]) != tos {
					n = i
				}
			}
		}
		binary.NativeEndian.PutUint32(c.class, uint32(tos))
		lost, failed := 1, d.call(c, fd, bufs[:n])
		if errno, ok := failed.(unix.Errno); ok && n > 1 {
			switch errno {
			case unix.EIO, unix.EOPNOTSUPP: // no checksum offload there
				d.noGSO.Store(true)
			}
			// One by one: a datagram that is larger than the path MTU is sent in fragments.
			lost, failed = d.callEach(c, fd, bufs[:n])
		}
		if failed != nil {
			refused += lost
		}
		if err == nil {
			err = failed
		}
		bufs = bufs[n:]
	}
	return refused, err
}

// callEach sends bufs by a call for each. It returns how many of them were refused, and the first error.
func (d *Datagrams) callEach(c *datagramCall, fd uintptr, bufs [][]byte) (refused int, err error) {
	for i := range bufs {
		if failed := d.call(c, fd, bufs[i:i+1]); failed != nil {
			refused++
			if err == nil {
				err = failed
			}
		}
	}
	return refused, err
}

// together returns the number of the first datagrams whose sizes one call can send.
func together(bufs [][]byte) int {
	size, total := len(bufs[0]), len(bufs[0])
	for n := 1; n < min(len(bufs), maxSegments); n++ {
		if total += len(bufs[n]); len(bufs[n]) > size || len(bufs[n]) == 0 || total > maxPayload {
			return n
		}
		if len(bufs[n]) < size {
			return n + 1
		}
	}
	return min(len(bufs), maxSegments)
}

// to sets the addresses of a call.
func (c *datagramCall) to(e Ends, six bool) {
	binary.BigEndian.PutUint16(c.name[2:], e.Peer.Port())
	at := 4
	if six {
		at = 8
	}
	putAddr(c.name[at:], e.Peer.Addr())
	if six {
		index := uint64(0)
		if z := e.Peer.Addr().Zone(); z != "" {
			index, _ = strconv.ParseUint(z, 10, 32) // as ancillary makes it
		}
		binary.NativeEndian.PutUint32(c.name[24:], uint32(index))
	}
	if e.Own.IsValid() {
		putAddr(c.own, e.Own)
	} else {
		clear(c.own[:4])
		if six {
			clear(c.own[:16])
		}
	}
}

// call sends bufs by one call.
func (d *Datagrams) call(c *datagramCall, fd uintptr, bufs [][]byte) error {
	for i, b := range bufs {
		c.iovs[i].Base = unsafe.SliceData(b)
		c.iovs[i].SetLen(len(b))
	}
	c.hdr.SetIovlen(len(bufs))
	c.hdr.Control = &c.control[0]
	c.hdr.SetControllen(c.fixed)
	if len(bufs) > 1 {
		binary.NativeEndian.PutUint16(c.size, uint16(len(bufs[0])))
		c.hdr.SetControllen(c.fixed + unix.CmsgSpace(2))
	}
	return sendmsg(d.fd, fd, &c.hdr)
}

// Overruns is the number of datagrams that the kernel dropped because they were not received in time, or because their
// checksum was wrong.
func (d *Datagrams) Overruns() uint64 {
	fd, err := d.fd.Acquire()
	if err != nil {
		return 0
	}
	defer d.fd.Release()
	return overruns(fd)
}

// Close closes the socket. A Receive or Send that waits returns.
func (d *Datagrams) Close() error { return d.fd.Close() }

// Package tundev opens TUN and TAP devices with several queues, and reads and writes their packets in batches. With
// offloads a packet may be a GSO packet or have an unfinished checksum (packet.Offload). For a device without offloads
// the package completes and splits packets itself.
//
// A TUN device has IP packets, a TAP device Ethernet frames. A frame is a packet.Buf, too: the Buf holds the frame's
// payload, such as an IP packet, and the Ethernet header stands in front of it (packet.Buf.Before). The offsets of
// packet.Offload are those of the payload.
package tundev

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/wire/pollfd"
)

// Options are the options of Open.
type Options struct {
	Queues int  // at least 1
	Plain  bool // without offloads, even if the kernel has them
	TAP    bool
	MAC    [6]byte // of a TAP device: its address for the host
	// Host: the host uses the device as any other. It has IFF_MULTICAST, a TAP device takes part in ARP, and the kernel
	// chooses its MAC address.
	Host bool
}

// link returns the length of the link-layer header, in bytes.
func (o *Options) link() int {
	if o.TAP {
		return packet.EthernetHeaderLen
	}
	return 0
}

// kind names the device for people.
func (o *Options) kind() string {
	if o.TAP {
		return "TAP"
	}
	return "TUN"
}

// Device is a TUN or TAP device, which exists as long as a process has it open.
type Device struct {
	name     string
	queues   []*Queue
	offloads string
}

// Open makes the device called name, of 1 to 15 bytes. It needs CAP_NET_ADMIN and /dev/net/tun. The device is down and
// has no IP address. The name must be free: a persistent device of that name would be taken over.
func Open(name string, o Options) (*Device, error) {
	if len(name) == 0 || len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("%s device %q: want a name of 1 to %d bytes", o.kind(), name, unix.IFNAMSIZ-1)
	}
	d := &Device{name: name}
	err := error(nil)
	if !o.Plain {
		err = d.open(o, openVnet, true)
	}
	if o.Plain || errors.Is(err, unix.EINVAL) { // a kernel without IFF_VNET_HDR
		err = d.open(o, openPlain, false)
	}
	if err == nil && !o.Host {
		if err = setUp(name, o); err != nil {
			err = errors.Join(err, d.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s device %s: %w", o.kind(), name, explain(err))
	}
	return d, nil
}

func (d *Device) open(o Options, open func(name string, tap bool) (int, error), vnet bool) error {
	for range o.Queues {
		fd, err := open(d.name, o.TAP)
		if err == nil {
			err = d.add(fd, vnet, o.link())
		}
		if err != nil {
			return errors.Join(err, d.Close())
		}
	}
	return nil
}

func (d *Device) add(fd int, vnet bool, link int) error {
	if vnet {
		set, err := setOffloads(fd)
		if err != nil {
			unix.Close(fd)
			return err
		}
		d.offloads = offloadNames(set)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return err
	}
	d.queues = append(d.queues, newQueue(f, vnet, link))
	return nil
}

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// Queues are the device's queues. The kernel spreads packets over them by flow.
func (d *Device) Queues() []*Queue { return d.queues }

// Offloads names the work that the kernel leaves to the reader: checksums ("csum"), TCP ("tso") and UDP ("uso")
// segmentation. It is "" for a plain device.
func (d *Device) Offloads() string { return d.offloads }

// Close closes all queues, and so removes the device. Reads that wait return.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.fd.Close())
	}
	d.queues = nil
	return errors.Join(errs...)
}

// Queue is one queue of a device. One goroutine may read while another writes.
type Queue struct {
	fd      *pollfd.FD
	vnet    bool
	link    int         // length of the link-layer header
	stopped atomic.Bool // see StopReading
	out     writing
}

func newQueue(fd *pollfd.FD, vnet bool, link int) *Queue {
	q := &Queue{fd: fd, vnet: vnet, link: link}
	if !vnet {
		q.out.segs = make([]packet.Segment, 0, packet.MaxPieces)
		q.out.room = make([]byte, packet.PieceRoom)
	}
	return q
}

// Writer returns a queue for another writing goroutine. It shares q's descriptor, and the device closes it with q.
func (q *Queue) Writer() *Queue { return newQueue(q.fd, q.vnet, q.link) }

// writing is the state of a writer.
type writing struct {
	err  error            // after which the device cannot be used any more
	last unix.Errno       // of the last write that the kernel refused
	info packet.Info      // for a device without offloads: of a GSO packet
	segs []packet.Segment // its segments
	room []byte           // their headers
	vnet packet.VirtioHeader
	iovs [2 + packet.MaxChain]unix.Iovec
}

// batchBytes is the number of bytes after which a read returns. A batch of this size is still in the processor's cache
// when it is processed.
const batchBytes = 192 << 10

// ReadBatch waits for packets and puts them into bufs, as many as are there. It returns how many it read, at least 1 if
// there is no error. It returns os.ErrClosed after Close and StopReading.
func (q *Queue) ReadBatch(bufs []packet.Buf) (int, error) {
	fd, err := q.fd.Acquire()
	if err != nil {
		return 0, err
	}
	defer q.fd.Release()
	for {
		if q.stopped.Load() {
			return 0, os.ErrClosed
		}
		n, err := q.read(fd, bufs)
		if n > 0 || err != nil {
			return n, err
		}
		if err := q.fd.Wait(unix.POLLIN); err != nil {
			return 0, err
		}
	}
}

// read reads until the kernel has no more packets or bufs is full.
func (q *Queue) read(fd uintptr, bufs []packet.Buf) (n int, err error) {
	front := q.link
	if q.vnet {
		front += packet.VirtioLen
	}
	for size := 0; n < len(bufs) && size < batchBytes; {
		b := &bufs[n]
		room := b.RoomBehind(front)
		// The call never waits, so it may bypass Go's scheduler.
		r, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(room))),
			uintptr(len(room)))
		switch errno {
		case 0:
			length := int(r) - front
			if length < 0 {
				continue
			}
			b.SetLen(length)
			if q.vnet {
				b.Offload = (*packet.VirtioHeader)(room).Offload()
				if b.Offload.Partial { // a start in the link-layer header becomes one beyond the packet
					b.Offload.CsumStart -= uint16(q.link)
				}
			}
			size += length
			n++
		case unix.EINTR:
		case unix.EAGAIN:
			return n, nil
		default:
			if n == 0 {
				err = gone("read", errno)
			}
			return n, err
		}
	}
	return n, nil
}

// WriteBatch gives packets to the kernel, as if they had come in through the device. It returns the number of packets
// that the kernel took, and their bytes, without link-layer headers. A packet that the kernel refuses does not affect
// the others. While the device is down, the kernel refuses all packets. An error means that the device can no longer be
// used. A GSO packet counts as one packet. A device without offloads gets its segments; the packet counts if the kernel
// took all of them. A packet in several pieces (packet.Buf, Next) counts as that number of packets; a device without
// offloads refuses it.
func (q *Queue) WriteBatch(bufs []*packet.Buf) (n, bytes int, err error) {
	fd, err := q.fd.Acquire()
	if err != nil {
		return 0, 0, err
	}
	defer q.fd.Release()
	q.out.err = nil
	for _, b := range bufs {
		pieces, size := b.Pieces(), b.ChainLen()
		if q.write(fd, b.Before(q.link), b) {
			n += pieces
			bytes += size
		}
	}
	return n, bytes, q.out.err
}

// Write is WriteBatch, but it ends at the first packet that the kernel refuses. It returns the number of packets before
// it, and the kernel's error, an unwrapped unix.Errno. It returns os.ErrClosed after Close.
func (q *Queue) Write(bufs []*packet.Buf) (int, error) {
	fd, err := q.fd.Acquire()
	if err != nil {
		return 0, err
	}
	defer q.fd.Release()
	for i, b := range bufs {
		if err := q.writeOne(fd, b.Before(q.link), b); err != nil {
			return i, err
		}
	}
	return len(bufs), nil
}

// Send is Write for one packet, with its own link-layer header in place of the one in front of b.
func (q *Queue) Send(link []byte, b *packet.Buf) error {
	fd, err := q.fd.Acquire()
	if err != nil {
		return err
	}
	defer q.fd.Release()
	return q.writeOne(fd, link, b)
}

// writeOne is write, with the error.
func (q *Queue) writeOne(fd uintptr, link []byte, b *packet.Buf) error {
	q.out.err, q.out.last = nil, unix.EINVAL // of a packet that is refused before the kernel sees it
	if q.write(fd, link, b) {
		return nil
	}
	if q.out.err != nil {
		return q.out.err
	}
	return q.out.last
}

// gone describes an error after which the device cannot be used any more.
func gone(op string, err unix.Errno) error {
	if err == unix.EBADFD || err == unix.EFAULT { // EFAULT from a read that waits during the removal
		return errors.New("the device has been removed by another program: start this program again")
	}
	return fmt.Errorf("/dev/net/tun: %s: %w", op, err)
}

// write writes the packet in b behind a link-layer header, which is empty for a TUN device.
func (q *Queue) write(fd uintptr, link []byte, b *packet.Buf) bool {
	out := &q.out
	if q.vnet {
		return q.writeVnet(fd, link, b)
	}
	if b.Next != nil {
		return false
	}
	if b.Offload.GSO == packet.GSONone {
		return b.Finish() == drop.Accept && q.writePieces(fd, link, b.Bytes(), nil)
	}
	if out.info.Parse(b.Bytes()) != drop.Accept {
		return false
	}
	cut, d := packet.NewCut(b, &out.info, packet.MaxLen)
	if d != drop.Accept {
		return false
	}
	out.segs, _ = packet.Split(out.segs[:0], b, &out.info, cut, out.room)
	ok := true
	for _, s := range out.segs {
		ok = q.writePieces(fd, link, s.Head, s.Body) && ok
	}
	return ok
}

// writeVnet writes a packet of any number of pieces behind its struct virtio_net_hdr.
func (q *Queue) writeVnet(fd uintptr, link []byte, b *packet.Buf) bool {
	if len(link) == 0 && b.Next == nil && b.Front() >= packet.VirtioLen && b.Len() > 0 {
		return q.writeBehind(fd, b)
	}
	iovs := &q.out.iovs
	q.out.vnet.Encode(b, len(link))
	iovs[0] = iovec(q.out.vnet[:])
	n := q.putLink(link, 1)
	for ; b != nil; b = b.Next {
		if b.Len() == 0 || n == len(iovs) {
			return false
		}
		iovs[n] = iovec(b.Bytes())
		n++
	}
	return q.writev(fd, n)
}

// writeBehind writes a packet of one piece with its struct virtio_net_hdr in the memory in front of it, which it leaves
// as it was: a part of a packet has another part there. One piece of memory takes the kernel less time than two.
func (q *Queue) writeBehind(fd uintptr, b *packet.Buf) bool {
	front := (*packet.VirtioHeader)(b.Before(packet.VirtioLen))
	was := *front
	front.Encode(b, 0)
	ok := q.call(unix.SYS_WRITE, fd, unsafe.Pointer(front), packet.VirtioLen+b.Len())
	*front = was
	return ok
}

// writePieces writes a packet of one or two pieces.
func (q *Queue) writePieces(fd uintptr, link, head, body []byte) bool {
	if len(head) == 0 {
		return false
	}
	iovs, n := &q.out.iovs, q.putLink(link, 0)
	iovs[n] = iovec(head)
	n++
	if len(body) > 0 {
		iovs[n] = iovec(body)
		n++
	}
	return q.writev(fd, n)
}

// putLink puts a link-layer header, if it is not empty, into out.iovs at n. It returns the next index.
func (q *Queue) putLink(link []byte, n int) int {
	if len(link) == 0 {
		return n
	}
	q.out.iovs[n] = iovec(link)
	return n + 1
}

// writev writes the packet in the first n of out.iovs.
func (q *Queue) writev(fd uintptr, n int) bool {
	return q.call(unix.SYS_WRITEV, fd, unsafe.Pointer(&q.out.iovs[0]), n)
}

// call is write(2) or writev(2), as trap says. It reports whether the kernel has taken the packet.
func (q *Queue) call(trap, fd uintptr, from unsafe.Pointer, n int) bool {
	for {
		_, _, errno := unix.RawSyscall(trap, fd, uintptr(from), uintptr(n))
		switch errno {
		case 0:
			return true
		case unix.EINTR:
		case unix.EBADFD:
			q.out.err = gone("write", errno)
			return false
		default:
			q.out.last = errno
			return false
		}
	}
}

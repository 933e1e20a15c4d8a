// Package tundev opens TUN devices with several queues, and reads and writes their packets in batches. With offloads a
// packet may be a GSO packet or have an unfinished checksum (packet.Offload). For a device without offloads the package
// completes and splits packets itself.
package tundev

import (
	"errors"
	"fmt"
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
}

// Device is a TUN device, which exists as long as it is open.
type Device struct {
	name     string
	queues   []*Queue
	offloads string
}

// Open makes the TUN device called name, of 1 to 15 bytes. It needs CAP_NET_ADMIN and /dev/net/tun. The device is down
// and has no address. The name must be free: a persistent TUN device of that name would be taken over.
func Open(name string, o Options) (*Device, error) {
	if len(name) == 0 || len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("TUN device %q: want a name of 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	d := &Device{name: name}
	err := error(nil)
	if !o.Plain {
		err = d.open(o.Queues, openVnet, true)
	}
	if o.Plain || errors.Is(err, unix.EINVAL) { // a kernel without IFF_VNET_HDR
		err = d.open(o.Queues, openPlain, false)
	}
	if err == nil {
		if err = noMulticast(name); err != nil {
			err = errors.Join(err, d.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("TUN device %s: %w", name, explain(err))
	}
	return d, nil
}

func (d *Device) open(queues int, open func(string) (int, error), vnet bool) error {
	for range queues {
		fd, err := open(d.name)
		if err == nil {
			err = d.add(fd, vnet)
		}
		if err != nil {
			return errors.Join(err, d.Close())
		}
	}
	return nil
}

func (d *Device) add(fd int, vnet bool) error {
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
	d.queues = append(d.queues, newQueue(f, vnet))
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
	fd   *pollfd.FD
	vnet bool
	out  writing
}

func newQueue(fd *pollfd.FD, vnet bool) *Queue {
	q := &Queue{fd: fd, vnet: vnet}
	if !vnet {
		q.out.segs = make([]packet.Segment, 0, packet.MaxPieces)
		q.out.room = make([]byte, packet.PieceRoom)
	}
	return q
}

// Writer returns a queue for another writing goroutine. It shares q's descriptor, and the device closes it with q.
func (q *Queue) Writer() *Queue { return newQueue(q.fd, q.vnet) }

// writing is the state of a writer.
type writing struct {
	err  error            // after which the device cannot be used any more
	info packet.Info      // for a device without offloads: of a GSO packet
	segs []packet.Segment // its segments
	room []byte           // their headers
	vnet packet.VirtioHeader
	iovs [1 + packet.MaxChain]unix.Iovec
}

// batchBytes is the number of bytes after which a read returns. A batch of this size is still in the processor's cache
// when it is processed.
const batchBytes = 192 << 10

// ReadBatch waits for packets and puts them into bufs, as many as are there. It returns how many it read, at least 1 if
// there is no error. It returns os.ErrClosed after Close.
func (q *Queue) ReadBatch(bufs []packet.Buf) (int, error) {
	fd, err := q.fd.Acquire()
	if err != nil {
		return 0, err
	}
	defer q.fd.Release()
	for {
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
	for size := 0; n < len(bufs) && size < batchBytes; {
		b := &bufs[n]
		room := b.Room()
		if q.vnet {
			room = b.RoomBehind(packet.VirtioLen)
		}
		// The call never waits, so it may bypass Go's scheduler.
		r, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(room))),
			uintptr(len(room)))
		switch errno {
		case 0:
			length := int(r)
			if q.vnet {
				if length -= packet.VirtioLen; length < 0 {
					continue
				}
				b.SetLen(length)
				b.Offload = (*packet.VirtioHeader)(room).Offload()
			} else {
				b.SetLen(length)
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

// WriteBatch gives IP packets to the kernel, as if they had come in through the device. It returns the number of
// packets that the kernel took, and their bytes. A packet that the kernel refuses does not affect the others. While the
// device is down, the kernel refuses all packets. An error means that the device can no longer be used. A GSO packet
// counts as one packet. A device without offloads gets its segments; the packet counts if the kernel took all of them.
// A packet in several pieces (packet.Buf, Next) counts as that number of packets; a device without offloads refuses it.
func (q *Queue) WriteBatch(bufs []*packet.Buf) (n, bytes int, err error) {
	fd, err := q.fd.Acquire()
	if err != nil {
		return 0, 0, err
	}
	defer q.fd.Release()
	q.out.err = nil
	for _, b := range bufs {
		pieces, size := b.Pieces(), b.ChainLen()
		if q.write(fd, b) {
			n += pieces
			bytes += size
		}
	}
	return n, bytes, q.out.err
}

// gone describes an error after which the device cannot be used any more.
func gone(op string, err unix.Errno) error {
	if err == unix.EBADFD || err == unix.EFAULT { // EFAULT from a read that waits during the removal
		return errors.New("the TUN device has been removed by another program: start this program again")
	}
	return fmt.Errorf("TUN device: %s: %w", op, err)
}

func (q *Queue) write(fd uintptr, b *packet.Buf) bool {
	out := &q.out
	if q.vnet {
		return q.writeVnet(fd, b)
	}
	if b.Next != nil {
		return false
	}
	if b.Offload.GSO == packet.GSONone {
		return b.Finish() == drop.Accept && q.writePieces(fd, b.Bytes(), nil)
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
		ok = q.writePieces(fd, s.Head, s.Body) && ok
	}
	return ok
}

// writeVnet writes a packet of any number of pieces behind its struct virtio_net_hdr.
func (q *Queue) writeVnet(fd uintptr, b *packet.Buf) bool {
	iovs, n := &q.out.iovs, 1
	q.out.vnet.Encode(b, 0)
	iovs[0] = iovec(q.out.vnet[:])
	for ; b != nil; b = b.Next {
		if b.Len() == 0 || n == len(iovs) {
			return false
		}
		iovs[n] = iovec(b.Bytes())
		n++
	}
	return q.writev(fd, n)
}

// writePieces writes a packet of one or two pieces.
func (q *Queue) writePieces(fd uintptr, head, body []byte) bool {
	if len(head) == 0 {
		return false
	}
	iovs, n := &q.out.iovs, 1
	iovs[0] = iovec(head)
	if len(body) > 0 {
		iovs[1], n = iovec(body), 2
	}
	return q.writev(fd, n)
}

// writev writes the packet in the first n of out.iovs.
func (q *Queue) writev(fd uintptr, n int) bool {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&q.out.iovs[0])), uintptr(n))
		switch errno {
		case 0:
			return true
		case unix.EINTR:
		case unix.EBADFD:
			q.out.err = gone("write", errno)
			return false
		default:
			return false
		}
	}
}

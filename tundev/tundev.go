// Package tundev opens TUN devices with several queues, and reads and writes their packets in batches.
package tundev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// Device is a TUN device, which exists as long as it is open.
type Device struct {
	name   string
	queues []*Queue
}

// Open makes the TUN device called name, of 1 to 15 bytes, with as many queues. It needs CAP_NET_ADMIN and /dev/net/tun. The device is
// down and has no address. The name must be free: a TUN device that somebody made to persist would be taken over.
func Open(name string, queues int) (*Device, error) {
	if len(name) == 0 || len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("TUN device %q: want a name of 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	d := &Device{name: name}
	for range queues {
		q, err := openQueue(name)
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("TUN device %s: %w", name, explain(err))
		}
		d.queues = append(d.queues, q)
	}
	return d, nil
}

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// Queues are the device's queues. The kernel spreads packets over them by flow.
func (d *Device) Queues() []*Queue { return d.queues }

// Close closes all queues, and so removes the device. Reads that wait return.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		q.closed.Store(true)
		errs = append(errs, q.file.Close())
	}
	d.queues = nil
	return errors.Join(errs...)
}

// Queue is one queue of a device. One goroutine may read while another writes.
type Queue struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool
	in     reading
	out    writing
}

// reading and writing are calls under way. Their function values are made once, so that a call allocates nothing.
type (
	reading struct {
		bufs []packet.Buf
		n    int
		err  error
		try  func(fd uintptr) bool
	}
	writing struct {
		packets [][]byte
		n       int
		bytes   int
		try     func(fd uintptr) bool
	}
)

// openMu keeps the moment short in which a descriptor without O_CLOEXEC exists: water opens it so.
var openMu sync.Mutex

func openQueue(name string) (*Queue, error) {
	openMu.Lock()
	defer openMu.Unlock()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	ifc, err := water.New(water.Config{DeviceType: water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: true}})
	if err != nil {
		closeUnattached() // water leaks its descriptor
		return nil, err
	}
	file := ifc.ReadWriteCloser.(*os.File)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	if err := raw.Control(func(fd uintptr) { unix.CloseOnExec(int(fd)) }); err != nil {
		file.Close()
		return nil, err
	}
	q := &Queue{file: file, raw: raw}
	q.in.try, q.out.try = q.read, q.write
	return q, nil
}

// closeUnattached closes this process's descriptors of /dev/net/tun that belong to no device.
func closeUnattached() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target != "/dev/net/tun" {
			continue
		}
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		ifr, _ := unix.NewIfreq("x")
		if unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) == unix.EBADFD {
			unix.Close(fd)
		}
	}
}

// explain says what to do about err.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("/dev/net/tun: %w: the kernel needs its tun driver (modprobe tun), a container the device (--device /dev/net/tun)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root, or with CAP_NET_ADMIN and the right to open /dev/net/tun", err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the name is taken by another device", err)
	}
	return err
}

// ReadBatch waits for packets and puts them into bufs, as many as are there. It returns how many it read, at least 1 without error;
// os.ErrClosed after Close.
func (q *Queue) ReadBatch(bufs []packet.Buf) (int, error) {
	q.in.bufs, q.in.n, q.in.err = bufs, 0, nil
	if err := q.raw.Read(q.in.try); err != nil {
		if q.closed.Load() {
			return 0, os.ErrClosed
		}
		return 0, err
	}
	return q.in.n, q.in.err
}

// read reads until the kernel has no more packets or bufs is full. It returns false to be called again when there is something.
func (q *Queue) read(fd uintptr) bool {
	in := &q.in
	for in.n < len(in.bufs) {
		b := &in.bufs[in.n]
		n, err := unix.Read(int(fd), b.Room())
		switch err {
		case nil:
			b.SetLen(n)
			in.n++
		case unix.EINTR:
		case unix.EAGAIN:
			return in.n > 0
		default:
			if in.n == 0 {
				in.err = fmt.Errorf("TUN device: read: %w", err)
			}
			return true
		}
	}
	return true
}

// WriteBatch gives IP packets to the kernel, as if they had come in through the device, and returns how many it took and their bytes. It
// refuses, without harm to the others, what is no IP packet, and everything while the device is down.
func (q *Queue) WriteBatch(packets [][]byte) (n, bytes int, err error) {
	q.out.packets, q.out.n, q.out.bytes = packets, 0, 0
	if err := q.raw.Write(q.out.try); err != nil {
		if q.closed.Load() {
			return 0, 0, os.ErrClosed
		}
		return 0, 0, err
	}
	return q.out.n, q.out.bytes, nil
}

func (q *Queue) write(fd uintptr) bool {
	out := &q.out
	for _, b := range out.packets {
		_, err := unix.Write(int(fd), b)
		for err == unix.EINTR {
			_, err = unix.Write(int(fd), b)
		}
		if err == nil {
			out.n++
			out.bytes += len(b)
		}
	}
	return true
}

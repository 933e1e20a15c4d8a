package tundev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// A device outlives its process if another one holds its queues' descriptors. Meanwhile packets wait in the queues, up
// to the device's queue length each (drivers/net/tun.c, tun_net_xmit).

// Descriptors returns the queues' descriptors. They belong to the device, which closes them.
func (d *Device) Descriptors() []int {
	var all []int
	for _, q := range d.queues {
		if fd, err := q.fd.Acquire(); err == nil {
			all = append(all, int(fd))
			q.fd.Release()
		}
	}
	return all
}

// StopReading lets ReadBatch of each queue return os.ErrClosed. Packets that have not been read stay in the device.
// Writes go on until Close.
func (d *Device) StopReading() error {
	var errs []error
	for _, q := range d.queues {
		q.stopped.Store(true)
		errs = append(errs, q.fd.EndWaits())
	}
	return errors.Join(errs...)
}

// Adopt returns the device called name whose queues another process has opened and left. It takes over their
// descriptors. The device's settings stay as they are: of o, MAC has no effect. An error says how the device differs
// from what Open would make: "it has 2 queues, want 4". Then the descriptors are closed.
func Adopt(name string, o Options, fds []int) (*Device, error) {
	err := error(nil)
	if len(fds) != o.Queues {
		err = fmt.Errorf("it has %d queues, want %d", len(fds), o.Queues)
	}
	for _, fd := range fds {
		if err == nil {
			err = o.differs(name, fd)
		}
	}
	d := &Device{name: name}
	for _, fd := range fds {
		if err != nil {
			unix.Close(fd)
		} else {
			err = d.add(fd, !o.Plain, o.link())
		}
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// iffDetachQueue is IFF_DETACH_QUEUE of linux/if_tun.h: the queue gets no packets.
const iffDetachQueue = 0x0400

// Identify returns the name of the device of a queue. The error says that the device has been removed, or is in another
// network namespace than the calling thread.
func Identify(fd int) (name string, err error) {
	name, _, err = identify(fd)
	return name, err
}

// identify is Identify, with the device's flags.
func identify(fd int) (name string, flags uint16, err error) {
	ifr, err := unix.NewIfreq("x")
	if err != nil {
		return "", 0, err
	}
	switch err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); {
	case err == unix.EBADFD:
		return "", 0, errors.New("it has been removed")
	case err != nil:
		return "", 0, os.NewSyscallError("TUNGETIFF", err)
	}
	ns, err := unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return "", 0, os.NewSyscallError("TUNGETDEVNETNS", err)
	}
	defer unix.Close(ns)
	var its, ours unix.Stat_t
	if err := errors.Join(unix.Fstat(ns, &its), unix.Stat("/proc/thread-self/ns/net", &ours)); err != nil {
		return "", 0, fmt.Errorf("network namespace: %w", err)
	}
	if its.Dev != ours.Dev || its.Ino != ours.Ino {
		return "", 0, errors.New("it is in another network namespace")
	}
	return ifr.Name(), ifr.Uint16(), nil
}

// differs returns how the device of a queue differs from one called name with the options o; nil: it does not.
func (o *Options) differs(name string, fd int) error {
	is, flags, err := identify(fd)
	plain := flags&unix.IFF_VNET_HDR == 0
	switch {
	case err != nil:
		return err
	case is != name:
		return fmt.Errorf("it is called %s, want %s", is, name)
	case flags&unix.IFF_TAP != 0 != o.TAP:
		return fmt.Errorf("it is no %s device", o.kind())
	case plain != o.Plain:
		return fmt.Errorf("it has been opened with offload %s, want %s", on(!plain), on(!o.Plain))
	case flags&(unix.IFF_NO_PI|unix.IFF_MULTI_QUEUE|iffDetachQueue) != unix.IFF_NO_PI|unix.IFF_MULTI_QUEUE:
		return fmt.Errorf("it has other flags: %#x", flags)
	case plain:
		return nil
	}
	var size [4]byte
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNGETVNETHDRSZ, uintptr(unsafe.Pointer(&size)))
	if n := binary.NativeEndian.Uint32(size[:]); errno != 0 || n != packet.VirtioLen {
		return fmt.Errorf("its headers have %d bytes, want %d", n, packet.VirtioLen)
	}
	return nil
}

// on is a value of the key offload.
func on(offload bool) string {
	if offload {
		return "on"
	}
	return "off"
}

package tundev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// openMu serialises openPlain. Package water opens a descriptor without O_CLOEXEC.
var openMu sync.Mutex

// openPlain opens a queue without offloads, with water. It closes water's file, which is in Go's poller, and returns a
// duplicate of the descriptor.
func openPlain(name string, tap bool) (int, error) {
	kind := water.DeviceType(water.TUN)
	if tap {
		kind = water.TAP
	}
	openMu.Lock()
	defer openMu.Unlock()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	ifc, err := water.New(water.Config{DeviceType: kind,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: true}})
	if err != nil {
		closeUnattached() // water leaks its descriptor
		return -1, err
	}
	file := ifc.ReadWriteCloser.(*os.File)
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, errors.Join(err, file.Close())
	}
	fd, dup := -1, error(nil)
	err = raw.Control(func(num uintptr) { fd, dup = unix.FcntlInt(num, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dup, file.Close()); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, err
	}
	return fd, nil
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

// openVnet opens a queue whose packets come with a struct virtio_net_hdr (IFF_VNET_HDR, linux/if_tun.h).
func openVnet(name string, tap bool) (int, error) {
	var kind uint16 = unix.IFF_TUN
	if tap {
		kind = unix.IFF_TAP
	}
	fd, err := openNode()
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(kind | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setUp clears the device's IFF_MULTICAST (netdevice(7)). Otherwise the kernel sends the groups that this host has
// joined into the device (RFC 3810), as soon as it has IPv6. A TAP device also gets its MAC address and IFF_NOARP: the
// host's own ARP has no part in it.
func setUp(name string, o Options) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	flags := ifr.Uint16() &^ unix.IFF_MULTICAST
	if o.TAP {
		flags |= unix.IFF_NOARP
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return err
	}
	if err := leaveGroups(fd, ifr); err != nil || !o.TAP {
		return err
	}
	return setMAC(fd, name, o.MAC)
}

// leaveGroups makes the device, whose name is in ifr, leave the routers' group. On a host that forwards, a new device
// has joined it already (ipv6_add_dev in Linux net/ipv6/addrconf.c). An MTU that is too small for IPv6 removes the
// device's part of IPv6, with the group, and the next one makes it anew. fd is any socket.
func leaveGroups(fd int, ifr *unix.Ifreq) error {
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, ifr); err != nil {
		return err
	}
	const tooSmall = 1279
	for _, mtu := range []uint32{tooSmall, ifr.Uint32()} {
		ifr.SetUint32(mtu)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr); err != nil {
			return err
		}
	}
	return nil
}

// setMAC sets the MAC address of a device (SIOCSIFHWADDR in netdevice(7)). fd is any socket.
func setMAC(fd int, name string, mac [6]byte) error {
	var ifr struct { // struct ifreq
		name   [unix.IFNAMSIZ]byte
		family uint16 // struct sockaddr
		mac    [6]byte
		_      [16]byte
	}
	copy(ifr.name[:unix.IFNAMSIZ-1], name)
	ifr.family, ifr.mac = unix.ARPHRD_ETHER, mac
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&ifr)))
	if errno != 0 {
		return errno
	}
	return nil
}

// offloadSteps are the sets of offloads to try, the best first (linux/if_tun.h). Linux has USO since 6.2. With TSO_ECN
// GSO packets with CWR come whole, too.
var offloadSteps = [...]uint{
	unix.TUN_F_CSUM | tso | unix.TUN_F_USO4 | unix.TUN_F_USO6,
	unix.TUN_F_CSUM | tso,
	unix.TUN_F_CSUM,
	0,
}

const tso = unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN

// setOffloads sets which work the kernel may leave to the reader of this device. It returns the set of offloads that
// the kernel accepted.
func setOffloads(fd int) (set uint, err error) {
	for _, set = range offloadSteps {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETOFFLOAD, uintptr(set)); errno == 0 {
			return set, nil
		} else {
			err = errno
		}
	}
	return 0, err
}

// offloadNames is for people: "csum tso uso".
func offloadNames(set uint) string {
	var names []string
	for _, o := range []struct {
		bit  uint
		name string
	}{{unix.TUN_F_CSUM, "csum"}, {unix.TUN_F_TSO4, "tso"}, {unix.TUN_F_USO4, "uso"}} {
		if set&o.bit != 0 {
			names = append(names, o.name)
		}
	}
	return strings.Join(names, " ")
}

// Check returns an error that says what keeps this process from opening /dev/net/tun, and what to do. It makes no
// device.
func Check() error {
	fd, err := openNode()
	if err != nil {
		return explain(err)
	}
	return unix.Close(fd)
}

// openNode opens /dev/net/tun. The error is an *fs.PathError.
func openNode() (int, error) {
	const node = "/dev/net/tun"
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: node, Err: err}
	}
	return fd, nil
}

// explain adds a remedy to err, an error of opening /dev/net/tun or of making a device.
func explain(err error) error {
	_, opening := errors.AsType[*fs.PathError](err)
	remedy := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		remedy = "give a container the device with --device /dev/net/tun, or load the kernel's driver (modprobe tun)"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		remedy = "load the kernel's driver, on the host of a container (modprobe tun)"
	case opening && errors.Is(err, unix.EPERM): // devcgroup_check_permission in Linux include/linux/device_cgroup.h
		remedy = "the device cgroup refuses it; let the container use the character device 10:200, as " +
			"--device /dev/net/tun does"
	case opening && errors.Is(err, unix.EACCES):
		remedy = "its mode, or a mount with nodev, refuses this user; run as root, or open its mode " +
			"(chmod 666 /dev/net/tun)"
	case errors.Is(err, fs.ErrPermission):
		remedy = "run as root, or with CAP_NET_ADMIN in the user namespace that the network belongs to"
	case errors.Is(err, unix.EMFILE):
		remedy = "lower queues, or raise LimitNOFILE"
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		remedy = "the name is taken by another device"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, remedy)
}

// iovec points to b, which must not be empty.
func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

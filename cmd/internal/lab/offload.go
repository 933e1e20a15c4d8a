package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	ethtoolkit "github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// deferIRQs is how many polls may find nothing before a held super-packet goes up: napi_defer_hard_irqs of a link with GRO.
const deferIRQs = 4

// Ethtool commands with one value, linux/ethtool.h; not in x/sys.
const (
	ethtoolSetTSO = 0x1f
	ethtoolSetGSO = 0x24
	ethtoolSetGRO = 0x2c
)

// offload sets what Link says about super-packets on the link between a host and the router.
func (l *Lab) offload(h *Host, link Link) error {
	if link.Segmented {
		err := l.Router.Do(func() error {
			if err := ethtool(h.Name, ethtoolSetTSO, 0); err != nil {
				return err
			}
			return ethtool(h.Name, ethtoolSetGSO, 0)
		})
		if err != nil {
			return fmt.Errorf("router: switch segmentation offload off: %w", err)
		}
	}
	if link.GRO == 0 {
		return nil
	}
	err := h.Do(func() error {
		if err := ethtool(uplink, ethtoolSetGRO, 1); err != nil {
			return err
		}
		return holdGRO(uplink, link.GRO)
	})
	if err != nil {
		return fmt.Errorf("%s: switch GRO on: %w", h.Name, err)
	}
	return nil
}

// Offload switches an offload of a host's link to the router on or off, by ethtool's name for it ("tx-udp-segmentation").
func (h *Host) Offload(feature string, on bool) error {
	err := h.Do(func() error {
		e, err := ethtoolkit.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return e.Change(uplink, map[string]bool{feature: on})
	})
	if err != nil {
		return fmt.Errorf("%s: switch %s of %s: %w", h.Name, feature, uplink, err)
	}
	return nil
}

// ethtool sets one value of a link of this thread's namespace (netdevice(7), SIOCETHTOOL).
func ethtool(link string, command, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	argument := [2]uint32{command, value} // struct ethtool_value
	var request struct {                  // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], link)
	request.data = unsafe.Pointer(&argument)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("ethtool command %#x=%d on %s: %w", command, value, link, errno)
	}
	return nil
}

// holdGRO sets how long a link of this thread's namespace holds super-packets back to make them larger. It spoils the thread
// for everything but Do: the values are in sysfs only, where this namespace's devices are in a mount of its own.
func holdGRO(link string, hold time.Duration) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	for file, value := range map[string]int64{"gro_flush_timeout": hold.Nanoseconds(), "napi_defer_hard_irqs": deferIRQs} {
		if err := os.WriteFile(filepath.Join("/sys/class/net", link, file), []byte(strconv.FormatInt(value, 10)), 0); err != nil {
			return err
		}
	}
	return nil
}

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// CheckPrivileges tells whether this process may do what both programs do, before they touch anything: it has CAP_NET_ADMIN and CAP_NET_RAW,
// and can open /dev/net/tun.
func CheckPrivileges() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_NET_RAW, "CAP_NET_RAW"}} {
		if data[0].Effective&(1<<c.bit) == 0 {
			return fmt.Errorf("%s is missing: run as root, or give CAP_NET_ADMIN and CAP_NET_RAW", c.name)
		}
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: load the kernel's tun driver (modprobe tun), or give the container the device (--device /dev/net/tun)", err)
	case err != nil:
		return fmt.Errorf("%w: run as root, or with the right to open it", err)
	}
	return f.Close()
}

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// CheckPrivileges reports whether this process may do what both programs do, before they touch anything: it has
// CAP_NET_ADMIN and CAP_NET_RAW, and can open /dev/net/tun.
func CheckPrivileges() error {
	have, err := cap.GetPID(0)
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for _, c := range []cap.Value{cap.NET_ADMIN, cap.NET_RAW} {
		if ok, err := have.GetFlag(cap.Effective, c); err != nil || !ok {
			return fmt.Errorf("%s is missing: run as root, or give CAP_NET_ADMIN and CAP_NET_RAW",
				strings.ToUpper(c.String()))
		}
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: load the kernel's tun driver (modprobe tun), or give the container the device "+
			"(--device /dev/net/tun)", err)
	case err != nil:
		return fmt.Errorf("%w: run as root, or with the right to open it", err)
	}
	return f.Close()
}

// KeepOnly takes every capability but keep from this process, from all of its threads and for good, and the ways to get
// one back by running a program (capabilities(7), no_new_privs). Root too has no more rights to files then than any
// other user. A capability of keep that the process does not have it does not get. The error says in one line what was
// refused, by a container for one; all else is done.
func KeepOnly(keep ...cap.Value) error {
	have, err := cap.GetPID(0)
	if err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	var refused []string
	must := func(what string, err error) {
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", what, err))
		}
	}
	_, err = cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1)
	must("no_new_privs", err)
	// Both need CAP_SETPCAP. Who lacks it gets nothing back anyway, with no_new_privs.
	if may, err := have.GetFlag(cap.Effective, cap.SETPCAP); err == nil && may {
		must("bounding set", cap.DropBound(bounded(keep)...))
		must("securebits", rootIsNobody())
	}
	must("ambient set", cap.ResetAmbient())
	left := cap.NewSet() // nothing inheritable
	for _, c := range keep {
		if has, err := have.GetFlag(cap.Permitted, c); err == nil && has {
			must(c.String(), errors.Join(left.SetFlag(cap.Permitted, true, c), left.SetFlag(cap.Effective, true, c)))
		}
	}
	must("permitted set", left.SetProc())
	if refused == nil {
		return nil
	}
	return errors.New(strings.Join(refused, "; "))
}

// WarnUnreadable logs a warning if the process, with the rights that it has kept, can't read the configuration file.
func WarnUnreadable(log *slog.Logger, file string) {
	if err := unix.Access(file, unix.R_OK); err != nil {
		log.Warn("a reload can't read the configuration file: let the user read it as whom the program runs: "+
			"even root needs a file of its own, or one that everybody may read", "file", file, "error", err)
	}
}

// bounded is what the bounding set has beyond keep.
func bounded(keep []cap.Value) (more []cap.Value) {
	for c := range cap.MaxBits() {
		if in, err := cap.GetBound(c); err == nil && in && !slices.Contains(keep, c) {
			more = append(more, c)
		}
	}
	return more
}

// rootIsNobody makes a program that root runs start without capabilities, as one does that anybody else runs.
func rootIsNobody() error {
	bits, err := cap.Prctl(unix.PR_GET_SECUREBITS)
	if err != nil {
		return err
	}
	return (cap.Secbits(bits) | cap.SecbitNoRoot | cap.SecbitNoRootLocked).Set()
}

package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vstun/tundev"
)

// CheckPrivileges returns an error if this process lacks a right that both programs need: CAP_NET_ADMIN, CAP_NET_RAW,
// or access to /dev/net/tun. It changes nothing.
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
	if err := holdsForNetwork(); err != nil {
		return err
	}
	return tundev.Check()
}

// holdsForNetwork returns an error if this process's capabilities do not hold for its network namespace, since that
// belongs to an outer user namespace (ioctl_ns(2)).
func holdsForNetwork() error {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil // without /proc, or on an old kernel, the kernel's refusals say what is missing
	}
	defer f.Close()
	switch fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS); {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EPERM):
		return errors.New("CAP_NET_ADMIN does not hold for this network, which belongs to another user namespace: " +
			"give the rootless container a network of its own, or start it as root")
	}
	return nil
}

// KeepOnly drops every capability but keep from all threads of this process, for good: no program that it runs gets one
// back (capabilities(7), no_new_privs). Then root has no more rights to files than other users. KeepOnly adds no
// capability that the process lacks. The error is one line: the steps that were refused, for example by a container.
// All other steps are done.
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
	// Both need CAP_SETPCAP. A process without it gets no capability back anyway, by no_new_privs.
	if may, err := have.GetFlag(cap.Effective, cap.SETPCAP); err == nil && may {
		must("bounding set", cap.DropBound(boundedBeyond(keep)...))
		must("securebits", withoutRootPrivileges())
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

// Become gives all threads of this process, which is root's, the user and group of another, for good. It keeps no
// capability but keep.
func Become(uid, gid uint32, keep ...cap.Value) error {
	if err := errors.Join(cap.SetGroups(int(gid)), cap.SetUID(int(uid))); err != nil {
		return fmt.Errorf("change to user %d and group %d: %w", uid, gid, err)
	}
	return KeepOnly(keep...)
}

// WarnUnreadable logs a warning if the process can't read a file with the rights that it has kept. what says which file
// it is.
func WarnUnreadable(log *slog.Logger, what, file string) {
	if err := unix.Access(file, unix.R_OK); err != nil {
		log.Warn("a reload can't read "+what+": make it readable for the program's user: without capabilities, root "+
			"too must own the file, or all users may read it", "file", file, "error", err)
	}
}

// boundedBeyond returns the capabilities of the bounding set that are not in keep.
func boundedBeyond(keep []cap.Value) (more []cap.Value) {
	for c := range cap.MaxBits() {
		if in, err := cap.GetBound(c); err == nil && in && !slices.Contains(keep, c) {
			more = append(more, c)
		}
	}
	return more
}

// withoutRootPrivileges lets programs that root runs start without capabilities, as programs of other users do.
func withoutRootPrivileges() error {
	bits, err := cap.Prctl(unix.PR_GET_SECUREBITS)
	if err != nil {
		return err
	}
	return (cap.Secbits(bits) | cap.SecbitNoRoot | cap.SecbitNoRootLocked).Set()
}

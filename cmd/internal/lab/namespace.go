package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is where ip-netns(8) looks for named network namespaces.
const namespaceDir = "/run/netns"

// prepareNamespaceDir makes namespaceDir a shared mount, as ip-netns(8) does before it creates the first name.
// Otherwise the first `ip netns add` of another program does so, and mounts each existing name a second time: then no
// name can be deleted any more (EBUSY). ip-netns(8) takes the same lock.
func prepareNamespaceDir() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return fmt.Errorf("directory of namespaces: %w", err)
	}
	dir, err := os.Open(namespaceDir)
	if err != nil {
		return fmt.Errorf("directory of namespaces: %w", err)
	}
	defer dir.Close() // and with it the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", namespaceDir, err)
	}
	share := func() error { return unix.Mount("", namespaceDir, "", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if err == unix.EINVAL { // no mount point yet
		if err = unix.Mount(namespaceDir, namespaceDir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", namespaceDir, err)
	}
	return nil
}

// onThread runs fn on its own operating system thread and returns after fn. The thread is never used again, whatever
// namespace fn leaves it in: it stays locked to a goroutine that ends, so Go ends the thread. It is never the main
// thread: Go cannot end that one, and /proc/self/net shows its namespace.
func onThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onThread(fn) // gets another thread, since this one is taken
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	<-done
}

// claim ensures that only one process at a time has a lab of this prefix. The claim is an abstract Unix socket, which
// ends with its process and leaves no file.
func claim(prefix string) (net.Listener, error) {
	address := "@vstun-lab-" + prefix
	lock, err := net.Listen("unix", address)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("prefix %s is in use by a lab that is up%s: end that one first", prefix, owner(address))
	}
	if err != nil {
		return nil, fmt.Errorf("claim prefix %s: %w", prefix, err)
	}
	return lock, nil
}

// owner returns the name of the process that listens on a Unix socket, or "" if it is not known.
func owner(address string) string {
	conn, err := net.Dial("unix", address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	var text string
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			text = fmt.Sprintf(" (process %d)", cred.Pid)
		}
	})
	return text
}

// removeStale deletes the namespaces of a lab of this prefix whose process died. Its processes died with it, see
// Host.Start.
func removeStale(prefix string) error {
	name := regexp.MustCompile("^" + regexp.QuoteMeta(prefix) + `-(client|router|director|switch|insider|web[0-9]+)$`)
	entries, err := os.ReadDir(namespaceDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for namespaces of an earlier lab: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if name.MatchString(e.Name()) {
			errs = append(errs, deleteNamespace(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// deleteNamespace deletes the name of a namespace. The kernel frees the namespace when it is unused. A name that does
// not exist, or a file to which no namespace was ever bound, is no error.
func deleteNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("delete namespace %s: unmount %s: %w", name, path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return nil
}

// create makes the host's namespace and starts its thread. On an error no namespace is left.
func (h *Host) create() error {
	started := make(chan error)
	h.lab.threads.Go(func() {
		onThread(func() {
			ns, err := netns.NewNamed(h.Namespace)
			if err != nil {
				err = errors.Join(fmt.Errorf("make namespace %s: %w", h.Namespace, err), deleteNamespace(h.Namespace))
				started <- err
				return
			}
			ns.Close()
			started <- nil
			h.serve()
		})
	})
	return <-started
}

// serve runs the functions from h.work on the host's own thread, inside its namespace. The thread lives as long as the
// lab.
func (h *Host) serve() {
	for {
		select {
		case fn := <-h.work:
			fn()
		case <-h.lab.release:
			return
		}
	}
}

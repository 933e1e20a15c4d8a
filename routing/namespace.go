package routing

import (
	"encoding/hex"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const threadNetns = "/proc/thread-self/ns/net"

// namespace is the network namespace in which a Manager was opened. In Linux each thread has one, and a goroutine may
// run on any thread. A socket keeps its namespace, but /proc/sys/net is always the reading thread's.
type namespace struct {
	file *os.File
	id   string // the same for every process in it; unique until the next boot (Linux 5.14; earlier: reusable)
}

// openNamespace returns the namespace of the calling thread.
func openNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f, err := os.Open(threadNetns)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w; is /proc mounted?", err)
	}
	id, err := netnsID(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return &namespace{file: f, id: id}, nil
}

func netnsID(f *os.File) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	// The cookie is a plain uint64; IPMreq is the getsockopt of x/sys that returns just eight bytes.
	cookie, err := unix.GetsockoptIPMreq(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err == nil {
		return "cookie:" + hex.EncodeToString(append(cookie.Multiaddr[:], cookie.Interface[:]...)), nil
	}
	var st unix.Stat_t // before Linux 5.14
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("inode:%d", st.Ino), nil
}

// do calls f on a thread in the namespace. It needs no privilege if the thread is there already, as in any program that
// never changes namespaces.
func (n *namespace) do(f func() error) error {
	runtime.LockOSThread()
	same, err := n.isCurrent()
	if err != nil || same {
		defer runtime.UnlockOSThread()
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		return f()
	}
	back, err := os.Open(threadNetns)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace: %w", err)
	}
	defer back.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() {
		// A thread that can't return stays locked, and ends with its goroutine.
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

func (n *namespace) isCurrent() (bool, error) {
	var here, there unix.Stat_t
	if err := unix.Stat(threadNetns, &here); err != nil {
		return false, err
	}
	if err := unix.Fstat(int(n.file.Fd()), &there); err != nil {
		return false, err
	}
	return here.Dev == there.Dev && here.Ino == there.Ino, nil
}

func (n *namespace) close() { n.file.Close() }

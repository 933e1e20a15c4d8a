package daemon

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// HandoverVariable is the environment variable by which a unit states that it has a descriptor store
// (FileDescriptorStoreMax=), and that it runs the command undo after the program's end (ExecStopPost=). systemd tells
// the program neither before version 254.
const HandoverVariable = "VSTUN_HANDOVER"

// Handover reports whether the program may leave its descriptors and its changes to the machine to the service manager.
func Handover() bool { return os.Getenv(HandoverVariable) == "1" && os.Getenv("NOTIFY_SOCKET") != "" }

// Stored are descriptors that the service manager keeps over a restart, by the names under which they were stored.
type Stored map[string][]int

// Close closes all of s.
func (s Stored) Close() {
	for _, fds := range s {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	clear(s)
}

// TakeStored returns the descriptors that the service manager has handed to this process (sd_listen_fds(3)). Programs
// that this process starts do not get them. A second call returns none.
//
// The library's activation.Files makes files of them, which Go's poller watches: for each packet that arrives the
// kernel would wake a thread (see package pollfd).
func TakeStored() Stored {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	n, err := strconv.Atoi(count)
	if err != nil || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	const first = 3 // SD_LISTEN_FDS_START
	s, list := Stored{}, strings.Split(names, ":")
	for i := range n {
		unix.CloseOnExec(first + i)
		name := ""
		if i < len(list) {
			name = list[i]
		}
		s[name] = append(s[name], first+i)
	}
	return s
}

// storedAtOnce is the number of descriptors in one message. The kernel allows 253 (SCM_MAX_FD).
const storedAtOnce = 128

// Store gives the service manager copies of descriptors, to keep them under a name. It does not watch them for errors:
// that would cost time for each packet. Without a service manager Store does nothing.
func Store(name string, fds []int) error {
	for part := range slices.Chunk(fds, storedAtOnce) {
		if err := notifyWith("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, part); err != nil {
			return err
		}
	}
	return nil
}

// Forget lets the service manager close its copies of the descriptors that are stored under a name.
func Forget(name string) error { return Notify("FDSTOREREMOVE=1\nFDNAME=" + name) }

// notifyWith is Notify, with descriptors.
func notifyWith(state string, fds []int) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	defer unix.Close(fd)
	// SockaddrUnix knows the names that begin with @, too. The call waits while the service manager's queue is full.
	err = unix.Sendmsg(fd, []byte(state), unix.UnixRights(fds...), &unix.SockaddrUnix{Name: socket}, 0)
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return nil
}

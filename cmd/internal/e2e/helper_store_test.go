package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// descriptorStore is a service manager that keeps a program's descriptors over a restart, as systemd does.
type descriptorStore struct {
	*serviceManager
	mu    sync.Mutex
	fds   map[string][]int // by name
	ready int              // the number of READY=1
}

func newDescriptorStore(t *testing.T) *descriptorStore {
	t.Helper()
	st := &descriptorStore{serviceManager: newServiceManager(t), fds: map[string][]int{}}
	var running sync.WaitGroup
	running.Go(func() {
		text, oob := make([]byte, 256), make([]byte, 1<<12)
		for {
			n, k, _, _, err := st.ReadMsgUnix(text, oob)
			if err != nil {
				return // closed
			}
			st.receive(string(text[:n]), oob[:k])
		}
	})
	t.Cleanup(func() {
		st.Close()
		running.Wait()
		st.release()
	})
	return st
}

func (st *descriptorStore) receive(text string, oob []byte) {
	st.mu.Lock()
	defer st.mu.Unlock()
	_, name, _ := strings.Cut(text, "FDNAME=")
	switch {
	case strings.HasPrefix(text, "READY=1"):
		st.ready++
	case strings.HasPrefix(text, "FDSTOREREMOVE=1"):
		for _, fd := range st.fds[name] {
			unix.Close(fd)
		}
		delete(st.fds, name)
	case strings.HasPrefix(text, "FDSTORE=1"):
		messages, err := unix.ParseSocketControlMessage(oob)
		if err != nil {
			st.t.Error(err)
		}
		for _, m := range messages {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				st.t.Error(err)
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
			}
			st.fds[name] = append(st.fds[name], fds...)
		}
	}
}

// release closes all descriptors, as systemd does for a unit that has been stopped. A process that another test starts
// at this moment has copies of them until its program begins.
func (st *descriptorStore) release() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, fds := range st.fds {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	clear(st.fds)
}

// names returns the names of what is stored. A program's last message may be on its way.
func (st *descriptorStore) names() []string {
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.Sorted(maps.Keys(st.fds))
}

// start starts the program with the descriptors that are stored, and waits until it reports that it is ready.
func (st *descriptorStore) start(p *program) {
	st.t.Helper()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, programPath(p.name), "run", "-c", p.config)
	st.mu.Lock()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(st.fds)) {
		for _, fd := range st.fds[name] {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				st.t.Error(err)
			}
			f := os.NewFile(uintptr(dup), name)
			defer f.Close()
			cmd.ExtraFiles, names = append(cmd.ExtraFiles, f), append(names, name)
		}
	}
	was := st.ready
	st.mu.Unlock()
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+st.path, "VSTUN_HANDOVER=1",
		fmt.Sprint("LISTEN_FDS=", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	p.startAs(cmd)
	testkit.Within(st.t, p.String()+" is ready", soon, func() bool {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.ready > was
	})
}

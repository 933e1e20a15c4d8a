package tunnel

import (
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// keeper is a Keeper in this process.
type keeper map[string][]int

func (k keeper) Kept() map[string][]int {
	all := map[string][]int{}
	for name, fds := range k {
		for _, fd := range fds {
			if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
				all[name] = append(all[name], dup)
			}
		}
	}
	return all
}

func (k keeper) Keep(device string, fds []int) error {
	copies := keeper{device: fds}.Kept()
	maps.Copy(k, copies)
	return nil
}

func (k keeper) Forget(device string) error {
	for _, fd := range k[device] {
		unix.Close(fd)
	}
	delete(k, device)
	return nil
}

// TestKeeper: devices that are left are adopted. Those with other queues begin anew, those that no tunnel has any more
// are removed, and at an end without Leave all are.
func TestKeeper(t *testing.T) {
	testkit.InNamespace(t, func() {
		k := keeper{}
		control := filepath.Join(t.TempDir(), "x.sock")
		open := func(queues int, tunnels ...config.PointToPoint) *Set {
			t.Helper()
			s, err := Open(Options{Log: slog.New(slog.DiscardHandler), Control: control, Queues: queues, Sources: 1,
				Keeper: k})
			if err != nil {
				t.Fatal(err)
			}
			kerneltest.Must(t, s.Apply(tunnels, 0))
			return s
		}
		index := func(name string) int {
			if l, err := net.InterfaceByName(name); err == nil {
				return l.Index
			}
			return 0
		}
		leave := func(s *Set) {
			t.Helper()
			s.Leave()
			kerneltest.Must(t, s.Close())
		}
		a, b := tunnelOf("a", encap.KindGRE), tunnelOf("b", encap.KindGUE)
		leave(open(1, a, b))
		was := index("a")
		if was == 0 || index("b") == 0 {
			t.Fatal("the devices are not left")
		}
		s := open(1, a)
		if index("a") != was || index("b") != 0 || len(k["b"]) > 0 {
			t.Errorf("a has the index %d, had %d; b has %d", index("a"), was, index("b"))
		}
		leave(s)
		s = open(2, a, b)
		if now := index("a"); now == was || now == 0 || len(k["a"]) != 2 {
			t.Errorf("with two queues a has the index %d, had %d; %d descriptors are kept", now, was, len(k["a"]))
		}
		kerneltest.Must(t, s.Apply([]config.PointToPoint{tunnelOf("a", encap.KindGRE, tap)}, 0))
		if index("a") == 0 || index("b") != 0 || len(k) != 1 {
			t.Errorf("after a reload a has the index %d, b %d; %d are kept", index("a"), index("b"), len(k))
		}
		kerneltest.Must(t, s.Close())
		if index("a") != 0 || len(k) > 0 {
			t.Errorf("at the end a has the index %d, and %d are kept", index("a"), len(k))
		}
		leave(open(1, a))
		_, err := Open(Options{Log: slog.New(slog.DiscardHandler), Control: "/dev/null/x.sock", Queues: 1, Sources: 1,
			Keeper: k})
		if err == nil {
			t.Fatal("a journal in no folder is no error")
		}
		if index("a") != 0 || len(k) > 0 {
			t.Errorf("after a start that failed a has the index %d, and %d are kept", index("a"), len(k))
		}
	})
}

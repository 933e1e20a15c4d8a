package neigh

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// street is a host and its neighbour, each in a namespace of its own, on one veth pair:
//
//	this host                         the neighbour
//	near 10.1.0.1/24, fd01::1/64 ═══ far 10.1.0.2/24, fd01::2/64
type street struct {
	t    *testing.T
	far  *netlink.Handle
	near netlink.Link
}

var far4, far6 = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")

func newStreet(t *testing.T) *street {
	t.Helper()
	home := testkit.NewNamespace(t)
	runtime.LockOSThread() // the thread comes back to this namespace
	defer runtime.UnlockOSThread()
	away, err := netns.New()
	if err == nil {
		err = netns.Set(home)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { away.Close() })
	s := &street{t: t}
	if s.far, err = netlink.NewHandleAt(away); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.far.Close)
	a := netlink.NewLinkAttrs()
	a.Name = "near"
	s.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "far", PeerNamespace: netlink.NsFd(away)}))
	s.near, err = netlink.LinkByName("near")
	s.must(err)
	here, err := netlink.NewHandleAt(home)
	s.must(err)
	t.Cleanup(here.Close)
	for h, host := range map[*netlink.Handle]string{here: "1", s.far: "2"} {
		l, err := h.LinkByName(map[string]string{"1": "near", "2": "far"}[host])
		s.must(err)
		s.must(h.LinkSetUp(l))
		for _, prefix := range []string{"10.1.0." + host + "/24", "fd01::" + host + "/64"} {
			addr, err := netlink.ParseAddr(prefix)
			s.must(err)
			if addr.IP.To4() == nil {
				addr.Flags = unix.IFA_F_NODAD
			}
			s.must(h.AddrAdd(l, addr))
		}
	}
	for h, name := range map[*netlink.Handle]string{here: "near", s.far: "far"} {
		testkit.Eventually(t, "carrier, without which the kernel drops packets", func() bool {
			l, err := h.LinkByName(name)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
	return s
}

func (s *street) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *street) link() netlink.Link {
	l, err := s.far.LinkByName("far")
	s.must(err)
	return l
}

func (s *street) mac() [macLen]byte { return [macLen]byte(s.link().Attrs().HardwareAddr) }

func (s *street) neighbours() (all []Neighbour) {
	for _, a := range []netip.Addr{far4, far6} {
		all = append(all, Neighbour{s.near.Attrs().Index, a})
	}
	return all
}

// watcher returns a Watcher of the neighbours that runs until the test ends.
func (s *street) watcher() *Watcher {
	s.t.Helper()
	w, err := NewWatcher()
	s.must(err)
	s.must(w.Set(s.neighbours()))
	ctx, stop := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	s.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		w.Close()
	})
	return w
}

// all reports whether all neighbours have the state.
func (s *street) all(w *Watcher, want State) bool {
	states := w.States()
	for _, n := range s.neighbours() {
		if states[n] != want {
			return false
		}
	}
	return true
}

// TestWatcher: neighbours are resolved at once, and stay so without traffic. One that does not answer any more is found
// out, and comes back with another MAC address.
func TestWatcher(t *testing.T) {
	t.Parallel()
	s := newStreet(t)
	w := s.watcher()
	first := s.mac()
	testkit.Eventually(t, "the neighbours are resolved", func() bool { return s.all(w, State{MAC: first}) })
	testkit.Receive(t, "the change is reported", w.Changed())

	s.must(s.far.LinkSetARPOff(s.link())) // the host is there, but does not answer
	testkit.Eventually(t, "the silent neighbours are found out", func() bool {
		return s.all(w, State{MAC: first, Silent: true})
	})
	testkit.Receive(t, "the silence is reported", w.Changed())

	second := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	s.must(s.far.LinkSetHardwareAddr(s.link(), second))
	s.must(s.far.LinkSetARPOn(s.link()))
	testkit.Eventually(t, "they answer again", func() bool {
		return s.all(w, State{MAC: [macLen]byte(second)})
	})
}

// TestWatcherBeforeRun: a program that has set its neighbours gets their answers before it runs the Watcher.
func TestWatcherBeforeRun(t *testing.T) {
	t.Parallel()
	s := newStreet(t)
	w, err := NewWatcher()
	s.must(err)
	t.Cleanup(func() { w.Close() })
	s.must(w.Set(s.neighbours()))
	testkit.Receive(t, "the answer is reported", w.Changed())
	testkit.Eventually(t, "the neighbours are resolved", func() bool {
		for _, st := range w.States() {
			if st.Silent { // a busy machine can lose the kernel's three requests, and only Run asks again
				s.must(w.Set(nil))
				s.must(w.Set(s.neighbours()))
			}
		}
		return s.all(w, State{MAC: s.mac()})
	})
}

// TestWatcherFollows: an entry that changes in the kernel's table, as after a gratuitous ARP, changes the state at
// once. An entry that is lost there leaves the MAC address, and is resolved again.
func TestWatcherFollows(t *testing.T) {
	t.Parallel()
	s := newStreet(t)
	w := s.watcher()
	first := s.mac()
	testkit.Eventually(t, "the neighbours are resolved", func() bool { return s.all(w, State{MAC: first}) })
	other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for _, n := range s.neighbours() {
		s.must(netlink.NeighSet(&netlink.Neigh{LinkIndex: n.Device, IP: n.Address.AsSlice(),
			State: netlink.NUD_PERMANENT, HardwareAddr: other}))
	}
	testkit.Eventually(t, "the other MAC address is in force", func() bool {
		return s.all(w, State{MAC: [macLen]byte(other)})
	})
	for _, n := range s.neighbours() {
		s.must(netlink.NeighDel(&netlink.Neigh{LinkIndex: n.Device, IP: n.Address.AsSlice()}))
	}
	testkit.Eventually(t, "they are resolved again", func() bool { return s.all(w, State{MAC: first}) })
}

// TestWatcherUnknown: an address that no host has is silent after the kernel's requests, and not before. A neighbour
// that is not asked for any more has no state.
func TestWatcherUnknown(t *testing.T) {
	t.Parallel()
	s := newStreet(t)
	w := s.watcher()
	none := Neighbour{s.near.Attrs().Index, netip.MustParseAddr("10.1.0.77")}
	s.must(w.Set([]Neighbour{none}))
	if st := w.States(); len(st) != 1 || st[none] != (State{}) {
		t.Errorf("at first: %v", st)
	}
	testkit.Eventually(t, "the address is silent", func() bool { return w.States()[none] == State{Silent: true} })
}

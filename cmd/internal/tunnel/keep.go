package tunnel

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"vstun/routing"
	"vstun/tundev"
)

// A Keeper keeps the descriptors of devices over a restart of the program: routes by them stay, and packets wait in
// their queues.
type Keeper interface {
	// Kept returns the descriptors of the devices that the last start has left, by the devices' names. They belong to
	// the caller. A second call returns none.
	Kept() map[string][]int
	// Keep takes copies of a device's descriptors.
	Keep(device string, fds []int) error
	// Forget closes the copies of a device's descriptors.
	Forget(device string) error
}

// openNetwork opens the manager of the network's state. With a Keeper it adopts the state of the last start.
func (s *Set) openNetwork(journal string) (m *routing.Manager, err error) {
	if s.o.Keeper == nil {
		return routing.Open(journal, s.o.Log)
	}
	s.kept = s.o.Keeper.Kept()
	m, _, err = routing.Adopt(journal, s.o.Log)
	return m, err
}

// adopt returns the kept device of a name, nil for none. One that differs from what o makes is removed.
func (s *Set) adopt(name string, o tundev.Options) (*tundev.Device, error) {
	fds := s.kept[name]
	if len(fds) == 0 {
		return nil, nil
	}
	delete(s.kept, name)
	is, failed := tundev.Identify(fds[0])
	d, err := tundev.Adopt(name, o, fds)
	if err == nil {
		s.o.Log.Info("took over the device of the last start, with the packets that wait in it", "tunnel", name)
		return d, nil
	}
	s.o.Log.Info("the device of the last start is given up: packets that wait in it are lost", "tunnel", name,
		"reason", err)
	s.forget(name, failed == nil && is == name)
	return nil, nil
}

// keep gives the devices of tunnels to the Keeper that it does not have yet, and removes those of the last start that
// no tunnel has.
func (s *Set) keep(tunnels []*tunnel) {
	s.dropKept()
	if s.o.Keeper == nil {
		return
	}
	for _, t := range tunnels {
		if t.kept {
			continue
		}
		if err := s.o.Keeper.Keep(t.name, t.device.Descriptors()); err != nil {
			s.o.Log.Warn("the device of a tunnel is not kept over a restart", "tunnel", t.name, "error", err)
			continue
		}
		t.kept = true
	}
}

// dropKept removes the devices of the last start that have not been adopted.
func (s *Set) dropKept() {
	for _, name := range slices.Sorted(maps.Keys(s.kept)) {
		for _, fd := range s.kept[name] {
			unix.Close(fd)
		}
		s.forget(name, true)
	}
	s.kept = nil
}

// forget lets the Keeper forget a device, and removes that if it is there. By the Keeper's descriptors it would stay
// too long for another one of the name.
func (s *Set) forget(name string, there bool) {
	if there {
		if err := routing.RemoveLink(name); err != nil {
			s.o.Log.Warn("cannot remove the device of a tunnel", "tunnel", name, "error", err)
		}
	}
	if err := s.o.Keeper.Forget(name); err != nil {
		s.o.Log.Warn("the device of a tunnel is still kept", "tunnel", name, "error", err)
	}
}

// Leave makes Close leave the devices that the Keeper has, and the network's state, for the next start.
func (s *Set) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaves = true
}

// Package pollfd has descriptors that a worker waits for by poll(2) and not in Go's poller. Go's poller keeps
// descriptors in its epoll set all the time. For each packet that arrives, and for each that was sent and freed, the
// kernel would then wake a thread on another processor, although the worker is running and needs no wakeup.
package pollfd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD is an open, non-blocking descriptor. Several goroutines may use it; Close waits for them.
type FD struct {
	gate
	num int
}

// New takes over the descriptor num and makes it non-blocking. On an error it is closed.
func New(num int) (*FD, error) {
	f := &FD{num: num}
	if err := f.open(num); err != nil {
		return nil, err
	}
	return f, nil
}

// Acquire returns the descriptor's number, which is valid until Release. It returns os.ErrClosed after Close. Call it
// once a batch, not once a packet.
func (f *FD) Acquire() (uintptr, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	return uintptr(f.num), nil
}

// Wait waits, between Acquire and Release, until the descriptor is ready for events (unix.POLLIN, unix.POLLOUT) or has
// an error, which the next call on it returns. It returns os.ErrClosed once Close or EndWaits has been called.
func (f *FD) Wait(events int16) error {
	fds := [2]unix.PollFd{{Fd: int32(f.bell), Events: unix.POLLIN}, {Fd: int32(f.num), Events: events}}
	err := f.wait(fds[:])
	if err == ErrChanged { // only EndWaits rings the bell of an open FD
		return os.ErrClosed
	}
	return err
}

// EndWaits ends all waiting, now and later. The descriptor stays open for other use. It returns os.ErrClosed after
// Close.
func (f *FD) EndWaits() error {
	f.changes.Lock() // Close closes the bell
	defer f.changes.Unlock()
	if f.closed.Load() {
		return os.ErrClosed
	}
	return f.ring()
}

// Close ends all waiting, waits for users of the descriptor, and closes it.
func (f *FD) Close() error { return f.shut(func() []int { return []int{f.num} }) }

// Group is several descriptors for which one goroutine waits. Other goroutines may use them at the same time. Close
// waits for their Release.
type Group struct {
	gate
	nums []int
	fds  []unix.PollFd // the bell first, then the descriptors to wait for
}

// ErrChanged is returned by Wait while Change waits: call Release, and begin again with Acquire.
var ErrChanged = errors.New("the descriptors are about to change")

// NewGroup takes over the descriptors nums and makes them non-blocking. On an error they are closed.
func NewGroup(nums []int) (*Group, error) {
	g := &Group{nums: slices.Clone(nums)}
	if err := g.open(g.nums...); err != nil {
		return nil, err
	}
	g.watch(len(nums))
	return g, nil
}

// watch makes Wait wait for the first n descriptors.
func (g *Group) watch(n int) {
	g.fds = append(g.fds[:0], unix.PollFd{Fd: int32(g.bell), Events: unix.POLLIN})
	for _, num := range g.nums[:n] {
		g.fds = append(g.fds, unix.PollFd{Fd: int32(num)})
	}
}

// Change calls fn while no goroutine uses the descriptors. It takes over the descriptors that fn returns, which must be
// non-blocking. fn closes the others. From then on Wait waits for the first n of them. After Close it returns
// os.ErrClosed without calling fn.
func (g *Group) Change(fn func(nums []int) (next []int, n int)) error {
	g.changes.Lock() // otherwise one Change would clear the bell of another
	defer g.changes.Unlock()
	if g.closed.Load() { // there may be no bell any more
		return os.ErrClosed
	}
	if err := g.ring(); err != nil {
		return err
	}
	g.use.Lock()
	defer g.use.Unlock()
	if g.closed.Load() {
		return os.ErrClosed
	}
	var b [8]byte
	if _, err := unix.Read(g.bell, b[:]); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	var n int
	g.nums, n = fn(g.nums)
	g.watch(n)
	return nil
}

// Acquire keeps the descriptors open until Release. It returns os.ErrClosed after Close. Call it once a batch, not once
// a packet.
func (g *Group) Acquire() error { return g.enter() }

// Num is the number of descriptor i, in New's order, to be used between Acquire and Release.
func (g *Group) Num(i int) uintptr { return uintptr(g.nums[i]) }

// Wait waits, between Acquire and Release, until one of the descriptors is ready for events or in error, see Ready. It
// returns ErrChanged while Change waits for the end of all use.
func (g *Group) Wait(events int16) error {
	for i := range g.fds[1:] {
		g.fds[1+i].Events = events
	}
	return g.wait(g.fds)
}

// Ready reports whether the last Wait found descriptor i ready or in error.
func (g *Group) Ready(i int) bool { return g.fds[1+i].Revents != 0 }

// Close ends all waiting, waits for users of the descriptors, and closes them.
func (g *Group) Close() error { return g.shut(func() []int { return g.nums }) }

// gate counts users of the descriptors; shut waits for them.
type gate struct {
	bell    int // an eventfd(2): readable once shut has been called, or while Change waits
	use     sync.RWMutex
	closed  atomic.Bool
	changes sync.Mutex // for users of the bell; not taken under use
}

// open makes the descriptors nums non-blocking, or closes them.
func (g *gate) open(nums ...int) (err error) {
	if g.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return errors.Join(fmt.Errorf("eventfd: %w", err), closeAll(nums))
	}
	for _, num := range nums {
		if err := unix.SetNonblock(num, true); err != nil {
			return errors.Join(fmt.Errorf("non-blocking descriptor: %w", err), unix.Close(g.bell), closeAll(nums))
		}
	}
	return nil
}

func (g *gate) enter() error {
	g.use.RLock()
	if g.closed.Load() {
		g.use.RUnlock()
		return os.ErrClosed
	}
	return nil
}

// Release ends the use that Acquire began.
func (g *gate) Release() { g.use.RUnlock() }

// wait waits for one of fds. The first is the bell.
func (g *gate) wait(fds []unix.PollFd) error {
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case g.closed.Load():
			return os.ErrClosed
		case err == nil && fds[0].Revents != 0:
			return ErrChanged
		case err == nil:
			return nil
		case err != unix.EINTR:
			return fmt.Errorf("poll: %w", err)
		}
	}
}

// shut closes the gate. It closes nums once no goroutine uses them.
func (g *gate) shut(nums func() []int) error {
	if g.closed.Swap(true) {
		return os.ErrClosed
	}
	g.changes.Lock() // Change reads the bell
	defer g.changes.Unlock()
	err := g.ring()
	g.use.Lock()
	defer g.use.Unlock()
	return errors.Join(err, closeAll(nums()), unix.Close(g.bell))
}

// ring wakes waiting goroutines. The caller must hold g.changes.
func (g *gate) ring() error {
	_, err := unix.Write(g.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

func closeAll(nums []int) error {
	var errs []error
	for _, num := range nums {
		errs = append(errs, unix.Close(num))
	}
	return errors.Join(errs...)
}

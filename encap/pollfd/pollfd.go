// Package pollfd is descriptors that a worker waits for by poll(2) and not in Go's poller. That one would keep them in its epoll set all the
// time, where the kernel calls it for each packet that comes, and for each that has been sent and freed, and wakes a thread on another
// processor for them, though the worker is at work and needs no waking.
package pollfd

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD is an open, non-blocking descriptor. Several goroutines may use it; Close waits for them.
type FD struct {
	num    int
	bell   int // an eventfd(2): readable once Close has been called
	use    sync.RWMutex
	closed atomic.Bool
}

// New takes over the descriptor num and makes it non-blocking. On an error it is closed.
func New(num int) (*FD, error) {
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), unix.Close(num))
	}
	if err := unix.SetNonblock(num, true); err != nil {
		return nil, errors.Join(fmt.Errorf("non-blocking descriptor: %w", err), unix.Close(bell), unix.Close(num))
	}
	return &FD{num: num, bell: bell}, nil
}

// Acquire returns the descriptor's number, which is good until Release; os.ErrClosed after Close. It is for a batch, not for a packet.
func (f *FD) Acquire() (uintptr, error) {
	f.use.RLock()
	if f.closed.Load() {
		f.use.RUnlock()
		return 0, os.ErrClosed
	}
	return uintptr(f.num), nil
}

// Release ends what Acquire began.
func (f *FD) Release() { f.use.RUnlock() }

// Wait waits, between Acquire and Release, until the descriptor is ready for events (unix.POLLIN, unix.POLLOUT) or in error, which the next call
// on it will tell. It returns os.ErrClosed once Close has been called.
func (f *FD) Wait(events int16) error {
	fds := [2]unix.PollFd{{Fd: int32(f.num), Events: events}, {Fd: int32(f.bell), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds[:], -1)
		switch {
		case f.closed.Load():
			return os.ErrClosed
		case err == nil:
			return nil
		case err != unix.EINTR:
			return fmt.Errorf("poll: %w", err)
		}
	}
}

// Close ends all waiting, waits until nobody uses the descriptor, and closes it.
func (f *FD) Close() error {
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	_, err := unix.Write(f.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.use.Lock()
	defer f.use.Unlock()
	return errors.Join(err, unix.Close(f.num), unix.Close(f.bell))
}

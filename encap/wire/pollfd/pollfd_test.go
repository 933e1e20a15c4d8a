package pollfd

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (read *FD, write int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f, err := New(p[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		unix.Close(p[1])
	})
	return f, p[1]
}

func TestWait(t *testing.T) {
	f, w := pipe(t)
	fd, err := f.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := unix.Read(int(fd), b[:]); err != unix.EAGAIN {
		t.Fatalf("a descriptor that blocks: %v", err)
	}
	ready := make(chan error)
	go func() { ready <- f.Wait(unix.POLLIN) }()
	if _, err := unix.Write(w, b[:]); err != nil {
		t.Fatal(err)
	}
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(int(fd), b[:]); err != nil {
		t.Fatal(err)
	}
	f.Release()
}

// Close must end all waiting, must not close the descriptor while it is in use, and must leave no descriptor open.
func TestCloseEndsWaits(t *testing.T) {
	f, _ := pipe(t)
	var waiting, done sync.WaitGroup
	for range 8 {
		waiting.Add(1)
		done.Go(func() {
			if _, err := f.Acquire(); err != nil {
				t.Error(err)
			}
			waiting.Done()
			if err := f.Wait(unix.POLLIN); !errors.Is(err, os.ErrClosed) {
				t.Errorf("got %v", err)
			}
			f.Release()
		})
	}
	waiting.Wait()
	num, bell := f.num, f.bell
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	done.Wait()
	for _, fd := range []int{num, bell} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("descriptor %d is still open: %v", fd, err)
		}
	}
	if _, err := f.Acquire(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// EndWaits ends waiting, also that to come, and leaves the descriptor open.
func TestEndWaits(t *testing.T) {
	f, w := pipe(t)
	fd, err := f.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- f.Wait(unix.POLLIN) }()
	if err := f.EndWaits(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{<-ended, f.Wait(unix.POLLIN)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := unix.Write(w, []byte{1}); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if n, err := unix.Read(int(fd), b[:]); n != 1 || err != nil {
		t.Errorf("%d bytes are read, %v", n, err)
	}
	f.Release()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.EndWaits(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCloseWaitsForUser(t *testing.T) {
	f, _ := pipe(t)
	fd, err := f.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() { closed <- f.Close() }()
	if err := f.Wait(unix.POLLIN); !errors.Is(err, os.ErrClosed) { // Close is under way
		t.Fatal(err)
	}
	select {
	case err := <-closed:
		t.Fatalf("closed while in use: %v", err)
	default:
	}
	if _, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil {
		t.Error(err)
	}
	f.Release()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not closed")
	}
}

func TestWaitAllocatesNothing(t *testing.T) {
	f, w := pipe(t)
	if _, err := unix.Write(w, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := f.Acquire(); err != nil {
			t.Fatal(err)
		}
		if err := f.Wait(unix.POLLIN); err != nil {
			t.Fatal(err)
		}
		f.Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNewOfNothing(t *testing.T) {
	if f, err := New(1 << 20); err == nil {
		t.Errorf("got %v", f)
	}
}

// TestGroup: one goroutine waits for several descriptors. Ready reports the ready one. Close ends the wait.
func TestGroup(t *testing.T) {
	var read []int
	var write [3]int
	for i := range write {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(p[1]) })
		read, write[i] = append(read, p[0]), p[1]
	}
	g, err := NewGroup(read)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Acquire(); err != nil {
		t.Fatal(err)
	}
	for i, w := range write {
		if _, err := unix.Write(w, []byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := g.Wait(unix.POLLIN); err != nil {
			t.Fatal(err)
		}
		for j := range write {
			if g.Ready(j) != (j == i) {
				t.Errorf("%d is ready: %t, when %d has something", j, g.Ready(j), i)
			}
		}
		if n, err := unix.Read(int(g.Num(i)), make([]byte, 2)); n != 1 || err != nil {
			t.Error(n, err)
		}
		if _, err := unix.Read(int(g.Num(i)), make([]byte, 2)); err != unix.EAGAIN {
			t.Errorf("a descriptor that blocks: %v", err)
		}
	}
	closed := make(chan error)
	go func() { closed <- g.Close() }()
	if err := g.Wait(unix.POLLIN); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	g.Release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := g.Acquire(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	for _, fd := range read {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("descriptor %d is still open: %v", fd, err)
		}
	}
}

// TestGroupChange: a waiting goroutine lets the change in, and waits for the new descriptors then. Close ends changes.
func TestGroupChange(t *testing.T) {
	pipe := func() (read, write int) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(p[1]) })
		return p[0], p[1]
	}
	first, _ := pipe()
	g, err := NewGroup([]int{first})
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan int)
	go func() {
		defer close(ready)
		for {
			if g.Acquire() != nil {
				return
			}
			err := g.Wait(unix.POLLIN)
			if err == nil {
				var b [1]byte
				if n, _ := unix.Read(int(g.Num(0)), b[:]); n == 1 && g.Ready(0) {
					ready <- int(b[0])
				}
			} else if !errors.Is(err, ErrChanged) && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			g.Release()
		}
	}()
	for i := range 100 {
		next, write := pipe()
		if err := g.Change(func(nums []int) ([]int, int) {
			for _, num := range nums {
				unix.Close(num)
			}
			idle, _ := pipe() // not waited for
			return []int{next, idle}, 1
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(write, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if got := <-ready; got != i {
			t.Fatalf("read %d, want %d", got, i)
		}
	}
	var changers sync.WaitGroup
	for range 4 {
		changers.Go(func() {
			for g.Change(func(nums []int) ([]int, int) { return nums, 1 }) == nil {
			}
		})
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	changers.Wait()
	<-ready
	if err := g.Change(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

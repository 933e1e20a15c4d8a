package testkit

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime returns the user and system time that f takes on its thread. Tests that run at the same time, and other
// load on the machine, hardly change it.
func CPUTime(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	f()
	return threadTime() - before
}

func threadTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

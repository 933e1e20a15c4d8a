package testkit

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
)

// NewNamespace moves the calling goroutine into a new network namespace until the test ends, and returns its handle,
// which is valid until then. It must be called by the test's own goroutine. It skips the test without root.
func NewNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	ns, leave := enter(t)
	t.Cleanup(leave)
	return ns
}

// InNamespace calls fn in a new network namespace. It skips the test without root.
func InNamespace(t testing.TB, fn func()) {
	t.Helper()
	_, leave := enter(t)
	defer leave()
	fn()
}

func enter(t testing.TB) (ns netns.NsHandle, leave func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to make a network namespace")
	}
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err = netns.New()
	if err != nil {
		back.Close()
		t.Fatal(err)
	}
	return ns, func() {
		ns.Close()
		err := netns.Set(back)
		back.Close()
		if err != nil {
			t.Errorf("leave the namespace: %v", err) // the thread stays locked, and ends with the goroutine
			return
		}
		runtime.UnlockOSThread()
	}
}

// Package testkit has helpers that the tests of several packages share. It lies in testdata: tests of all packages may
// import it, no program does, and the wildcard ./... does not match it.
package testkit

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Patience is the maximum time that Eventually and Receive wait. On a busy machine the kernel's lock of all devices is
// taken for many seconds while other tests remove bridges.
const Patience = 60 * time.Second

// Eventually waits until cond holds, for Patience at most.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	Within(t, what, Patience, cond)
}

// Within waits until cond holds. It fails the test when that takes longer than limit. It asks less often the longer it
// waits, and so that asking takes a quarter of the time at most: the tests beside it need the CPUs.
func Within(t testing.TB, what string, limit time.Duration, cond func() bool) {
	t.Helper()
	for begin := time.Now(); ; {
		asked := time.Now()
		if cond() {
			return
		}
		now := time.Now()
		if now.Sub(begin) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		pause := min(max(now.Sub(begin)/16, time.Millisecond), 50*time.Millisecond)
		time.Sleep(max(pause, min(3*now.Sub(asked), time.Second)))
	}
}

// Receive returns the next value of ch. It waits for Patience at most.
func Receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(Patience):
		t.Fatalf("not within %v: %s", Patience, what)
		panic("unreachable")
	}
}

// Descriptors returns the number of this process's descriptors of the file at path, or of all if path is "".
func Descriptors(t testing.TB, path string) (n int) {
	t.Helper()
	const dir = "/proc/self/fd"
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		// The descriptor that read the directory is closed by now.
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && (path == "" || to == path) {
			n++
		}
	}
	return n
}

// Families runs test with IPv4, then with IPv6 in parallel with other tests.
func Families(t *testing.T, test func(t *testing.T, ipv6 bool)) {
	t.Run("IPv4", func(t *testing.T) { test(t, false) })
	t.Run("IPv6", func(t *testing.T) {
		t.Parallel()
		test(t, true)
	})
}

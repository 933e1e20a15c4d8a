package health

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// patience bounds the time that a test waits for a condition.
const patience = testkit.Patience

// once makes one check, as a Monitor does.
func once(t *testing.T, p Probe, at netip.AddrPort, timeout time.Duration) (reason string, ok bool) {
	t.Helper()
	c, err := p.prepare()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	begin := time.Now()
	reason, _, err = attempt(ctx, c, endpoint{path: Direct{}, to: at.Addr(), port: at.Port()}, timeout)
	if took := time.Since(begin); took > timeout+5*time.Second {
		t.Errorf("it took %v", took)
	}
	return reason, err == nil
}

// listen starts a TCP server that calls fn for each connection and then closes it.
func listen(t testing.TB, fn func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fn(c)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// closed returns an address that refuses connections until the test ends: a socket has the port and does not listen, so
// that no other test's server gets the port.
func closed(t testing.TB) netip.AddrPort {
	t.Helper()
	return bind(t, unix.SOCK_STREAM)
}

// bind returns the address of a socket that has a port of loopback until the test ends.
func bind(t testing.TB, kind int) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if kind == unix.SOCK_DGRAM { // then it receives from this peer only, and others get port unreachable
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != nil {
			t.Fatal(err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
}

// silence reads all bytes and never answers.
func silence(c net.Conn) {
	buf := make([]byte, 4096)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// says answers with text as soon as bytes have arrived.
func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		buf := make([]byte, 4096)
		if _, err := c.Read(buf); err == nil {
			_, _ = c.Write([]byte(text))
		}
	}
}

// run runs m until the test ends.
func run(t testing.TB, m *Monitor) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// noneLeft waits until there are no more goroutines and descriptors than before.
func noneLeft(t *testing.T, goroutines, fds int) {
	t.Helper()
	testkit.Eventually(t, "goroutines and descriptors are let go", func() bool {
		return runtime.NumGoroutine() <= goroutines &&
			testkit.Descriptors(t, "") <= fds
	})
}

// plain returns the identity of a realserver without a port of its own.
func plain(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// TestNATConnectionRate: 10,000 connections a second from 16 client addresses, for half a minute, each with a request
// and an answer. No connection may fail, and none may need a second SYN. It needs VSTUN_FULL=1, and an idle machine.
func TestNATConnectionRate(t *testing.T) {
	if os.Getenv("VSTUN_FULL") == "" {
		t.Skip("SKIPPED: needs an idle machine, and VSTUN_FULL=1")
	}
	rate, length := 10_000, 30*time.Second
	if v, err := strconv.Atoi(os.Getenv("VSTUN_RATE")); err == nil {
		rate = v
	}
	s := newMethodSite(t, nat, false, 1, nil)
	clients := netip.MustParsePrefix("10.9.0.0/28")
	s.addClients(clients)
	for h, values := range map[*lab.Host]map[string]string{
		s.Client:  {"net.ipv4.ip_local_port_range": "1024 65535"},
		s.Webs[0]: {"net.ipv4.tcp_max_syn_backlog": "65536", "net.core.somaxconn": "65536"},
	} {
		for key, value := range values {
			if err := h.Sysctl(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.startDirectorWith(fmt.Sprintf(`
[[service]]
name = "web"
vip = %q
protocol = "tcp"
port = 80
forward = "nat"
realserver = [ { address = %q, port = 8080 } ]
`, s.VIP, s.Webs[0].Addr))
	stop := s.serveQuickly(s.Webs[0], 8080)
	defer stop()
	count := func(h *lab.Host, name string) int {
		t.Helper()
		n := 0
		if err := h.Do(func() (err error) { n, err = netstat(name); return err }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	ends := []*lab.Host{s.Client, s.Webs[0]}
	again := func() (n int) {
		for _, h := range ends {
			n += count(h, "TCPSynRetrans") + count(h, "TCPTimeouts")
		}
		return n
	}
	repeated := again()
	var c quickClient
	c.to = unix.SockaddrInet4{Port: 80, Addr: s.VIP.As4()}
	for a := clients.Addr(); clients.Contains(a); a = a.Next() {
		c.from = append(c.from, unix.SockaddrInet4{Addr: a.As4()})
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = s.Client.Do(func() error { return c.run(rate, length) })
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	repeated = again() - repeated
	st := s.director.balance()
	t.Logf("%d connections in %v, %.0f a second; %d failed, %d repeated segments; the slowest took %v; drops %v",
		c.begun, c.took, float64(c.begun)/c.took.Seconds(), c.failed, repeated, c.slowest, st.Drops)
	if c.failed > 0 || repeated > 0 || c.begun < rate*int(length/time.Second) || c.took > length+length/20 {
		t.Errorf("want %d connections in %v without a failure or a repeated SYN; first error: %v",
			rate*int(length/time.Second), length, c.first)
	}
	if len(st.Drops) != 0 || st.Connections.Evicted != 0 {
		t.Errorf("the director dropped %v and evicted %d connections", st.Drops, st.Connections.Evicted)
	}
}

// netstat returns a counter of the thread's namespace in /proc/net/netstat.
func netstat(name string) (int, error) {
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(b), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := range names {
			if names[j] == name && j < len(values) {
				return strconv.Atoi(values[j])
			}
		}
	}
	return 0, fmt.Errorf("no counter %s", name)
}

// quickClient opens connections at an even pace. One thread does all of its work, by epoll(7).
type quickClient struct {
	to      unix.SockaddrInet4
	from    []unix.SockaddrInet4
	begun   int
	failed  int
	first   error // of a failed connection
	took    time.Duration
	slowest time.Duration
	epoll   int
	open    map[int32]*quickExchange
}

// quickExchange is one connection.
type quickExchange struct {
	begin time.Time
	asked bool
}

var quickQuestion, quickAnswer = []byte("GET / HTTP/1.0\r\n\r\n"), []byte(strings.Repeat("answer ", 100))

func (c *quickClient) run(rate int, length time.Duration) (err error) {
	if c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(c.epoll)
	c.open = map[int32]*quickExchange{}
	const patience = 10 * time.Second
	total := int(float64(rate) * length.Seconds())
	events := make([]unix.EpollEvent, 256)
	begin := time.Now()
	for now := begin; c.begun < total || len(c.open) > 0 && now.Sub(begin) < length+patience; now = time.Now() {
		for due := min(total, int(now.Sub(begin).Seconds()*float64(rate))); c.begun < due; c.begun++ {
			c.start(now)
		}
		if c.begun == total && c.took == 0 {
			c.took = now.Sub(begin)
		}
		n, err := unix.EpollWait(c.epoll, events, 1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			c.ready(e.Fd)
		}
	}
	for fd := range c.open {
		c.end(fd, errors.New("no answer"))
	}
	return nil
}

func (c *quickClient) fail(err error) {
	if c.failed++; c.first == nil {
		c.first = err
	}
}

func (c *quickClient) start(now time.Time) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.fail(err)
		return
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(fd, &c.from[c.begun%len(c.from)]))
	if err == nil {
		if err = unix.Connect(fd, &c.to); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err == nil {
		err = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)})
	}
	if err != nil {
		c.fail(err)
		unix.Close(fd)
		return
	}
	c.open[int32(fd)] = &quickExchange{begin: now}
}

func (c *quickClient) end(fd int32, err error) {
	if err != nil {
		c.fail(err)
	} else {
		c.slowest = max(c.slowest, time.Since(c.open[fd].begin))
	}
	delete(c.open, fd)
	unix.Close(int(fd))
}

func (c *quickClient) ready(fd int32) {
	x := c.open[fd]
	if x == nil {
		return
	}
	if !x.asked {
		if _, err := unix.Write(int(fd), quickQuestion); err != nil {
			c.end(fd, err)
			return
		}
		x.asked = true
		if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_MOD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN,
			Fd: fd}); err != nil {
			c.end(fd, err)
		}
		return
	}
	var b [2048]byte
	n, err := unix.Read(int(fd), b[:])
	if err == nil && n != len(quickAnswer) {
		err = fmt.Errorf("an answer of %d bytes", n)
	}
	c.end(fd, err)
}

// serveQuickly answers one question of each connection to a port of h, and then waits for the client's end. One thread
// does all of the work.
func (s *site) serveQuickly(h *lab.Host, port int) (stop func()) {
	s.t.Helper()
	var ended atomic.Bool
	var running sync.WaitGroup
	ready := make(chan error, 1)
	running.Go(func() {
		err := h.Do(func() error {
			listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(listener)
			epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(epoll)
			err = errors.Join(unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.Bind(listener, &unix.SockaddrInet4{Port: port}), unix.Listen(listener, 65536),
				unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, listener, &unix.EpollEvent{Events: unix.EPOLLIN,
					Fd: int32(listener)}))
			if err != nil {
				return err
			}
			ready <- nil
			serveBy(epoll, listener, &ended)
			return nil
		})
		if err != nil {
			ready <- err
		}
	})
	if err := <-ready; err != nil {
		s.t.Fatal(err)
	}
	return func() {
		ended.Store(true)
		running.Wait()
	}
}

// serveBy serves the listener's connections until ended.
func serveBy(epoll, listener int, ended *atomic.Bool) {
	events, b := make([]unix.EpollEvent, 256), make([]byte, 2048)
	for !ended.Load() {
		n, _ := unix.EpollWait(epoll, events, 100)
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if fd == listener {
				for {
					conn, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
					if err != nil {
						break
					}
					_ = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, conn, &unix.EpollEvent{Events: unix.EPOLLIN,
						Fd: int32(conn)})
				}
				continue
			}
			if n, err := unix.Read(fd, b); err == nil && n > 0 {
				_, _ = unix.Write(fd, quickAnswer) // the client notices
			} else if !errors.Is(err, unix.EAGAIN) {
				unix.Close(fd)
			}
		}
	}
}

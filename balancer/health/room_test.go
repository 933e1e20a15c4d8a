package health

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// crowded is the direct path. It counts the connections that are open at once.
type crowded struct {
	Direct
	mu         sync.Mutex
	open, most int
}

func (c *crowded) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += n
	c.most = max(c.most, c.open)
}

// DialContext implements Path.
func (c *crowded) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c.add(1)
	conn, err := c.Direct.DialContext(ctx, network, address)
	if err != nil {
		c.add(-1)
		return nil, err
	}
	return &crowdedConn{conn, c}, nil
}

type crowdedConn struct {
	net.Conn
	path *crowded
}

// Close implements net.Conn.
func (c *crowdedConn) Close() error {
	defer c.path.add(-1)
	return c.Conn.Close()
}

// TestRoom: the checks in flight never exceed the bound. The others wait, their timeout begins when they begin, and
// each is made.
func TestRoom(t *testing.T) {
	t.Parallel()
	const subjects, room = 24, 4
	at := listen(t, func(c net.Conn) {
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			time.Sleep(400 * time.Millisecond) // far longer than the interval
			_, _ = c.Write([]byte("pong\n"))
		}
	})
	path := &crowded{}
	check := &Check{Probe: TCP{Send: "ping\n", Expect: "pong"}, Interval: patience, Timeout: patience, Rise: 2, Fall: 1}
	var all []Subject
	for i := range subjects {
		all = append(all, Subject{Service: "web", Realserver: plain(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})),
			Targets: []netip.Addr{at.Addr()},
			Port:    at.Port(), Path: path, Way: "direct", Check: check})
	}
	m := New(func([]Change) {})
	mustSet(t, m, all...)
	if n := m.Need(); n != subjects {
		t.Errorf("the checks need %d descriptors, want %d", n, subjects)
	}
	m.SetRoom(room)
	run(t, m)
	testkit.Eventually(t, "checks wait", func() bool { return m.Waiting() > 0 })
	testkit.Eventually(t, "all are up", func() bool {
		up := 0
		for _, s := range m.States() {
			if s.Up {
				up++
			}
		}
		return up == subjects
	})
	for _, s := range m.States() {
		if s.Failures > 0 {
			t.Errorf("realserver %v: %d of %d checks failed: %s", s.Realserver, s.Failures, s.Checks, s.Reason)
		}
	}
	path.mu.Lock()
	defer path.mu.Unlock()
	if path.most > room {
		t.Errorf("%d checks were in flight, want at most %d", path.most, room)
	}
}

// TestRoomForOne: a check that needs more descriptors than the bound is made alone.
func TestRoomForOne(t *testing.T) {
	t.Parallel()
	m := New(func([]Change) {})
	mustSet(t, m, Subject{Service: "web", Realserver: plain(netip.MustParseAddr("10.0.0.1")),
		Targets: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Way:     "direct", Path: Direct{}, Check: &Check{
			Probe: Exec{Command: []string{"/bin/true"}}, Interval: patience, Timeout: patience, Rise: 1, Fall: 1}})
	m.SetRoom(1)
	run(t, m)
	testkit.Eventually(t, "up", func() bool { return m.States()[0].Up })
}

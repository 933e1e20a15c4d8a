package connlimit

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// serve runs a server with a Limit until the test ends. Its handler answers "fine" to all paths except /hold.
func serve(t *testing.T, l *Limit, hold <-chan struct{}) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := http.Server{ConnState: l.State, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			w.(http.Flusher).Flush()
			<-hold
		}
		io.WriteString(w, "fine")
	})}
	end := make(chan error)
	go func() { end <- srv.Serve(listener) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-end; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		l.Wait()
		if len(l.conns) != 0 {
			t.Errorf("%d connections are left", len(l.conns))
		}
	})
	return &server{l, listener.Addr().String()}
}

// server is one with a Limit.
type server struct {
	limit *Limit
	at    string
}

// client is one connection, which it keeps.
type client struct {
	net.Conn
	t  testing.TB
	r  *bufio.Reader
	to *server
}

// dial connects from an address of loopback's.
func dial(t *testing.T, from string, to *server) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to.at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &client{c, t, bufio.NewReader(c), to}
}

// get asks for a path and returns the status; 0: the connection is closed. After it, the connection counts as idle: a
// server may write an answer before it reports the connection idle.
func (c *client) get(path string) int {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0
	}
	if path != "/hold" {
		io.Copy(io.Discard, resp.Body)
		c.to.awaitIdle(c.t, c.LocalAddr().String())
	}
	return resp.StatusCode
}

// awaitIdle returns when the connection of this client address counts as idle, or is gone.
func (s *server) awaitIdle(t testing.TB, client string) {
	t.Helper()
	testkit.Eventually(t, "the connection of "+client+" is idle", func() bool {
		s.limit.mu.Lock()
		defer s.limit.mu.Unlock()
		for c, k := range s.limit.conns {
			if c.RemoteAddr().String() == client {
				return k.idle
			}
		}
		return true
	})
}

// TestIdleConnectionsGiveWay: at the total bound, the connection that has been idle for longest is closed.
func TestIdleConnectionsGiveWay(t *testing.T) {
	at := serve(t, New(4, 2, ByAddress), nil)
	var all []*client
	for _, from := range []string{"127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"} {
		c := dial(t, from, at)
		if status := c.get("/"); status != 200 {
			t.Fatalf("status %d", status)
		}
		all = append(all, c)
	}
	if status := all[0].get("/"); status != 200 { // now the second one has been idle for longest
		t.Fatalf("status %d", status)
	}
	if status := dial(t, "127.0.0.4", at).get("/"); status != 200 {
		t.Errorf("a new client: status %d", status)
	}
	for i, want := range []int{200, 0, 200, 200} {
		if status := all[i].get("/"); status != want {
			t.Errorf("connection %d: status %d, want %d", i, status, want)
		}
	}
}

// TestEachClientHasABound: a client beyond its bound loses its own idle connections; other clients lose none.
func TestEachClientHasABound(t *testing.T) {
	at := serve(t, New(100, 2, ByAddress), nil)
	other := dial(t, "127.0.0.9", at)
	if status := other.get("/"); status != 200 {
		t.Fatalf("status %d", status)
	}
	var all []*client
	for range 5 {
		c := dial(t, "127.0.0.2", at)
		if status := c.get("/"); status != 200 {
			t.Fatalf("status %d", status)
		}
		all = append(all, c)
	}
	for i, c := range all {
		if status, want := c.get("/"), []int{0, 0, 0, 200, 200}[i]; status != want {
			t.Errorf("connection %d: status %d, want %d", i, status, want)
		}
	}
	if status := other.get("/"); status != 200 {
		t.Errorf("the other client: status %d", status)
	}
}

// TestBusyConnectionsStay: if no connection is idle, a new one is refused with the reason.
func TestBusyConnectionsStay(t *testing.T) {
	hold := make(chan struct{})
	at := serve(t, New(3, 2, ByAddress), hold)
	var busy []*client
	for _, from := range []string{"127.0.0.2", "127.0.0.2", "127.0.0.3"} {
		c := dial(t, from, at)
		if status := c.get("/hold"); status != 200 {
			t.Fatalf("status %d", status)
		}
		busy = append(busy, c)
	}
	for from, want := range map[string]string{"127.0.0.2": "this client has too many",
		"127.0.0.4": "too many connections at a time"} {
		text, err := io.ReadAll(dial(t, from, at))
		if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 503 ") || !strings.Contains(string(text),
			"\r\n\r\n"+want) {
			t.Errorf("from %s: %q, %v", from, text, err)
		}
	}
	close(hold)
	for _, c := range busy {
		if rest, err := c.r.ReadString('0'); err != nil && !strings.Contains(rest, "fine") {
			t.Errorf("a busy connection: %q, %v", rest, err)
		}
	}
}

// TestExemptClient: connections of the client "" neither count nor give way.
func TestExemptClient(t *testing.T) {
	at := serve(t, New(1, 1, func(net.Conn) string { return "" }), nil)
	var all []*client
	for range 3 {
		c := dial(t, "127.0.0.2", at)
		if status := c.get("/"); status != 200 {
			t.Fatalf("status %d", status)
		}
		all = append(all, c)
	}
	for _, c := range all {
		if status := c.get("/"); status != 200 {
			t.Errorf("status %d", status)
		}
	}
}

type addressed struct {
	net.Conn
	from string
}

func (a addressed) RemoteAddr() net.Addr {
	at, _ := net.ResolveTCPAddr("tcp", a.from)
	return at
}

func TestByAddress(t *testing.T) {
	for from, want := range map[string]string{"192.0.2.7:4711": "192.0.2.7", "[::ffff:192.0.2.7]:4711": "192.0.2.7",
		"[2001:db8:1:2:3::4]:80": "2001:db8:1:2::/64", "[fe80::1%lo]:80": "fe80::/64"} {
		if got := ByAddress(addressed{from: from}); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
}

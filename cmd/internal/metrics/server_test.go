package metrics

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// freeAddress returns a loopback address with a free port.
func freeAddress(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// start runs a server at the address at until the test ends.
func start(t *testing.T, at netip.AddrPort, prepare func(*Server)) *Server {
	t.Helper()
	s := NewServer()
	prepare(s)
	l, err := s.Bind(at)
	if err != nil {
		t.Fatal(err)
	}
	s.Use(l, at)
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error)
	go func() { end <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return s
}

// request sends a request and returns status, header and body of the answer.
func request(t *testing.T, method string, at netip.AddrPort, path string) (int, http.Header, string, error) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	r, err := http.NewRequest(method, fmt.Sprintf("http://%v%s", at, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(body), err
}

func links(s *Server) {
	s.Handle("/", Links("x"))
	s.Handle("/status", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "fine") }))
}

// TestServerIsForReading sends each method, and checks the headers for browsers.
func TestServerIsForReading(t *testing.T) {
	at := freeAddress(t)
	start(t, at, links)
	for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405, "PUT": 405, "DELETE": 405,
		"OPTIONS": 405, "TRACE": 405} {
		status, header, body, err := request(t, method, at, "/status")
		if err != nil || status != want {
			t.Errorf("%s: %d %v, want %d", method, status, err, want)
		}
		if want == 200 && method == "GET" && body != "fine" || header.Get("X-Content-Type-Options") != "nosniff" ||
			header.Get("Content-Security-Policy") == "" ||
			want == 405 && header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %q %v", method, body, header)
		}
	}
	for path, want := range map[string]int{"/": 200, "/none": 404, "/../etc/passwd": 404, "/debug/pprof/": 404,
		"/" + strings.Repeat("x", 2*maxHeaderBytes): 431} {
		// too large a request is not read to its end: a reset may cut the answer off
		if status, _, _, err := request(t, "GET", at, path); status != want {
			t.Errorf("%.20s: %d %v, want %d", path, status, err, want)
		}
	}
}

// TestServerMoves changes the address, to none and back, as a reload does.
func TestServerMoves(t *testing.T) {
	first, second := freeAddress(t), freeAddress(t)
	s := start(t, first, links)
	answers := func(at netip.AddrPort, want bool) {
		t.Helper()
		testkit.Eventually(t, fmt.Sprintf("%v answers: %v", at, want), func() bool {
			_, _, _, err := request(t, "GET", at, "/status")
			return (err == nil) == want
		})
	}
	move := func(at netip.AddrPort) {
		t.Helper()
		l, err := s.Bind(at)
		if err != nil {
			t.Fatal(err)
		}
		s.Use(l, at)
	}
	answers(first, true)
	if _, err := s.Bind(netip.AddrPortFrom(netip.MustParseAddr("0.0.0.0"), first.Port())); err == nil ||
		!strings.Contains(err.Error(), "the program itself is at "+first.String()) {
		t.Errorf("%v", err)
	}
	move(second)
	answers(first, false)
	answers(second, true)
	move(netip.AddrPort{})
	answers(second, false)
	move(first)
	answers(first, true)
}

// TestServerThatCannotBind: the error has the reason and the fix in one line.
func TestServerThatCannotBind(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for at, want := range map[string]string{
		taken.Addr().String(): "metrics " + taken.Addr().String() +
			": address already in use: another program is there",
		"192.0.2.1:9464": "metrics 192.0.2.1:9464: cannot assign requested address: no address of this host",
	} {
		if l, err := NewServer().Bind(netip.MustParseAddrPort(at)); err == nil || !strings.HasPrefix(err.Error(),
			want) || strings.Contains(err.Error(), "\n") || l != nil {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestServerEndsWithItsClients: Run returns despite a client that sends nothing, one that stops within its header, and
// one whose answer has not ended.
func TestServerEndsWithItsClients(t *testing.T) {
	at := freeAddress(t)
	begun, ended := make(chan bool, 1), make(chan bool, 1)
	s := NewServer()
	s.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-r.Context().Done()
		ended <- true
	}))
	l, err := s.Bind(at)
	if err != nil {
		t.Fatal(err)
	}
	s.Use(l, at)
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error)
	go func() { end <- s.Run(ctx) }()
	for _, text := range []string{"", "GET / HTTP/1.1\r\nHost", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	<-begun
	cancel()
	select {
	case err := <-end:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the server does not end")
	}
	select {
	case <-ended:
	default:
		t.Error("a request outlives the server")
	}
}

// TestIdleClientsGiveWay: a client that keeps all of the server's connections, by a request on each now and then, does
// not keep a scrape from its answer.
func TestIdleClientsGiveWay(t *testing.T) {
	at := freeAddress(t)
	start(t, at, links)
	for range maxConns {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil { // the server has taken it
			t.Fatal(err)
		}
	}
	answered := make(chan error, 1)
	go func() {
		_, _, _, err := request(t, "GET", at, "/status")
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(idleTime / 2): // before the idle ones end by themselves
		t.Error("a scrape has no answer")
	}
}

// TestServerBoundsItsAnswers holds as many answers as the server gives at a time. Further requests are answered when
// those have ended.
func TestServerBoundsItsAnswers(t *testing.T) {
	at := freeAddress(t)
	hold, begun := make(chan struct{}), make(chan struct{}, maxAnswers+3)
	start(t, at, func(s *Server) {
		s.Handle("/", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			begun <- struct{}{}
			<-hold
		}))
	})
	const more = 3
	answered := make(chan int, maxAnswers+more)
	for range maxAnswers + more {
		go func() {
			status, _, _, err := request(t, "GET", at, "/")
			if err != nil {
				status = -1
			}
			answered <- status
		}()
	}
	for range maxAnswers {
		<-begun
	}
	select {
	case <-begun:
		t.Error("one more than the bound begins")
	case <-answered:
		t.Error("one is answered")
	case <-time.After(100 * time.Millisecond):
	}
	close(hold)
	for range maxAnswers + more {
		// a machine may stand still for long
		if status := <-answered; status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.Errorf("status %d", status)
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync"
	"time"

	"vstun/cmd/internal/lab"
)

const (
	requestCount   = 12
	datagramCount  = 6
	requestTimeout = 2 * time.Second
	enoughMissing  = 3 // missing answers to give up after
)

// servers are the web and echo servers on the web hosts.
type servers struct {
	closers []io.Closer
	done    sync.WaitGroup
}

// Close ends all servers.
func (s *servers) Close() {
	for _, c := range s.closers {
		c.Close()
	}
	s.done.Wait()
}

// serve starts an HTTP and a UDP server on each web host. They listen on the VIP and answer with their host's name and
// the client's address.
func (s *show) serve() (*servers, error) {
	all := &servers{}
	for _, web := range s.lab.Webs {
		ln, err := web.Listen("tcp", netip.AddrPortFrom(s.vip(), httpPort).String())
		if err != nil {
			all.Close()
			return nil, fmt.Errorf("web server: %w", err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == streamPath {
				stream(w, r)
				return
			}
			fmt.Fprintf(w, "%s %s\n", web.Name, r.RemoteAddr)
		})}
		all.closers = append(all.closers, server)
		all.done.Go(func() { _ = server.Serve(ln) }) // returns when closed

		echo, err := web.ListenPacket("udp", netip.AddrPortFrom(s.vip(), echoPort).String())
		if err != nil {
			all.Close()
			return nil, fmt.Errorf("echo server: %w", err)
		}
		all.closers = append(all.closers, echo)
		all.done.Go(func() { answerDatagrams(web, echo) })
	}
	return all, nil
}

// answerDatagrams answers datagrams until the socket is closed.
func answerDatagrams(web *lab.Host, echo net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		_, from, err := echo.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = echo.WriteTo(fmt.Appendf(nil, "%s %s", web.Name, from), from)
		}
	}
}

// answer is one reply, as the client got it.
type answer struct {
	server string // the name in its answer
	client string // its address as the server sees it
	from   string // the address at the other end of the client's socket
}

// requests makes HTTP requests from a host, each on a new connection, and prints the answers. Its error names answers
// that are missing or come from another address than the VIP.
func (s *show) requests(ctx context.Context, from *lab.Host) error {
	vip := netip.AddrPortFrom(s.vip(), httpPort)
	by := ""
	if s.lan { // there are two clients
		by = " from the " + from.Name
	}
	s.printf("%d requests for %s%s, each on a new connection (wrr, weights %d and %d):\n\n",
		requestCount, s.url(), by, weights()[0], weights()[1])
	s.printf("   #   answered by   from                    the server sees     time\n")
	client := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		DialContext: from.DialContext, DisableKeepAlives: true,
	}}
	return s.ask(ctx, "request", requestCount, vip, func() (answer, error) { return get(ctx, client, s.url()) })
}

// url returns the URL of the web servers.
func (s *show) url() string {
	if vip := s.vip(); vip.Is6() {
		return "http://[" + vip.String() + "]/"
	}
	return "http://" + s.vip().String() + "/"
}

func get(ctx context.Context, client *http.Client, url string) (a answer, err error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { a.from = info.Conn.RemoteAddr().String() },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return a, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	return a, a.parse(body)
}

// datagrams is the UDP counterpart of requests: it sends one datagram from each of several sockets.
func (s *show) datagrams(ctx context.Context) error {
	vip := netip.AddrPortFrom(s.vip(), echoPort)
	s.printf("%d UDP datagrams to %s, each from a new socket (rr):\n\n", datagramCount, vip)
	return s.ask(ctx, "datagram", datagramCount, vip, func() (answer, error) { return s.datagram(ctx, vip) })
}

func (s *show) datagram(ctx context.Context, to netip.AddrPort) (a answer, err error) {
	// The socket is not connected, so that it receives answers from any address.
	conn, err := s.lab.Client.ListenPacket("udp", netip.AddrPortFrom(s.addr(s.lab.Client), 0).String())
	if err != nil {
		return a, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return a, err
	}
	if _, err := conn.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(to)); err != nil {
		return a, err
	}
	buf := make([]byte, 2048)
	n, from, err := conn.ReadFrom(buf)
	if err != nil {
		return a, err
	}
	a.from = from.String()
	return a, a.parse(buf[:n])
}

func (a *answer) parse(body []byte) error {
	if n, _ := fmt.Sscan(string(body), &a.server, &a.client); n != 2 {
		return fmt.Errorf("an unexpected answer: %.60q", body)
	}
	return nil
}

// ask calls once count times and prints a line for each answer, then each server's number of answers. It gives up after
// enoughMissing missing answers, which saves further timeouts.
func (s *show) ask(ctx context.Context, what string, count int, vip netip.AddrPort, once func() (answer, error)) error {
	var errs []error
	answers := map[string]int{}
	for i := range count {
		begin := time.Now()
		a, err := once()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && a.from != vip.String() {
			err = fmt.Errorf("the answer came from %s, not from %s", a.from, vip)
		}
		if netErr := net.Error(nil); errors.As(err, &netErr) && netErr.Timeout() {
			err = fmt.Errorf("no answer within %v", requestTimeout)
		}
		if err != nil {
			s.printf("  %2d   %v\n", i+1, err)
			errs = append(errs, fmt.Errorf("%s %d: %w", what, i+1, err))
			if len(errs) == enoughMissing {
				break
			}
			continue
		}
		answers[a.server]++
		s.printf("  %2d   %-11s   %-23s %-19s %.1f ms\n", i+1, a.server, a.from, a.client,
			float64(time.Since(begin).Microseconds())/1000)
	}
	var sums []string
	for _, web := range s.lab.Webs {
		sums = append(sums, fmt.Sprintf("%s %d", web.Name, answers[web.Name]))
	}
	s.printf("\n       %s\n\n", strings.Join(sums, ", "))
	return errors.Join(errs...)
}

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	downloadCount = 100
	idleCount     = 20
	streamPath    = "/stream"              // of the download without end
	streamPart    = 2048                   // bytes of it that are sent at once
	streamEvery   = 100 * time.Millisecond // between two parts
	requestEvery  = 20 * time.Millisecond
	answerWithin  = time.Second     // of a request of the load
	recoverWithin = 5 * time.Second // for a connection to go on: TCP repeats its packets ever more rarely
)

// stream answers with bytes without end, slowly.
func stream(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	for part := make([]byte, streamPart); ; {
		if _, err := w.Write(part); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// load is connections that are open all the time, and requests that are sent all the time, each on a new connection.
type load struct {
	downloads []*download
	idle      []*idle
	stop      func() // ends the requests

	mu       sync.Mutex
	requests []request // those that have ended, in no order
}

// request is a request of a load.
type request struct {
	begin, end time.Time
	failed     bool
}

// download is a download without end.
type download struct {
	conn net.Conn
	read atomic.Int64 // bytes
}

// idle is a connection that has had one answer, and is not used since.
type idle struct {
	conn   net.Conn
	in     *bufio.Reader
	server string // of the answer
}

// begin opens the connections of a load, and begins with its requests.
func (s *show) begin(ctx context.Context) (*load, error) {
	l := &load{}
	for range downloadCount {
		c, err := s.connect(ctx)
		if err != nil {
			return l, fmt.Errorf("download: %w", err)
		}
		d := &download{conn: c}
		l.downloads = append(l.downloads, d)
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", streamPath); err != nil {
			return l, fmt.Errorf("download: %w", err)
		}
		go d.count() // until close
	}
	for range idleCount {
		c, err := s.connect(ctx)
		if err != nil {
			return l, fmt.Errorf("idle connection: %w", err)
		}
		i := &idle{conn: c, in: bufio.NewReader(c)}
		l.idle = append(l.idle, i)
		if i.server, err = i.ask(); err != nil {
			return l, fmt.Errorf("idle connection: %w", err)
		}
	}
	l.send(ctx, s)
	return l, nil
}

func (s *show) connect(ctx context.Context) (net.Conn, error) {
	return s.lab.Client.DialContext(ctx, "tcp", netip.AddrPortFrom(s.vip(), httpPort).String())
}

// count reads until the download breaks.
func (d *download) count() {
	buf := make([]byte, 2*streamPart)
	for {
		n, err := d.conn.Read(buf)
		if d.read.Add(int64(n)); err != nil {
			return
		}
	}
}

// ask sends a request on the connection, and returns the name of the server that answers.
func (i *idle) ask() (string, error) {
	if err := i.conn.SetDeadline(time.Now().Add(recoverWithin)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(i.conn, "GET / HTTP/1.1\r\nHost: vip\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(i.in, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var a answer
	err = a.parse(body)
	return a.server, err
}

// send begins to send requests.
func (l *load) send(ctx context.Context, s *show) {
	ctx, cancel := context.WithCancel(ctx)
	client := &http.Client{Timeout: answerWithin, Transport: &http.Transport{
		DialContext: s.lab.Client.DialContext, DisableKeepAlives: true,
	}}
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(requestEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			running.Go(func() {
				r := request{begin: time.Now()}
				_, err := get(context.WithoutCancel(ctx), client, s.url())
				r.end, r.failed = time.Now(), err != nil
				l.mu.Lock()
				defer l.mu.Unlock()
				l.requests = append(l.requests, r)
			})
		}
	})
	l.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
}

// close ends the load.
func (l *load) close() {
	if l.stop != nil {
		l.stop()
	}
	for _, d := range l.downloads {
		d.conn.Close()
	}
	for _, i := range l.idle {
		i.conn.Close()
	}
}

// answered returns when the first answer came to a request that was sent after from; ok is false if there is none yet.
func (l *load) answered(from time.Time) (at time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.requests {
		if !r.failed && r.begin.After(from) && (!ok || r.end.Before(at)) {
			at, ok = r.end, true
		}
	}
	return at, ok
}

// failed returns how many of the requests that were sent between two moments have failed, and how many there were. It
// waits for those that have no answer yet.
func (l *load) failed(ctx context.Context, from, to time.Time) (failed, all int) {
	select {
	case <-time.After(time.Until(to.Add(answerWithin))):
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.requests {
		if r.begin.Before(from) || r.begin.After(to) {
			continue
		}
		if all++; r.failed {
			failed++
		}
	}
	return failed, all
}

// broken returns how many downloads get no more bytes, and how many idle connections have no answer, or one of another
// server.
func (l *load) broken(ctx context.Context) (downloads, idles int) {
	before := make([]int64, len(l.downloads))
	for i, d := range l.downloads {
		before[i] = d.read.Load()
	}
	var asks sync.WaitGroup
	broken := make([]bool, len(l.idle))
	for n, i := range l.idle {
		asks.Go(func() {
			server, err := i.ask()
			broken[n] = err != nil || server != i.server
		})
	}
	asks.Wait()
	for end := time.Now().Add(recoverWithin); ; {
		downloads = 0
		for i, d := range l.downloads {
			if d.read.Load() == before[i] {
				downloads++
			}
		}
		if downloads == 0 || time.Now().After(end) || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
		}
	}
	for range slices.DeleteFunc(broken, func(b bool) bool { return !b }) {
		idles++
	}
	return downloads, idles
}

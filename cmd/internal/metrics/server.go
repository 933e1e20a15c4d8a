package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/connlimit"
)

// Bounds of the server. Its clients are not authenticated.
const (
	// Connections at a time. Beyond that, idle ones are closed. A browser keeps up to six.
	maxConns       = 256
	maxClientConns = 64 // of one address, such as a proxy's
	// Requests answered at a time. With thousands of realservers an answer has megabytes.
	maxAnswers     = 8
	maxHeaderBytes = 16 << 10 // of a request
	readTime       = 5 * time.Second
	writeTime      = time.Minute // for a whole answer; a longer one sets its own (http.ResponseController)
	idleTime       = time.Minute
	waitTime       = 5 * time.Second // of a request beyond maxAnswers
)

// Server answers GET and HEAD at the configured address of metrics, if there is one. It changes nothing and exposes no
// secret.
type Server struct {
	mux  *http.ServeMux
	next chan net.Listener // the listener to use from now on; nil: none
	mu   sync.Mutex
	at   netip.AddrPort // in use
}

// NewServer returns a server without handlers and without address.
func NewServer() *Server {
	return &Server{mux: http.NewServeMux(), next: make(chan net.Listener, 1)}
}

// Handle lets h answer the requests that match path, as in http.ServeMux. It must be called before Run.
func (s *Server) Handle(path string, h http.Handler) { s.mux.Handle(path, h) }

// Bind listens on an address. The server answers there after Use. For the zero address Bind returns nil.
func (s *Server) Bind(at netip.AddrPort) (net.Listener, error) {
	if !at.IsValid() {
		return nil, nil
	}
	l, err := net.Listen("tcp", at.String())
	if err == nil {
		return l, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hint := "see ip address, and ss -ltn"
	switch {
	case errors.Is(err, unix.EADDRINUSE) && s.at.IsValid() && s.at.Port() == at.Port():
		hint = fmt.Sprintf("the program itself is at %v: set another port too, or restart it", s.at)
	case errors.Is(err, unix.EADDRINUSE):
		hint = fmt.Sprintf("another program is there (ss -ltnp sport = %d): stop that one, or set another port",
			at.Port())
	case errors.Is(err, unix.EADDRNOTAVAIL):
		hint = "no address of this host: set one (ip address), or 0.0.0.0 or [::] for all"
	case errors.Is(err, unix.EACCES):
		hint = "the program may use no port below 1024: set another port"
	}
	// to the errno, without the address again
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return nil, fmt.Errorf("metrics %v: %w: %s", at, err, hint)
}

// Use replaces the address: the server answers on l, which Bind has made for at. Connections to the former address are
// closed.
func (s *Server) Use(l net.Listener, at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = at
	select {
	case former := <-s.next: // Run has not taken it
		closeListener(former)
	default:
	}
	s.next <- l
}

// Move binds another address. The caller must call end once: with nil the server uses that address, with an error it
// gives it up. If at is the address in use, end does nothing.
func (s *Server) Move(at netip.AddrPort) (end func(error), err error) {
	s.mu.Lock()
	same := at == s.at
	s.mu.Unlock()
	if same {
		return func(error) {}, nil
	}
	l, err := s.Bind(at)
	if err != nil {
		return nil, err
	}
	return func(err error) {
		switch {
		case err == nil:
			s.Use(l, at)
		case l != nil:
			l.Close()
		}
	}, nil
}

// Name returns the address as text: "none" for the zero address.
func Name(at netip.AddrPort) string {
	if !at.IsValid() {
		return "none"
	}
	return at.String()
}

// Run serves until ctx is cancelled, then returns nil. No request outlives it.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	var at net.Listener // nil: nowhere
	for {
		changed, cancel := context.WithCancel(ctx)
		next := make(chan net.Listener, 1)
		go func() { // ends when this round does
			defer cancel()
			select {
			case l := <-s.next:
				next <- l
			case <-changed.Done():
			}
			close(next)
		}()
		err := s.serve(changed, at)
		cancel()
		l, more := <-next
		if err != nil || !more {
			closeListener(l)
			return err
		}
		at = l
	}
}

// Close closes a listener that Run has not taken.
func (s *Server) Close() {
	select {
	case l := <-s.next:
		closeListener(l)
	default:
	}
}

func closeListener(l net.Listener) {
	if l != nil {
		l.Close()
	}
}

// serve answers on l until ctx is cancelled. If l is nil it only waits.
func (s *Server) serve(ctx context.Context, l net.Listener) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	conns := connlimit.New(maxConns, maxClientConns, connlimit.ByAddress)
	srv := http.Server{Handler: readOnly(limitConcurrency(s.mux)), ReadHeaderTimeout: readTime, ReadTimeout: readTime,
		WriteTimeout: writeTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeaderBytes, BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: conns.State}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	err := srv.Serve(l)
	srv.Close()
	conns.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics %v: %w", l.Addr(), err)
	}
	return nil
}

// readOnly passes GET and HEAD requests to next, with headers that restrict what a browser does with the answers. A
// handler may replace these headers.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for key, value := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; " +
				"form-action 'none'",
			"X-Content-Type-Options":       "nosniff",
			"X-Frame-Options":              "DENY",
			"Referrer-Policy":              "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Cache-Control":                "no-store",
		} {
			h.Set(key, value)
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "this address is for reading only: use the program's commands", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// limitConcurrency passes maxAnswers requests to next at a time. Others wait up to waitTime, then they are refused.
func limitConcurrency(next http.Handler) http.Handler {
	slots := make(chan struct{}, maxAnswers)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		late := time.NewTimer(waitTime)
		defer late.Stop()
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			next.ServeHTTP(w, r)
		case <-late.C:
			http.Error(w, "too many requests at a time: ask again", http.StatusServiceUnavailable)
		case <-r.Context().Done(): // the client has gone
		}
	})
}

// Links answers with a page of links to the metrics and the status.
func Links(title string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(w, `<!doctype html><html lang="en"><meta charset="utf-8"><title>%[1]s</title><h1>%[1]s</h1>`+
			`<p><a href="metrics">metrics</a> for Prometheus</p><p><a href="status">status</a> as JSON</p></html>`+"\n",
			title)
	})
}

// Package api is the control socket of a running program: its JSON types, its server and its client. It is HTTP over a
// Unix socket that only its owner may use.
package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/connlimit"
)

// Bounds of the connections open at a time: in all, and of one process. At a bound, an idle connection is closed. The
// program's own connections, which its watchdog makes, do not count.
const (
	maxConns       = 256
	maxClientConns = 64
)

// Server serves the control socket. It answers by the handlers that Handle has added.
type Server struct {
	listener net.Listener
	mux      *http.ServeMux
	patterns []string // of mux
	limits   deadlines
}

// Listen makes the socket, with mode 0600, and its directory if that is missing. It replaces a socket that a killed
// program left behind, and refuses one on which a running program answers. Two programs with the same socket must not
// call Listen at the same time. The server also has Go's profiles (net/http/pprof) below /debug/pprof/.
func Listen(socket string) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("control socket %s: %w", socket, err)
	}
	info, err := os.Lstat(socket)
	switch {
	case err == nil && info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("control socket %s: there is something else than a socket at this path: remove it, "+
			"or set another path as control", socket)
	case err == nil:
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return nil, fmt.Errorf("control socket %s is in use by another running program: stop that one, or set "+
				"another path as control", socket)
		}
		if err := os.Remove(socket); err != nil {
			return nil, fmt.Errorf("control socket %s: %w", socket, err)
		}
	}
	// bind makes the file with the process's umask. A chmod would leave a moment in which other users could connect.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", socket)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", socket, errors.Unwrap(err))
	}
	s := &Server{listener: l, mux: http.NewServeMux(), limits: defaultDeadlines()}
	s.Handle("GET /debug/pprof/{name...}", http.HandlerFunc(pprof.Index))
	s.Handle("GET /debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.Handle("GET /debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	return s, nil
}

// Handle lets h answer the requests that match pattern, as in http.ServeMux. It must be called before Run.
func (s *Server) Handle(pattern string, h http.Handler) {
	s.mux.Handle(pattern, h)
	s.patterns = append(s.patterns, pattern)
}

// Patterns returns the patterns that have handlers.
func (s *Server) Patterns() []string { return s.patterns }

// CheckAlive requests /alive over the socket itself, as any client does. A removed socket file is not an error.
func (s *Server) CheckAlive(ctx context.Context) error {
	var ignored struct{}
	err := Get(ctx, s.listener.Addr().String(), "/alive", &ignored)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

// Run serves until ctx is cancelled, then returns nil. No request outlives it.
func (s *Server) Run(ctx context.Context) error {
	conns := connlimit.New(maxConns, maxClientConns, connlimit.ByProcess)
	srv := http.Server{Handler: withDeadlines(s.mux, s.limits),
		ReadHeaderTimeout: s.limits.read, IdleTimeout: s.limits.read,
		ConnState:   conns.State,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withClient}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.Serve(s.listener)
	srv.Close()
	conns.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Close removes the socket. It may be called after Run, and without Run.
func (s *Server) Close() error {
	err := s.listener.Close() // which removes the socket's file
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

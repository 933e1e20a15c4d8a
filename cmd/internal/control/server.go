package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/connlimit"
)

// Bounds of the socket's connections at a time, in all and of one process. At a bound, idle ones are closed. The
// watchdog's, which are the program's own, do not count.
const (
	maxConns       = 256
	maxClientConns = 64
)

// Server answers on a control socket.
type Server struct {
	listener net.Listener
	mux      *http.ServeMux
	limits   limits
}

// Listen makes the socket, with mode 0600, and its directory if that is missing. A socket that a killed program left
// behind is replaced; one that a running program answers on is an error. Two programs with the same socket must not
// call Listen at the same time.
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
	// bind makes the file with the process's umask: nobody else may connect in the moment before a chmod.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", socket)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", socket, errors.Unwrap(err))
	}
	s := &Server{listener: l, mux: http.NewServeMux(), limits: usualLimits()}
	s.profiles()
	return s, nil
}

// Answer serves GET path with what fn returns, as JSON.
func (s *Server) Answer(path string, fn func() (any, error)) {
	s.handle("GET "+path, fn)
}

// Do serves POST path by calling fn, and answers what it returns as JSON.
func (s *Server) Do(path string, fn func() (any, error)) {
	s.handle("POST "+path, fn)
}

func (s *Server) handle(pattern string, fn func() (any, error)) {
	s.mux.Handle(pattern, JSON(fn))
}

// JSON answers with what fn returns, here and wherever else it is served.
func JSON(fn func() (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		v, err := fn()
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		_ = enc.Encode(v) // the client has gone: nobody to tell
	})
}

// Run serves until ctx is cancelled, then returns nil. No request outlives it.
func (s *Server) Run(ctx context.Context) error {
	conns := connlimit.New(maxConns, maxClientConns, connlimit.ByProcess)
	srv := http.Server{Handler: s.limits.bounded(s.mux), ReadHeaderTimeout: s.limits.read, IdleTimeout: s.limits.read,
		ConnState:   conns.State,
		BaseContext: func(net.Listener) context.Context { return ctx }}
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

// Close removes the socket. It is for all cases: after Run, and where Run was never called.
func (s *Server) Close() error {
	err := s.listener.Close() // which removes the socket's file
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

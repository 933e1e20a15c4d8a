package control

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// Lives answers GET /alive by calling fn, which makes the whole status: what stands still there, stands still here.
func (s *Server) Lives(fn func()) {
	s.Answer("/alive", func() (any, error) {
		fn()
		return struct{}{}, nil
	})
}

// Alive asks over the socket itself whether the program lives, as any client does. A socket whose file somebody has
// removed tells nothing.
func (s *Server) Alive(ctx context.Context) error {
	var ignored struct{}
	err := Get(ctx, s.listener.Addr().String(), "/alive", &ignored)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

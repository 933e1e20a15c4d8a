package api

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// TestAlive: CheckAlive succeeds for a program that answers, fails for one whose status hangs, and succeeds where only
// the socket's file has gone.
func TestAlive(t *testing.T) {
	var s *Server
	still := make(chan struct{})
	wait := false
	listen(t, func(server *Server) {
		s = server
		s.Handle("GET /alive", Alive(func() {
			if wait {
				<-still
			}
		}))
	})
	if err := s.CheckAlive(t.Context()); err != nil {
		t.Error(err)
	}
	wait = true
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.CheckAlive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a status that stands still: %v", err)
	}
	close(still)
	if err := os.Remove(s.listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckAlive(t.Context()); err != nil {
		t.Errorf("without the socket's file: %v", err)
	}
}

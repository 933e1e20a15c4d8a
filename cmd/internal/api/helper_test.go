package api

import (
	"context"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

// listen runs a server with the handlers that prepare adds, until the test ends, and returns its socket.
func listen(t *testing.T, prepare func(*Server)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "deep", "er", "x.sock")
	s, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	prepare(s)
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error)
	go func() { end <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(filepath.Dir(socket))
		if err != nil || len(left) != 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	return socket
}

// endless returns rows without end, and sends to stopped when their iteration has been stopped.
func endless(stopped chan<- struct{}) func(url.Values) (iter.Seq[any], error) {
	return func(url.Values) (iter.Seq[any], error) {
		return func(yield func(any) bool) {
			defer func() { stopped <- struct{}{} }()
			for yield(Connection{Protocol: "tcp", State: "ESTABLISHED", Client: "192.0.2.7", Realserver: "10.0.11.2"}) {
			}
		}, nil
	}
}

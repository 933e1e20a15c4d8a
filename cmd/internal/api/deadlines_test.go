package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// impatient gives the server deadlines for which a test can wait.
func impatient(s *Server) {
	s.limits = deadlines{read: 100 * time.Millisecond, write: 100 * time.Millisecond}
}

func dialSocket(t *testing.T, socket, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSilentClients: the server closes the connection of a client that sends nothing, half a request, a part of a body,
// or no second request.
func TestSilentClients(t *testing.T) {
	socket := listen(t, func(s *Server) {
		impatient(s)
		s.Handle("GET /status", JSON(func(url.Values) (any, error) { return 1, nil }))
		s.Handle("POST /reload", JSON(func(url.Values) (any, error) { return 1, nil }))
	})
	for _, text := range []string{
		"",
		"GET /status HTTP/1.1\r\nHost:",
		"GET /status HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
		"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
	} {
		c := dialSocket(t, socket, text)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("after %q: %v", text, err)
		}
	}
}

// TestClientThatDoesNotRead: its answer is stopped.
func TestClientThatDoesNotRead(t *testing.T) {
	stopped := make(chan struct{})
	socket := listen(t, func(s *Server) {
		impatient(s)
		s.Handle("GET /connections", JSONLines(endless(stopped)))
	})
	dialSocket(t, socket, "GET /connections HTTP/1.1\r\nHost: x\r\n\r\n")
	testkit.Receive(t, "the answer stops", stopped)
}

// TestClientThatLeaves: its answer is stopped at once.
func TestClientThatLeaves(t *testing.T) {
	stopped := make(chan struct{})
	socket := listen(t, func(s *Server) { s.Handle("GET /connections", JSONLines(endless(stopped))) })
	c := dialSocket(t, socket, "GET /connections HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := c.Read(make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	testkit.Receive(t, "the answer stops", stopped)
}

// TestRunWaits: when Run returns, no handler runs any more, and the client of an unfinished answer has got an error.
func TestRunWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ended := false
	s.Handle("GET /connections", JSONLines(func(url.Values) (iter.Seq[any], error) {
		return func(yield func(any) bool) {
			defer func() {
				time.Sleep(50 * time.Millisecond)
				ended = true
			}()
			for yield("a row") {
			}
		}, nil
	}))
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error)
	go func() { end <- s.Run(ctx) }()
	rows := 0
	err = EachLine(t.Context(), path, "/connections", func([]byte) error {
		if rows++; rows == 1000 {
			cancel()
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("after %d rows: %v", rows, err)
	}
	if err := <-end; err != nil || !ended {
		t.Errorf("%v, the handler has ended: %v", err, ended)
	}
}

// TestEachLineStops: EachLine ends with the error of its function.
func TestEachLineStops(t *testing.T) {
	stopped := make(chan struct{})
	socket := listen(t, func(s *Server) { s.Handle("GET /connections", JSONLines(endless(stopped))) })
	enough := errors.New("enough")
	if err := EachLine(t.Context(), socket, "/connections", func([]byte) error {
		return fmt.Errorf("it is %w",
			enough)
	}); !errors.Is(err, enough) {
		t.Error(err)
	}
	testkit.Receive(t, "the answer stops", stopped)
}

package api

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// serve runs a server with one answer and one error.
func serve(t *testing.T) string {
	t.Helper()
	return listen(t, func(s *Server) {
		s.Handle("GET /status", JSON(func(url.Values) (any, error) { return map[string]int{"n": 7}, nil }))
		s.Handle("GET /fails", JSON(func(url.Values) (any, error) { return nil, errors.New("it can't") }))
	})
}

func TestGet(t *testing.T) {
	socket := serve(t)
	var got map[string]int
	if err := Get(t.Context(), socket, "/status", &got); err != nil || got["n"] != 7 {
		t.Errorf("%v %v", got, err)
	}
	for path, want := range map[string]string{"/fails": "it can't", "/none": "404"} {
		if err := Get(t.Context(), socket, path, &got); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := Get(t.Context(), socket+"x", "/status", &got); err == nil || !strings.Contains(err.Error(),
		"is the program running") {
		t.Errorf("no such socket: %v", err)
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	info, err := os.Stat(serve(t))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestSecondListenerIsRefused(t *testing.T) {
	socket := serve(t)
	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "in use by another running program") {
		t.Errorf("%v", err)
	}
	var got map[string]int
	if err := Get(t.Context(), socket, "/status", &got); err != nil {
		t.Errorf("the first server: %v", err)
	}
}

func TestSocketOfKilledProgramIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "x.sock")
	s, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket+"2", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(socket + "2"); err == nil || !strings.Contains(err.Error(), "something else than a socket") {
		t.Errorf("a file in its place: %v", err)
	}
	s.listener.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false) // a killed program doesn't
	s.listener.Close()
	next, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

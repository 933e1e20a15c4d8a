package api

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// listenForUploads runs a server that answers PUT /thing with the body's length, and GET /thing with a text.
func listenForUploads(t *testing.T, prepare func(*Server)) string {
	t.Helper()
	return listen(t, func(s *Server) {
		prepare(s)
		s.Handle("GET /thing", Text("application/toml", func() ([]byte, string, error) {
			return []byte("text"), `"x"`, nil
		}))
		s.Handle("GET /nothing", Text("application/toml", func() ([]byte, string, error) {
			return nil, "", &StatusError{http.StatusNotFound, errors.New("there is none")}
		}))
		s.Handle("PUT /thing/{name}", Uploads(1000, func(u *Upload) (any, string, error) {
			if !u.Matches(`"x"`) {
				return nil, "", &StatusError{http.StatusPreconditionFailed, errors.New(u.IfMatch)}
			}
			return []any{len(u.Body), u.Path("name"), u.Query.Get("q"), u.Client != ""}, `"y"`, nil
		}))
	})
}

// TestUploads: body, query, path and header reach the function. A larger body, and one that does not come, do not.
func TestUploads(t *testing.T) {
	socket := listenForUploads(t, impatient)
	put := func(size int, ifMatch string) (got []any, err error) {
		return got, Put(t.Context(), socket, "/thing/a?q=b", []byte(strings.Repeat("x", size)), ifMatch, 0, &got)
	}
	for _, size := range []int{0, 1, 1000} {
		// the client is this process, which has no name
		if got, err := put(size, `"z", "x"`); err != nil || len(got) != 4 || got[0] != float64(size) || got[1] != "a" ||
			got[2] != "b" || got[3] != false {
			t.Errorf("%v, %v", got, err)
		}
	}
	for _, c := range []struct {
		size    int
		ifMatch string
		status  int
	}{{1001, "*", http.StatusRequestEntityTooLarge}, {1, `"z"`, http.StatusPreconditionFailed},
		{1, "", http.StatusPreconditionFailed}} {
		_, err := put(c.size, c.ifMatch)
		if refused := (*RefusedError)(nil); !errors.As(err, &refused) || refused.Status != c.status {
			t.Errorf("%d bytes, If-Match %s: %v", c.size, c.ifMatch, err)
		}
	}
	lines := dialSocket(t, socket, "PUT /thing/a HTTP/1.1\r\nHost: x\r\nIf-Match: \"z\"\r\nIf-Match: \"x\"\r\n"+
		"Connection: close\r\n\r\n")
	if got, err := io.ReadAll(lines); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 ") {
		t.Errorf("If-Match in two lines: %q, %v", got, err)
	}
	c := dialSocket(t, socket, "PUT /thing/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 408 ") {
		t.Errorf("half a body: %q, %v", got, err)
	}
}

// TestSlowAnswer: the work for an answer may take longer than the body, and the connection takes another request.
func TestSlowAnswer(t *testing.T) {
	socket := listen(t, func(s *Server) {
		impatient(s)
		s.Handle("PUT /thing", Uploads(1000, func(*Upload) (any, string, error) {
			time.Sleep(300 * time.Millisecond)
			return 1, `"y"`, nil
		}))
	})
	const request = "PUT /thing HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
	c := dialSocket(t, socket, request+request)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || strings.Count(string(got), "HTTP/1.1 200 ") != 2 {
		t.Errorf("%q, %v", got, err)
	}
}

func TestText(t *testing.T) {
	socket := listenForUploads(t, func(*Server) {})
	resp, err := Open(t.Context(), socket, "/thing", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || string(text) != "text" || resp.Header.Get("ETag") != `"x"` ||
		resp.Header.Get("Content-Type") != "application/toml" {
		t.Errorf("%q, %v, %v", text, resp.Header, err)
	}
	refused := (*RefusedError)(nil)
	if _, err := Open(t.Context(), socket, "/nothing", 0); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("%v", err)
	}
}

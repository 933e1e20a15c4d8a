package control

import (
	"net/http"
	"time"
)

// limits is how long a client may let the server wait: it holds one goroutine, and must not hold it for ever.
type limits struct {
	read  time.Duration // for a request's header, its body, or for the next request
	write time.Duration // until it has read the last thing that was written
}

// A pager that stands still is a client that doesn't read, and may do so for as long as people look at a page.
func usualLimits() limits { return limits{read: 5 * time.Second, write: 10 * time.Minute} }

// bounded holds the clients of next to l.
func (l limits) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if r.ContentLength != 0 { // no request here has a body; the server would wait for this one
			_ = rc.SetReadDeadline(time.Now().Add(l.read)) // can't fail: every connection is a Unix socket's
		}
		next.ServeHTTP(&boundedWriter{w, rc, l.write}, r)
	})
}

// boundedWriter gives every write a time of its own.
type boundedWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	limit time.Duration
}

func (w *boundedWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.limit))
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *boundedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

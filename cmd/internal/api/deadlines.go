package api

import (
	"net/http"
	"time"
)

// deadlines bounds how long a client may let the server wait: each client occupies a goroutine.
type deadlines struct {
	read  time.Duration // for a request's header, its body, or the next request
	write time.Duration // until the client has read the last write
}

// defaultDeadlines returns deadlines that allow for a pager, which does not read while a person looks at a page.
func defaultDeadlines() deadlines { return deadlines{read: 5 * time.Second, write: 10 * time.Minute} }

// withDeadlines returns next with the deadlines d for each request.
func withDeadlines(next http.Handler, d deadlines) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if r.ContentLength != 0 { // No request here needs a body, but the server would wait for this one.
			_ = rc.SetReadDeadline(time.Now().Add(d.read)) // can't fail: every connection is a Unix socket's
		}
		next.ServeHTTP(&deadlineWriter{w, rc, d.write}, r)
	})
}

// deadlineWriter sets a new deadline for every write.
type deadlineWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	limit time.Duration
}

func (w *deadlineWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.limit))
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

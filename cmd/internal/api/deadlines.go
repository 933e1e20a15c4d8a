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
		dw := &deadlineWriter{w, rc, d}
		if r.ContentLength != 0 { // If the handler reads no body, the server waits for it behind the answer.
			dw.expectBody()
		}
		next.ServeHTTP(dw, r)
	})
}

// deadlineWriter sets a new deadline for every write.
type deadlineWriter struct {
	http.ResponseWriter
	rc     *http.ResponseController
	limits deadlines
}

func (w *deadlineWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.limits.write))
	return w.ResponseWriter.Write(p)
}

// expectBody begins the time that the client has for its body.
func (w *deadlineWriter) expectBody() {
	_ = w.rc.SetReadDeadline(time.Now().Add(w.limits.read)) // can't fail: every connection is a Unix socket's
}

// hasBody ends that time: the work for the answer may take longer.
func (w *deadlineWriter) hasBody() { _ = w.rc.SetReadDeadline(time.Time{}) }

// Unwrap is for http.ResponseController.
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

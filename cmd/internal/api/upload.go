package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"vstun/cmd/internal/connlimit"
)

// StatusError is an error that is answered with a status other than 422.
type StatusError struct {
	Status int
	Err    error
}

func (e *StatusError) Error() string { return e.Err.Error() }

func (e *StatusError) Unwrap() error { return e.Err }

// Upload is a request that changes something, with its body.
type Upload struct {
	Query   url.Values
	Path    func(name string) string // the part of the path that the pattern calls name
	Body    []byte
	IfMatch string // the header If-Match; "": none
	Client  string // its user and process: "uid 0, pid 4711"
}

// Matches reports whether the header If-Match names a state of the resource: by its ETag, or by "*".
func (u *Upload) Matches(etag string) bool {
	for tag := range strings.SplitSeq(u.IfMatch, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || tag == etag {
			return true
		}
	}
	return false
}

// Uploads answers with the value that fn returns for a request, and the ETag of what the request has made, or with fn's
// error. The body has at most limit bytes. Bodies are read and answered one after another.
func Uploads(limit int64, fn func(*Upload) (v any, etag string, err error)) http.Handler {
	var turn sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn.Lock()
		defer turn.Unlock()
		body, err := readBody(w, r, limit)
		if err != nil {
			refuse(w, err)
			return
		}
		client, _ := r.Context().Value(clientKey{}).(string)
		v, etag, err := fn(&Upload{Query: r.URL.Query(), Path: r.PathValue, Body: body,
			IfMatch: strings.Join(r.Header.Values("If-Match"), ","), Client: client})
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("ETag", etag)
		answer(w, v)
	})
}

// readBody reads the body of a request, within the time that the server's deadlines allow.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	dw, limited := w.(*deadlineWriter)
	if limited {
		dw.expectBody()
	}
	// Not MaxBytesReader: it closes the connection, and a client that still writes would not read the answer.
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if int64(len(body)) > limit {
		return nil, &StatusError{http.StatusRequestEntityTooLarge,
			fmt.Errorf("the body is larger than %d bytes", limit)}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &StatusError{http.StatusRequestTimeout, errors.New("the body does not come: send it at once")}
	}
	if err != nil {
		return nil, &StatusError{http.StatusBadRequest, fmt.Errorf("the body: %w", err)}
	}
	if limited { // else the server would wait for the rest of the body behind the answer
		dw.hasBody()
	}
	return body, nil
}

// Text answers with the text that fn returns, and its ETag, or with fn's error.
func Text(contentType string, fn func() (text []byte, etag string, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, etag, err := fn()
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
	})
}

// refuse answers with an error: with the status of a StatusError, or with 422.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusUnprocessableEntity
	if e := (*StatusError)(nil); errors.As(err, &e) {
		status = e.Status
	}
	http.Error(w, err.Error(), status)
}

// answer answers with v as JSON.
func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // an error means that the client has gone
}

// clientKey is the key of the client's name in the context of its requests.
type clientKey struct{}

func withClient(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, connlimit.ByProcess(c))
}

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Patience is a client's timeout, to which the expected time of the work behind an answer is added.
const Patience = 10 * time.Second

// ErrSilent is the error about a program that runs and does not answer.
var ErrSilent = errors.New("the program does not answer")

// RefusedError is an answer with a status other than 200.
type RefusedError struct {
	Socket, Path string
	Status       int
	Text         string // the answer: one line or more
}

func (r *RefusedError) Error() string { return fmt.Sprintf("%s: %s: %s", r.Socket, r.Path, r.Text) }

// maxRefusal is far above the length of any configuration's faults.
const maxRefusal = 16 << 20

// Get requests path on the control socket at socket and decodes the JSON answer into into.
// The error is one line: the program does not run, the caller may not use the socket, or the program's own error.
func Get(ctx context.Context, socket, path string, into any) error {
	return exchange(ctx, request{method: http.MethodGet, socket: socket, path: path}, into)
}

// Post is Get with the method POST. takes is the expected time of the work, and extends the timeout.
func Post(ctx context.Context, socket, path string, takes time.Duration, into any) error {
	return exchange(ctx, request{method: http.MethodPost, socket: socket, path: path, takes: takes}, into)
}

// Put is Post with the method PUT and a body. ifMatch is the header If-Match; "": none.
func Put(ctx context.Context, socket, path string, body []byte, ifMatch string, takes time.Duration, into any) error {
	return exchange(ctx, request{http.MethodPut, socket, path, body, ifMatch, takes}, into)
}

// request is a request of a client.
type request struct {
	method, socket, path string
	body                 []byte
	ifMatch              string        // "": none
	takes                time.Duration // expected time of the work
}

func exchange(ctx context.Context, r request, into any) error {
	ctx, cancel := context.WithTimeout(ctx, r.takes+Patience)
	defer cancel()
	resp, err := do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(r.socket, r.path, json.NewDecoder(resp.Body), into)
}

func decode(socket, path string, d *json.Decoder, into any) error {
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %s: answer is not as expected: %w", socket, path, err)
	}
	return nil
}

// Open requests path and returns a response with status 200. takes is the expected time until the header, and extends
// its timeout. The body has no timeout. The caller closes the body.
func Open(ctx context.Context, socket, path string, takes time.Duration) (*http.Response, error) {
	return do(ctx, request{method: http.MethodGet, socket: socket, path: path, takes: takes})
}

// Summary decodes the summary of a Stream into into. resp is the answer to path; its body has been read to its end.
func Summary(socket, path string, resp *http.Response, into any) error {
	return decode(socket, path, json.NewDecoder(strings.NewReader(resp.Trailer.Get(summaryHeader))), into)
}

// EachLine requests path and calls fn with every line of the answer. It ends with fn's first error.
func EachLine(ctx context.Context, socket, path string, fn func(line []byte) error) error {
	resp, err := Open(ctx, socket, path, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReaderSize(resp.Body, lineBuffer)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == nil:
			if err := fn(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return err
			}
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		default:
			return fmt.Errorf("%s: %s: the answer is cut off: %w", socket, path, err)
		}
	}
}

// do sends one request over the socket, and returns a response with status 200.
func do(ctx context.Context, r request) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: r.takes + Patience,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", r.socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://control"+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	if r.ifMatch != "" {
		req.Header.Set("If-Match", r.ifMatch)
	}
	resp, err := client.Do(req)
	if fault := (net.Error)(nil); errors.As(err, &fault) && fault.Timeout() {
		return nil, fmt.Errorf("%s: %w: it hangs, or is stopped: %w", r.socket, ErrSilent, unwrapURL(err))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: is the program running, and may you use its socket?", r.socket, unwrapURL(err))
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		return nil, &RefusedError{r.socket, r.path, resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return resp, nil
}

// unwrapURL takes the request's made-up URL out of the error.
func unwrapURL(err error) error {
	type wrapper interface{ Unwrap() error }
	if w, ok := err.(wrapper); ok {
		return w.Unwrap()
	}
	return err
}

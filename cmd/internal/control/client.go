package control

import (
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

// patience is how long a client waits for an answer beyond the time that it takes.
const patience = 10 * time.Second

// ErrSilent is of a program that runs, and does not answer.
var ErrSilent = errors.New("the program does not answer")

// Get asks the program whose control socket is at socket for path and decodes its JSON answer into into.
// The error is one line: no such program, no right to use the socket, or what the program answered.
func Get(ctx context.Context, socket, path string, into any) error {
	return ask(ctx, http.MethodGet, socket, path, 0, into)
}

// ask sends one request, whose answer may take so long beside what a short one takes, and decodes its JSON answer into
// into.
func ask(ctx context.Context, method, socket, path string, takes time.Duration, into any) error {
	ctx, cancel := context.WithTimeout(ctx, takes+patience)
	defer cancel()
	resp, err := do(ctx, method, socket, path, takes)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("%s: %s: answer is not as expected: %w", socket, path, err)
	}
	return nil
}

// refusal is an answer that is not the one asked for.
type refusal struct {
	socket, path string
	status       int
	text         string // one line or more
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %s: %s", r.socket, r.path, r.text) }

// maxRefusal is far above what the faults of a configuration take.
const maxRefusal = 16 << 20

// do sends one request over the socket, whose answer takes so long to begin beside what a short one takes. The caller
// closes the body of the response, which has status 200 and may take any time.
func do(ctx context.Context, method, socket, path string, takes time.Duration) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: takes + patience,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if fault := (net.Error)(nil); errors.As(err, &fault) && fault.Timeout() {
		return nil, fmt.Errorf("%s: %w: it hangs, or is stopped: %w", socket, ErrSilent, unwrapURL(err))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: is the program running, and may you use its socket?", socket, unwrapURL(err))
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		return nil, &refusal{socket, path, resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return resp, nil
}

// unwrapURL takes the made-up URL of the request out of the error.
func unwrapURL(err error) error {
	type wrapper interface{ Unwrap() error }
	if w, ok := err.(wrapper); ok {
		return w.Unwrap()
	}
	return err
}

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Get asks the program whose control socket is at socket for path and decodes its JSON answer into into.
// The error is one line: no such program, no right to use the socket, or what the program answered.
func Get(ctx context.Context, socket, path string, into any) error {
	resp, err := do(ctx, http.MethodGet, socket, path, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("%s: %s: answer is not as expected: %w", socket, path, err)
	}
	return nil
}

// do sends one request over the socket, whose answer takes so long beside what a short one takes. The caller closes the body of the response, which has status 200.
func do(ctx context.Context, method, socket, path string, takes time.Duration) (*http.Response, error) {
	client := http.Client{Timeout: takes + 10*time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
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
	if err != nil {
		return nil, fmt.Errorf("%s: %w: is the program running, and may you use its socket?", socket, unwrapURL(err))
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("%s: %s: %s", socket, path, strings.TrimSpace(string(text)))
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

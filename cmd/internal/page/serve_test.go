package page

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// ask sends a request to the page's handler.
func ask(t *testing.T, h http.Handler, method, target string, header ...string) (*http.Response, []byte) {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	resp := w.Result()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

// TestHandler: the page and all its files are served, with the right types and a policy that excludes everything else.
// Methods that change something are refused.
func TestHandler(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p := New(src.status)
	h := p.Handler()
	if resp, body := ask(t, h, "GET", "/page/live"); resp.StatusCode != http.StatusServiceUnavailable ||
		!strings.Contains(string(body), "ask again") {
		t.Errorf("before the first sample the answer is %s: %s", resp.Status, body)
	}
	p.take(time.Now())
	for path, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/page/page.css": "text/css; charset=utf-8",
		"/page/main.js": "text/javascript; charset=utf-8", "/page/icon.svg": "image/svg+xml",
		"/page/live": "application/json", "/page/history?after=0&ids=1,2,x,": "application/json",
	} {
		resp, body := ask(t, h, "GET", path)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != kind || len(body) == 0 {
			t.Errorf("%s is %s, %s, %d bytes", path, resp.Status, resp.Header.Get("Content-Type"), len(body))
		}
		policy := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") ||
			resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s has the headers %v", path, resp.Header)
		}
		if resp, _ := ask(t, h, "POST", path); resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s is %s", path, resp.Status)
		}
		if resp, _ := ask(t, h, "HEAD", path); resp.StatusCode != http.StatusOK {
			t.Errorf("HEAD %s is %s", path, resp.Status)
		}
	}
	for _, path := range []string{"/page/", "/page", "/index.html", "/page/../serve.go", "/assets/index.html",
		"/other"} {
		if resp, _ := ask(t, h, "GET", path); resp.StatusCode == http.StatusOK {
			t.Errorf("%s is %s", path, resp.Status)
		}
	}
	resp, _ := ask(t, h, "GET", "/page/main.js")
	if resp, body := ask(t, h, "GET", "/page/main.js", "If-None-Match",
		resp.Header.Get("ETag")); resp.StatusCode != http.StatusNotModified || len(body) > 0 {
		t.Errorf("a file that the browser has is sent again: %s", resp.Status)
	}
}

// TestCompressed: a browser that accepts it gets the same answer compressed.
func TestCompressed(t *testing.T) {
	t.Parallel()
	src := &source{st: large(20, 10)}
	p := New(src.status)
	p.take(time.Now())
	h := p.Handler()
	_, plain := ask(t, h, "GET", "/page/live")
	resp, small := ask(t, h, "GET", "/page/live", "Accept-Encoding", "gzip, br")
	if resp.Header.Get("Content-Encoding") != "gzip" || len(small)*4 > len(plain) {
		t.Errorf("%d bytes became %d, %v", len(plain), len(small), resp.Header)
	}
	z, err := gzip.NewReader(strings.NewReader(string(small)))
	if err != nil {
		t.Fatal(err)
	}
	var a, b answer
	if err := json.NewDecoder(z).Decode(&a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(plain, &b); err != nil {
		t.Fatal(err)
	}
	if len(a.Services) != 20 || len(a.Services[3].Realservers) != 10 || len(b.Services) != 20 {
		t.Errorf("%d services, and %d without compression", len(a.Services), len(b.Services))
	}
}

// TestOtherBoot: a browser with the state of another run of the director gets everything.
func TestOtherBoot(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p := New(src.status)
	for range 3 {
		p.take(time.Now())
	}
	h := p.Handler()
	for query, full := range map[string]bool{"boot=" + p.boot + "&since=2": false, "boot=other&since=2": true,
		"since=2": true, "boot=" + p.boot + "&since=9": true,
		"boot=" + p.boot + "&since=-1": true, "": true} {
		_, body := ask(t, h, "GET", "/page/live?"+query)
		var a answer
		if err := json.Unmarshal(body, &a); err != nil {
			t.Fatal(err)
		}
		if a.Full != full || full != (len(a.Services) == 3) {
			t.Errorf("%s: full %v, %d services", query, a.Full, len(a.Services))
		}
	}
}

// TestWatched: samples are taken each second while a browser shows the page, else with the period of the history.
func TestWatched(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p := New(src.status)
	now := time.Now()
	p.take(now)
	if p.due(now.Add(stepTime - time.Second)) {
		t.Error("the history wants a point too early")
	}
	if !p.due(now.Add(stepTime)) {
		t.Error("the history wants no point")
	}
	ask(t, p.Handler(), "GET", "/page/live")
	if asked := time.Since(time.Unix(0, p.asked.Load())); asked > time.Minute {
		t.Error(fmt.Sprint("no request for ", asked))
	}
}

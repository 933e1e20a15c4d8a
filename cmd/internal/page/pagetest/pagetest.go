// Package pagetest tests pages in a browser, Chromium without a window.
package pagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Patience bounds steps that take at most a second on an idle machine.
const Patience = 60 * time.Second

// Pictures is the environment variable with the directory for the pictures of Picture.
const Pictures = "VSTUN_PICTURES"

// names is the names of Chromium's program.
var names = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// Browser is a running browser.
type Browser struct {
	ctx context.Context
	end func()
}

// Start starts a browser. Its error says how to get one where there is none; see Missing.
func Start() (*Browser, error) {
	program := ""
	for _, name := range names {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	if program == "" {
		return nil, errMissing
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.WSURLReadTimeout(Patience), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("no-proxy-server", true))
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, _ := chromedp.NewContext(allocator) // Cancel ends it
	b := &Browser{ctx: ctx, end: end}
	if err := chromedp.Do(ctx); err != nil {
		b.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return b, nil
}

var errMissing = errors.New("needs a browser to look at the page with: install Chromium (apt-get install chromium)")

// Missing reports whether err of Start means that there is no browser.
func Missing(err error) bool { return errors.Is(err, errMissing) }

// Close ends the browser.
func (b *Browser) Close() {
	ctx, cancel := context.WithTimeout(b.ctx, Patience)
	defer cancel()
	_ = chromedp.Cancel(ctx) // Cancel kills what does not end
	b.end()
}

// Look is the settings of the browser for a page.
type Look struct {
	Width, Height int // 0: 1280, 900
	Phone         bool
	Dark          bool
}

// Tab is a page in the browser. The test fails if the page logs an error or sends a request to another server.
type Tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	errors   []string
	requests []string
	tolerant bool
}

// Open shows the page at url until the test ends.
func (b *Browser) Open(t *testing.T, url string, look Look) *Tab {
	t.Helper()
	ctx, end := chromedp.NewContext(b.ctx)
	tab := &Tab{t: t, ctx: ctx}
	server, _, _ := strings.Cut(url, "#")
	t.Cleanup(func() {
		end()
		tab.mu.Lock()
		defer tab.mu.Unlock()
		for _, e := range tab.errors {
			t.Errorf("the page has an error: %s", e)
		}
		for _, r := range tab.requests {
			if !strings.HasPrefix(r, server) {
				t.Errorf("the page sends a request to another server than %s: %s", server, r)
			}
		}
	})
	if err := chromedp.Listen(ctx, tab.hear); err != nil {
		t.Fatalf("browser: %v", err)
	}
	if look.Width == 0 {
		look.Width, look.Height = 1280, 900
	}
	scheme := "light"
	if look.Dark {
		scheme = "dark"
	}
	scale := 1.0
	if look.Phone {
		scale = 2
	}
	tab.run(func() error {
		_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
		return err
	})
	tab.run(func() error {
		_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
		return err
	})
	tab.run(func() error {
		_, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: int64(look.Width), Height: int64(look.Height), DeviceScaleFactor: scale, Mobile: look.Phone})
		return err
	})
	tab.run(func() error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	})
	tab.run(func() error { return chromedp.Do(ctx, chromedp.Navigate(url)) })
	return tab
}

// hear records the errors and the requests of the page.
func (tab *Tab) hear(event any) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	switch e := event.(type) {
	case *cdpruntime.EventExceptionThrown:
		tab.errors = append(tab.errors, fmt.Sprint(e.ExceptionDetails.Text, " ",
			describe(e.ExceptionDetails.Exception)))
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && !(tab.tolerant && e.Entry.Source == log.EntrySourceNetwork) {
			tab.errors = append(tab.errors, e.Entry.Text+" "+e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		tab.requests = append(tab.requests, e.Request.URL)
	}
}

func describe(o *cdpruntime.RemoteObject) string {
	if o == nil {
		return ""
	}
	return o.Description
}

// Tolerate allows requests to fail from now on, since the server is going to end.
func (tab *Tab) Tolerate() {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.tolerant = true
}

// run runs actions in the browser, with a deadline.
func (tab *Tab) run(talk func() error) {
	tab.t.Helper()
	done := make(chan error, 1)
	go func() { done <- talk() }()
	late := time.NewTimer(Patience)
	defer late.Stop()
	select {
	case err := <-done:
		if err != nil {
			tab.t.Fatalf("browser: %v", err)
		}
	case <-late.C:
		tab.t.Fatalf("the browser does not answer within %v", Patience)
	}
}

// Eval returns the value of an expression in the page.
func Eval[T any](tab *Tab, expression string) (value T) {
	tab.t.Helper()
	tab.run(func() (err error) {
		value, err = chromedp.Run(tab.ctx, chromedp.Evaluate[T](expression))
		return err
	})
	return value
}

// Do evaluates an expression in the page for its effect.
func (tab *Tab) Do(expression string) {
	tab.t.Helper()
	Eval[chromedp.Void](tab, expression)
}

// Text returns the text of the first element of a CSS selector, without surplus white space.
func (tab *Tab) Text(selector string) string {
	tab.t.Helper()
	return Eval[string](tab, fmt.Sprintf("(document.querySelector(%q)?.innerText ?? '').replace(/\\s+/g, ' ').trim()",
		selector))
}

// Texts returns the texts of all visible elements of a CSS selector.
func (tab *Tab) Texts(selector string) []string {
	tab.t.Helper()
	return Eval[[]string](tab, fmt.Sprintf("[...document.querySelectorAll(%q)].filter(e => "+
		"e.checkVisibility()).map(e => e.innerText.replace(/\\s+/g, ' ').trim())", selector))
}

// Click clicks on the first element of a selector.
func (tab *Tab) Click(selector string) {
	tab.t.Helper()
	tab.run(func() error { return chromedp.Do(tab.ctx, chromedp.Click(chromedp.CSS(selector))) })
}

// Type types text as from the keyboard, to whatever has the focus.
func (tab *Tab) Type(text string) {
	tab.t.Helper()
	tab.run(func() error { return chromedp.Do(tab.ctx, chromedp.KeyEvent(text)) })
}

// Wait waits until an expression is true.
func (tab *Tab) Wait(what, expression string) {
	tab.t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(Patience); !Eval[bool](tab, "Boolean("+expression+")"); <-ticker.C {
		if time.Now().After(end) {
			tab.Picture("failed-" + strings.ReplaceAll(tab.t.Name(), "/", "-"))
			tab.t.Fatalf("not within %v: %s; the page reads\n%.2000s", Patience, what, tab.Text("body"))
		}
	}
}

// Picture stores a picture of the screen, if Pictures is set.
func (tab *Tab) Picture(name string) {
	tab.t.Helper()
	dir := os.Getenv(Pictures)
	if dir == "" {
		return
	}
	var png []byte
	tab.run(func() (err error) {
		png, err = chromedp.Run(tab.ctx, chromedp.CaptureScreenshot())
		return err
	})
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		tab.t.Error(err)
	}
}

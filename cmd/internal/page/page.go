// Package page is the director's status page: the contents of `director status`, live, with charts over the last
// minutes. It embeds the HTML page with its scripts and styles, and serves its data. It changes nothing.
//
//	status() ── each second ──> sample ──> services, realservers: state, and when it changed
//	                                  └──> history: a point each five seconds
//	GET /              the page
//	GET /page/live     the changes since the sample that the browser has
//	GET /page/history  the points that it lacks
package page

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
)

// Page is the status page of one director.
type Page struct {
	status func() api.DirectorStatus
	boot   string       // identifies this run of the program
	asked  atomic.Int64 // time of the last request, in Unix nanoseconds

	mu     sync.Mutex
	sample sample
}

// New returns a page that shows the results of status. status may be called by several goroutines at once.
func New(status func() api.DirectorStatus) *Page {
	return &Page{status: status, boot: rand.Text()}
}

const (
	livePeriod  = time.Second     // between two samples while a browser shows the page
	watchedTime = 5 * time.Second // after its last request, a browser is still assumed to show the page
)

// Run takes the samples until ctx is cancelled; then it returns nil. While no browser shows the page, it takes one for
// each point of the history.
func (p *Page) Run(ctx context.Context) error {
	p.take(time.Now())
	return daemon.Every(livePeriod, func() {
		now := time.Now()
		if p.due(now) || now.UnixNano()-p.asked.Load() < int64(watchedTime) {
			p.take(now)
		}
	})(ctx)
}

// due reports whether the next point of the history is due.
func (p *Page) due(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !now.Before(p.sample.next)
}

// take takes a sample.
func (p *Page) take(now time.Time) {
	st := p.status()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sample.take(&st, now)
}

// Package page is the director's status page: what `director status` prints, live, with charts over the last minutes.
// It is a page of HTML with its scripts and styles, which are embedded, and the data for it. It only reads.
//
//	status() ── each second ──> sample ──> services, realservers: what changed, and when
//	                                  └──> history: a point each five seconds
//	GET /              the page
//	GET /page/live     what has changed since the sample that the browser knows
//	GET /page/history  the points that it does not know
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
	boot   string       // tells this run of the program from others
	asked  atomic.Int64 // when a browser has asked last, in Unix nanoseconds

	mu     sync.Mutex
	sample sample
}

// New returns a page that shows what status returns. It may be called by several goroutines.
func New(status func() api.DirectorStatus) *Page {
	return &Page{status: status, boot: rand.Text()}
}

const (
	livePeriod  = time.Second     // between two samples while somebody looks
	watchedTime = 5 * time.Second // so long after its last request a browser is taken to look still
)

// Run takes the samples until ctx is cancelled; then it returns nil. While nobody looks there is one for each point of
// the history.
func (p *Page) Run(ctx context.Context) error {
	p.take(time.Now())
	return daemon.Every(livePeriod, func() {
		now := time.Now()
		if p.due(now) || now.UnixNano()-p.asked.Load() < int64(watchedTime) {
			p.take(now)
		}
	})(ctx)
}

// due reports whether the history wants a point.
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

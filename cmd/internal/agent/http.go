package agent

import (
	"net/url"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/metrics"
	"vstun/encap/packet/stats"
)

// serveHTTP registers the pages at the address of metrics.
func (a *agent) serveHTTP() {
	var batches []*stats.Batches
	for _, w := range a.workers {
		batches = append(batches, w.Batches())
	}
	a.http.Handle("/metrics", metrics.Realserver(a.status, batches))
	a.http.Handle("/status", api.JSON(func(url.Values) (any, error) { return a.status(), nil }))
	a.http.Handle("/", metrics.Links("vstun realserver"))
}

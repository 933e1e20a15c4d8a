package agent

import (
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/metrics"
	"vstun/encap/packet/stats"
)

// serveHTTP says what is answered at the address of metrics.
func (a *agent) serveHTTP() {
	var batches []*stats.Batches
	for _, w := range a.workers {
		batches = append(batches, w.Batches())
	}
	a.http.Handle("/metrics", metrics.Realserver(a.status, batches))
	a.http.Handle("/status", control.JSON(func() (any, error) { return a.status(), nil }))
	a.http.Handle("/", metrics.Links("vstun realserver"))
}

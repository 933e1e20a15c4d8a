package director

import (
	"net/url"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/page"
	"vstun/encap/packet/stats"
)

// openHTTP binds the address of metrics, if there is one.
func (d *director) openHTTP(cfg *config.Director) error {
	l, err := d.http.Bind(cfg.Metrics)
	if err != nil {
		return err
	}
	d.http.Use(l, cfg.Metrics)
	return nil
}

// serveHTTP registers the handlers at the address of metrics, and returns the task that keeps the page up to date.
func (d *director) serveHTTP() daemon.Task {
	var batches []*stats.Batches
	for _, w := range d.plane.workers {
		batches = append(batches, w.Batches())
	}
	last := len(batches) - 1
	clients, local := batches[:last], batches[last]
	d.http.Handle("/metrics", metrics.Director(d.status, clients, local))
	d.http.Handle("/status", api.JSON(func(url.Values) (any, error) { return d.status(), nil }))
	p := page.New(d.status)
	d.http.Handle("/", p.Handler())
	return p.Run
}

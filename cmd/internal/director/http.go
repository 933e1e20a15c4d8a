package director

import (
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/page"
	"vstun/encap/packet/stats"
)

// openHTTP takes the address of metrics, if there is one.
func (d *director) openHTTP(cfg *config.Director) error {
	l, err := d.http.Bind(cfg.Metrics)
	if err != nil {
		return err
	}
	d.http.Use(l, cfg.Metrics)
	return nil
}

// serveHTTP sets what that address answers, and returns the task that keeps the page up to date.
func (d *director) serveHTTP() daemon.Task {
	var batches []*stats.Batches
	for _, w := range d.plane.workers {
		batches = append(batches, w.Batches())
	}
	last := len(batches) - 1
	clients, local := batches[:last], batches[last]
	d.http.Handle("/metrics", metrics.Director(d.status, clients, local))
	d.http.Handle("/status", control.JSON(func() (any, error) { return d.status(), nil }))
	p := page.New(d.status)
	d.http.Handle("/", p.Handler())
	return p.Run
}

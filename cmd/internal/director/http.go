package director

import (
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/page"
	"vstun/encap/packet/stats"
)

// openHTTP takes the address of metrics, if there is one.
func (d *director) openHTTP() error {
	l, err := d.http.Bind(d.cfg.Metrics)
	if err != nil {
		return err
	}
	d.http.Use(l, d.cfg.Metrics)
	return nil
}

// serveHTTP says what is answered there, and returns what keeps the page up to date.
func (d *director) serveHTTP() daemon.Task {
	var batches []*stats.Batches
	for _, w := range d.workers {
		batches = append(batches, w.Batches())
	}
	clients, local := batches[:d.cfg.Queues], batches[d.cfg.Queues]
	d.http.Handle("/metrics", metrics.Director(d.status, clients, local))
	d.http.Handle("/status", control.JSON(func() (any, error) { return d.status(), nil }))
	p := page.New(d.status)
	d.http.Handle("/", p.Handler())
	return p.Run
}

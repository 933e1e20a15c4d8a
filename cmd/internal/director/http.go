package director

import (
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/metrics"
	"vstun/encap/packet"
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

// serveHTTP says what is answered there.
func (d *director) serveHTTP() {
	var batches []*packet.Batches
	for _, w := range d.workers {
		batches = append(batches, w.Batches())
	}
	d.http.Handle("/metrics", metrics.Director(d.status, batches))
	d.http.Handle("/status", control.JSON(func() (any, error) { return d.status(), nil }))
	d.http.Handle("/", metrics.Links("vstun director"))
}

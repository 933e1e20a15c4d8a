package director

import (
	"net/url"

	"vstun/balancer"
	"vstun/cmd/internal/api"
)

// load answers GET /load: what the realserver of an address has still, in the service of a name or in all, one that has
// left among them.
func (d *director) load(q url.Values) (any, error) {
	d.mu.Lock()
	cfg := d.cfg
	d.mu.Unlock()
	var all []api.RealserverUsage
	for _, l := range d.bal.Leaving() {
		if l.Address.String() == q.Get("realserver") && (!q.Has("service") || l.Service == q.Get("service")) {
			all = append(all, api.RealserverUsage{Service: l.Service, Realserver: l.Address.String(), Left: true,
				Active: l.Active, Inactive: l.Inactive})
		}
	}
	seats, err := findSeats(cfg, q)
	if err != nil && len(all) == 0 {
		return nil, err
	}
	services := map[string]*balancer.ServiceStatus{}
	for _, s := range d.bal.Snapshot().Status() {
		services[s.Name] = &s
	}
	for _, seat := range seats {
		l := api.RealserverUsage{Service: seat.service, Realserver: seat.address.String()}
		if s := services[seat.service]; s != nil {
			for _, r := range s.Realservers {
				if r.Address != seat.address {
					continue
				}
				l.Weight, l.Active, l.Inactive = r.Weight, r.Active, r.Inactive
				if s.Persistence.Timeout > 0 && !cfg.Connections.ExpireQuiescentTemplate {
					l.Held = r.Templates
				}
			}
		}
		all = append(all, l)
	}
	return all, nil
}

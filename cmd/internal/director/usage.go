package director

import (
	"net/url"
	"time"

	"vstun/balancer"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/words"
)

// settleTime bounds the wait of an answer for the workers. A batch takes much less.
const settleTime = 100 * time.Millisecond

// usage answers GET /load: the connections of a realserver, in the service that the query names or in all. A realserver
// that is not configured any more has an entry for each of its methods as long as it has connections.
func (d *director) usage(q url.Values) (any, error) {
	st := d.controller.state()
	settling := !st.grace.wait(settleTime) // before the counts are read
	var all []api.RealserverUsage
	named, err := api.ParseRealserver(q.Get("realserver"))
	if err != nil {
		return nil, err
	}
	for _, l := range d.plane.balancer.Leaving() {
		if api.Names(named, l.ID()) && (!q.Has("service") || l.Service == q.Get("service")) {
			all = append(all, api.RealserverUsage{Service: l.Service, Realserver: words.Realserver(l.ID()),
				Forward: l.Kind.String(), Left: true, Active: l.Active, Inactive: l.Inactive, Settling: settling})
		}
	}
	ids, err := findRealservers(st.Config, q)
	if err != nil && len(all) == 0 {
		return nil, err
	}
	services := map[string]*balancer.ServiceStatus{}
	for _, s := range st.snapshot.Status() {
		services[s.Name] = &s
	}
	for _, id := range ids {
		l := realserverUsage(st.Config, services[id.Service], id)
		l.Settling = settling
		all = append(all, l)
	}
	return all, nil
}

// realserverUsage returns the connections of the realserver id of s.
func realserverUsage(cfg *config.Director, s *balancer.ServiceStatus, id plan.RealserverID) api.RealserverUsage {
	l := api.RealserverUsage{Service: id.Service, Realserver: words.Realserver(id.Realserver)}
	for _, r := range s.Realservers {
		if r.ID() != id.Realserver {
			continue
		}
		l.Forward, l.Weight, l.Active, l.Inactive = r.Kind.String(), r.Weight, r.Active, r.Inactive
		if s.Persistence.Timeout > 0 && !cfg.Connections.ExpireQuiescentTemplate {
			l.Held = r.Templates
		}
	}
	return l
}

package plan

import (
	"net/netip"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
)

// Subjects returns the realservers of cfg as a Monitor takes them. The path of each realserver that is checked comes
// from path, which may be nil.
func Subjects(cfg *config.Director,
	path func(s *config.Service, r *config.RealserverRef) health.Path) []health.Subject {
	var all []health.Subject
	for i := range cfg.Services {
		s := &cfg.Services[i]
		checks := map[*config.Check]*health.Check{}
		for j := range s.Realservers {
			r := &s.Realservers[j]
			subject := health.Subject{Service: s.Name, Realserver: r.Address}
			if c := r.Check; c != nil {
				if checks[c] == nil || c.Row().PerRealserver {
					checks[c] = check(c, s, r)
				}
				subject.Check, subject.Port, subject.Targets = checks[c], c.Port, s.VIPs
				if c.Direct {
					subject.Targets = []netip.Addr{r.Address}
				}
				subject.Way = pathName(s, r)
				if path != nil {
					subject.Path = path(s, r)
				}
			}
			all = append(all, subject)
		}
	}
	return all
}

func check(c *config.Check, s *config.Service, r *config.RealserverRef) *health.Check {
	return &health.Check{Probe: c.Probe(s, r), Interval: c.Interval, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall,
		Up: c.Up}
}

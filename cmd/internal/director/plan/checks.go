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
		checks := map[checkKey]*health.Check{}
		for j := range s.Realservers {
			r := &s.Realservers[j]
			subject := health.Subject{Service: s.Name, Realserver: r.ID()}
			if c := r.Check; c != nil {
				key := checkKey{c, r.CheckedDirectly()}
				if checks[key] == nil || c.Row().PerRealserver {
					checks[key] = check(c, s, r)
				}
				subject.Check, subject.Port, subject.Targets = checks[key], r.CheckPort(), s.VIPs
				if key.direct {
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

// checkKey identifies a check for realservers that have it in common.
type checkKey struct {
	check  *config.Check
	direct bool
}

func check(c *config.Check, s *config.Service, r *config.RealserverRef) *health.Check {
	return &health.Check{Probe: c.Probe(s, r), Interval: c.Interval, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall,
		Up: c.Up}
}

package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/method"
	"vstun/balancer/resolve"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// Answers are the last answers to Queries. A question without one is missing. An Answers is immutable.
type Answers map[resolve.Query]*resolve.Answer

// Queries returns the questions whose answers a plan for cfg needs, each with the least interval of its services.
func Queries(cfg *config.Director) map[resolve.Query]time.Duration {
	all := map[resolve.Query]time.Duration{}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for _, q := range queries(s) {
			if interval, known := all[q]; !known || s.Resolve.Interval < interval {
				all[q] = s.Resolve.Interval
			}
		}
	}
	return all
}

// Asking returns the names of the services that need the answer to q, in the order of the configuration.
func Asking(cfg *config.Director, q resolve.Query) (services []string) {
	for i := range cfg.Services {
		if s := &cfg.Services[i]; slices.Contains(queries(s), q) {
			services = append(services, s.Name)
		}
	}
	return services
}

// queries returns the questions of a service.
func queries(s *config.Service) (all []resolve.Query) {
	for i := range s.Named {
		all = append(all, question(s, &s.Named[i], false))
	}
	if s.Resolve.SRV != "" {
		all = append(all, question(s, &s.Found, true))
	}
	return all
}

// question returns the question for the addresses of r, a realserver of s with a name.
func question(s *config.Service, r *config.RealserverRef, srv bool) resolve.Query {
	return resolve.Query{Name: r.Host, SRV: srv, Server: s.Resolve.Server,
		Family: resolve.Family(s.FamilyOf(r))}
}

// Refused is an answer's realserver that cannot be one.
type Refused struct {
	Service, Host string
	Realserver    netip.AddrPort // its ID
	Reason        string
}

// Resolved returns cfg with the realservers that the answers give its names, behind those with addresses. It returns
// cfg itself if that has no names. It leaves out addresses that a service has already. devices are this host's.
func Resolved(cfg *config.Director, answers Answers, devices []query.Device) (*config.Director, []Refused) {
	if !slices.ContainsFunc(cfg.Services, func(s config.Service) bool { return s.HasNames() }) {
		return cfg, nil
	}
	vips := VIPs(cfg)
	c := *cfg
	c.Services = slices.Clone(cfg.Services)
	var refused []Refused
	for i := range c.Services {
		s := &c.Services[i]
		if !s.HasNames() {
			continue
		}
		s.Realservers = slices.Clone(s.Realservers)
		taken := map[netip.AddrPort]bool{}
		for j := range s.Realservers {
			taken[s.Endpoint(&s.Realservers[j])] = true
		}
		for _, r := range found(s, answers) {
			if reason := unfit(s, &r, vips, devices); reason != "" {
				refused = append(refused, Refused{s.Name, r.Host, r.ID(), reason})
				continue
			}
			if !translates(s, &r) { // the port is the service's own
				r.Port = 0
			}
			if at := s.Endpoint(&r); !taken[at] {
				taken[at] = true
				s.Realservers = append(s.Realservers, r)
			}
		}
		s.JoinSorry()
	}
	return &c, refused
}

// found returns the realservers that the answers give the names of s. The port of those of a SRV record is the
// record's.
func found(s *config.Service, answers Answers) (all []config.RealserverRef) {
	for i := range s.Named {
		if a := answers[question(s, &s.Named[i], false)]; a != nil {
			for _, t := range a.Targets {
				all = append(all, addressed(s.Named[i], t.Addresses)...)
			}
		}
	}
	if s.Resolve.SRV == "" {
		return all
	}
	a := answers[question(s, &s.Found, true)]
	if a == nil {
		return all
	}
	level, last, records := -1, uint16(0), []config.RealserverRef(nil)
	for _, t := range a.Targets { // in order of priority
		if level < 0 || t.Priority != last {
			level, last = level+1, t.Priority
		}
		r := s.Found
		r.Host, r.Port, r.Weight, r.Standby = t.Host, t.Port, max(int(t.Weight), 1), level
		records = append(records, addressed(r, t.Addresses)...)
	}
	slices.SortStableFunc(records, func(a, b config.RealserverRef) int {
		return cmp.Or(a.Standby-b.Standby, a.ID().Compare(b.ID()))
	})
	return append(all, records...)
}

// addressed returns r with each of the addresses.
func addressed(r config.RealserverRef, addresses []netip.Addr) (all []config.RealserverRef) {
	for _, a := range addresses {
		r.Address = a
		all = append(all, r)
	}
	return all
}

// unfit returns why r, whose address is from an answer, cannot be a realserver of s, or "". A SRV record may have
// another port than the service only where the port of packets is changed.
func unfit(s *config.Service, r *config.RealserverRef, vips []netip.Addr, devices []query.Device) string {
	a := r.Address
	_, isVIP := slices.BinarySearchFunc(vips, a, netip.Addr.Compare)
	switch {
	case a.Is4In6():
		return "it is an IPv4-mapped address"
	case config.NotUnicast(a) != "":
		return "it is " + config.NotUnicast(a)
	case isVIP:
		return "it is a VIP"
	}
	for i := range devices {
		for _, p := range devices[i].Addrs {
			switch {
			case a == p.Addr() && r.Forward != method.NAT:
				return fmt.Sprintf("it is this host itself, on %s, which only nat reaches", devices[i].Name)
			case a != p.Addr() && p.Contains(a) && !neighbour(p, a):
				return "it is the broadcast address or the number of a subnet of " + devices[i].Name
			}
		}
	}
	switch {
	case r.Port == 0 || translates(s, r) || s.Ours(r.Port):
		return ""
	case r.Forward == method.NAT:
		return fmt.Sprintf("port %d is no port of the service, and nat changes ports only if a service has one", r.Port)
	}
	return fmt.Sprintf("port %d is no port of the service, and %v changes no port", r.Port, r.Forward)
}

// translates reports whether r, a realserver of s, can have a port of its own.
func translates(s *config.Service, r *config.RealserverRef) bool {
	return r.Forward == method.NAT && s.OnePort()
}

// Answered returns in with the answers. Its configuration is the same one if the answers change nothing in it.
func (in Inputs) Answered(answers Answers) Inputs {
	if in.File == nil || maps.Equal(in.Answers, answers) {
		return in
	}
	in.Answers = answers
	is := in.Reconfigured(in.File)
	if sameRealservers(in.Config, is.Config) {
		in.Refused = is.Refused
		return in
	}
	return is
}

// sameRealservers reports whether two configurations of the same file have the same realservers.
func sameRealservers(a, b *config.Director) bool {
	return slices.EqualFunc(a.Services, b.Services, func(x, y config.Service) bool {
		return slices.Equal(x.Realservers, y.Realservers)
	})
}

func (r Refused) String() string {
	return fmt.Sprintf("service %q: realserver %s of %s", r.Service, words.Realserver(r.Realserver), r.Host)
}

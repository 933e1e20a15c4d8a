package plan

import (
	"fmt"
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
				if checks[c] == nil || c.Type == "exec" { // its environment names the realserver
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
	return &health.Check{Probe: probe(c, s, r), Interval: c.Interval, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall,
		Up: c.Up}
}

func probe(c *config.Check, s *config.Service, r *config.RealserverRef) health.Probe {
	switch c.Type {
	case "tcp":
		return health.TCP{Send: payload(c), Expect: c.Expect, ExpectHex: c.ExpectHex}
	case "udp":
		return health.UDP{Send: payload(c), Expect: c.Expect, ExpectHex: c.ExpectHex}
	case "http", "https":
		p := health.HTTP{TLS: c.Type == "https", Path: c.Path, Host: c.Host, Body: c.Body, SNI: c.SNI, CA: c.CA,
			Verify: c.Verify, Cert: c.Cert, Key: c.Key}
		if p.Host == "" && c.Direct {
			p.Host = health.Host(s.VIPs[0], c.Port, p.TLS)
		}
		for _, status := range c.Status {
			p.Status = append(p.Status, health.StatusRange(status))
		}
		return p
	case "dns":
		return health.DNS{TCP: s.Protocol == "tcp", Query: c.Query, Type: c.QueryType, Rcode: c.Rcode,
			Records: c.Records}
	case "smtp":
		return health.SMTP{Helo: c.Helo}
	case "exec":
		return health.Exec{Command: c.Command, Env: []string{"VSTUN_SERVICE=" + s.Name, "VSTUN_VIP=" +
			s.VIPs[0].String(),
			fmt.Sprintf("VSTUN_PORT=%d", s.Ports[0].First), "VSTUN_REALSERVER=" + r.Address.String()}}
	case "file":
		return health.File{Path: c.File, Factor: c.Factor, Reverse: c.Reverse}
	}
	return health.Ping{}
}

// payload returns the bytes that a check sends.
func payload(c *config.Check) string {
	if c.SendHex == "" {
		return c.Send
	}
	b, _ := health.ParseBytes(c.SendHex) // the configuration is validated
	return string(b)
}

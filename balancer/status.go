package balancer

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// ServiceStatus is a service with the counts of its realservers.
type ServiceStatus struct {
	Service
	Realservers []RealserverStatus // in the order of the configuration
}

// RealserverStatus is a realserver with its counts.
type RealserverStatus struct {
	Realserver
	Active, Inactive int    // connections, as IPVS counts them
	Templates        int    // clients whose persistence leads to it
	Connections      uint64 // scheduled to it since it was configured first
	Packets, Bytes   uint64 // of clients, without tunnel headers
	// Replies and ReplyBytes are of the realserver, as far as they pass the director (VS/NAT).
	Replies, ReplyBytes uint64
}

// Status returns the services in the order of the configuration.
func (s *Snapshot) Status() []ServiceStatus {
	out := make([]ServiceStatus, 0, len(s.list))
	for _, svc := range s.list {
		out = append(out, *svc.status())
	}
	return out
}

func (s *service) status() *ServiceStatus {
	st := &ServiceStatus{Service: s.config}
	for _, d := range slices.Concat(s.list, s.down) {
		rs := RealserverStatus{Realserver: d.Realserver, Active: d.counts.Active(), Inactive: d.counts.Inactive(),
			Templates:   d.counts.Templates(),
			Connections: d.stats.connections.Load()}
		for i := range d.stats.workers {
			rs.Packets += d.stats.workers[i].packets.Load()
			rs.Bytes += d.stats.workers[i].bytes.Load()
			rs.Replies += d.stats.workers[i].replies.Load()
			rs.ReplyBytes += d.stats.workers[i].replyBytes.Load()
		}
		st.Realservers = append(st.Realservers, rs)
	}
	order := make(map[netip.AddrPort]int, len(s.config.Realservers))
	for i, r := range s.config.Realservers {
		order[r.ID()] = i
	}
	slices.SortFunc(st.Realservers, func(a, b RealserverStatus) int { return order[a.ID()] - order[b.ID()] })
	return st
}

// Leaving is a realserver that is not configured any more, with the connections that it still has.
type Leaving struct {
	Service string
	Realserver
	Active, Inactive int
	Templates        int // clients whose next connection goes to another realserver
}

// Leaving lists the retired realservers that have connections, by service, ID and method. A realserver whose method has
// changed is retired with the former one.
func (b *Balancer) Leaving() []Leaving {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Leaving
	for _, left := range b.retired {
		d := left.dest
		l := Leaving{Service: d.stats.service, Realserver: d.Realserver, Active: d.counts.Active(),
			Inactive: d.counts.Inactive(), Templates: d.counts.Templates()}
		if l.Active+l.Inactive > 0 {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Leaving) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), a.ID().Compare(b.ID()), cmp.Compare(a.Kind, b.Kind))
	})
	return out
}

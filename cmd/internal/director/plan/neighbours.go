package plan

import (
	"net/netip"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
)

// Neighbours is the states of realservers of VS/DR as neighbours of this host, by address. An address without a known
// state is missing. A Neighbours is immutable.
type Neighbours map[netip.Addr]Neighbour

// Neighbour is a realserver of VS/DR on a link of this host.
type Neighbour struct {
	method.Link
	Fault string // why packets cannot get to it; "": they can, or it is not known yet
	MTU   int    // of its network; 0: of the path to it
}

// Direct returns the addresses of the realservers and sorry servers of cfg whose method is VS/DR, in ascending order.
func Direct(cfg *config.Director) (all []netip.Addr) {
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			if r := &s.Realservers[j]; r.Forward == method.DR {
				all = append(all, r.Address)
			}
		}
		if s.HasSorry() && s.Sorry.Forward == method.DR {
			all = append(all, s.Sorry.Address)
		}
	}
	return unique(all)
}

// Unreachable is a realserver to which no packets can get, and the reason.
type Unreachable struct {
	Address netip.Addr
	Reason  string
}

// faults returns the realservers of cfg with a Fault, in ascending order.
func (n Neighbours) faults(cfg *config.Director) (all []Unreachable) {
	for _, a := range Direct(cfg) {
		if fault := n[a].Fault; fault != "" {
			all = append(all, Unreachable{a, fault})
		}
	}
	return all
}

// link sets the links of the realservers of VS/DR in list.
func (n Neighbours) link(list []balancer.Realserver) {
	for i := range list {
		n.linkTo(list[i].Address, &list[i].Config)
	}
}

// linkTargets is link for the targets of checks.
func (n Neighbours) linkTargets(list []balancer.Target) []balancer.Target {
	for i := range list {
		n.linkTo(list[i].Address, &list[i].Config)
	}
	return list
}

// linkPaths is link for the paths to retired realservers. Those in the network of a TAP device need no route.
func (n Neighbours) linkPaths(paths map[netip.Addr]balancer.Path, retired []netip.Addr) map[netip.Addr]balancer.Path {
	for a, p := range paths {
		p.Link = n[a].Link
		paths[a] = p
	}
	for _, a := range retired {
		if now := n[a]; now.MTU != 0 {
			paths[a] = balancer.Path{Source: paths[a].Source, Link: now.Link, MTU: now.MTU}
		}
	}
	return paths
}

func (n Neighbours) linkTo(a netip.Addr, c *method.Config) {
	if c.Kind != method.DR {
		return
	}
	c.Link = n[a].Link
	if mtu := n[a].MTU; mtu != 0 {
		c.MTU = mtu
	}
}

// fault returns why no packet gets to r by VS/DR, "" if packets do, or if r has another method.
func (n Neighbours) fault(r *config.RealserverRef) string {
	if r.Forward != method.DR {
		return ""
	}
	return n[r.Address].Fault
}

// fail marks the realservers of cfg with a Fault as down, whatever their checks have found.
func (n Neighbours) fail(cfg *config.Director, states map[RealserverID]health.State) {
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			r := &s.Realservers[j]
			id := RealserverID{s.Name, r.ID()}
			if fault := n.fault(r); fault != "" {
				st := states[id]
				st.Up, st.Known, st.Reason = false, true, fault
				states[id] = st
			}
		}
	}
}

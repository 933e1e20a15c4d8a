// Package plan computes the desired state of a director's machine and balancer from its inputs: the configuration,
// weights that operators have set, the health of realservers, the paths to them, the host's devices. It is pure: it
// does no I/O, logs nothing and takes no lock.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/routing"
	"vstun/routing/announce"
	"vstun/routing/neigh"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// RealserverID names a realserver of a service.
type RealserverID struct {
	Service    string
	Realserver netip.AddrPort // see config.RealserverRef.ID
}

func (id RealserverID) String() string {
	return fmt.Sprintf("service %q: realserver %s", id.Service, words.Realserver(id.Realserver))
}

// Inputs is everything that a plan depends on.
type Inputs struct {
	File    *config.Director // as it is written
	Answers Answers          // for the names of File
	Config  *config.Director // File with the realservers of Answers
	Refused []Refused        // answers that Config leaves out
	Weights Weights
	Health  []health.State // of all realservers that are monitored
	Paths   Paths          // to Destinations, and to Retired

	Neighbours Neighbours // of Direct, and of Retired

	// RetiredVIPs are former VIPs, in ascending order. They keep their routes while they have connections.
	RetiredVIPs []netip.Addr
	// RetiredNAT are the servers of former realservers of VS/NAT, in a fixed order. Their replies pass the director
	// while they have connections.
	RetiredNAT []NATServer
	// Retired are the addresses of realservers that are not configured any more, and still have connections, in
	// ascending order. RetiredDirect are those of them whose method is VS/DR.
	Retired, RetiredDirect []netip.Addr

	// Syncing is set while connections of other directors may be missing. Their clients get no RST meanwhile, and their
	// servers' replies of VS/NAT are not sent on untranslated.
	Syncing bool

	ReplyLinks []string // see ReplyLinks
	Port       Port     // of a TAP device
	Devices    []query.Device
	Rules      Rules
	Roles      vrrp.Roles // of [[vrrp]]
	// Standby gives the VIPs that no instance of VRRP has to other directors behind the same routers, and Held leaves
	// them there after the start, until connections of peers are here.
	Standby, Held bool
	// Unowned leaves out the addresses that the host has as the master: it cannot have them now.
	Unowned bool
}

// Rules reports for which families the kernel has policy rules (CONFIG_IP_MULTIPLE_TABLES,
// CONFIG_IPV6_MULTIPLE_TABLES).
type Rules struct{ IPv4, IPv6 bool }

// Desired is the state that inputs lead to.
type Desired struct {
	Config      *config.Director // with the weights that operators have set
	Machine     routing.State
	Announce    []neigh.Device // the VIPs that the director answers neighbours for, see Announce
	Balancer    balancer.Config
	Reroute     map[netip.Addr]balancer.Path // paths to retired realservers
	Services    map[string]ServiceState      // by name
	Down        map[RealserverID]bool        // the realservers that their checks have found down
	Unconfirmed map[RealserverID]bool        // the realservers whose checks have found nothing yet
	Unreachable []netip.Addr                 // realservers without a route, in ascending order
	Faults      []Unreachable                // realservers of VS/DR that are no neighbours, or do not answer
	Speaker     announce.Config              // of BGP
	Routes      []announce.Route             // for the speaker, see Routes
}

// Event is a change of a service's known state, or a new service with a state that is not known yet.
type Event struct {
	Service  string
	Old, New string // Up, Down or Unknown
	Reason   string
	Expected bool // the service is up because nothing can make it down: only its configuration matters
}

// The states of a service and of a realserver, as events and the status have them.
const (
	Up      = "up"
	Down    = "down"
	Unknown = "unknown"
)

// UpDown returns Up or Down.
func UpDown(up bool) string {
	if up {
		return Up
	}
	return Down
}

// Plan returns the state that in leads to, and the events that lead there from the services' states before. The events
// have happened once the desired state is in force.
func Plan(in Inputs, before map[string]ServiceState) (Desired, []Event) {
	cfg := in.Weights.effective(in.Config)
	table := Table(cfg.Connections)
	d := Desired{
		Config:   cfg,
		Machine:  Machine(in),
		Announce: Announce(in),
		Balancer: balancer.Config{Probed: in.Neighbours.linkTargets(in.Paths.targets(cfg)),
			Options: options(cfg, in.Syncing), Table: &table, LeftVIPs: in.RetiredVIPs},
		Reroute:     in.Neighbours.linkPaths(in.Paths.reroute(cfg.Source, in.Retired), in.Retired),
		Services:    make(map[string]ServiceState, len(cfg.Services)),
		Down:        map[RealserverID]bool{},
		Unconfirmed: map[RealserverID]bool{},
		Unreachable: in.Paths.unreachable(cfg),
		Faults:      in.Neighbours.faults(cfg),
		Speaker:     Speaker(in),
	}
	states := Health(in.Health, in.Weights)
	in.Neighbours.fail(cfg, states)
	for id, st := range states {
		if !st.Up {
			d.Down[id] = true
		}
		if !st.Known {
			d.Unconfirmed[id] = true
		}
	}
	var events []Event
	for i := range cfg.Services {
		s := &cfg.Services[i]
		var was *ServiceState
		if st, known := before[s.Name]; known {
			was = &st
		}
		b := service(s, cfg.Source, in.Paths)
		is := applyHealth(&b, s, states, in.Neighbours, was)
		if s.HasSorry() && !s.IsRealserver(s.Sorry.ID()) {
			b.Realservers = append(b.Realservers, sorryServer(s, cfg.Source, in.Paths,
				is.Sorry && in.Neighbours.fault(&s.Sorry) == ""))
		}
		if cfg.SecondChance.On && s.HasTables() {
			nameHops(b.Realservers)
		}
		in.Neighbours.link(b.Realservers)
		d.Balancer.Services = append(d.Balancer.Services, b)
		d.Services[s.Name] = is
		if e, happened := event(s, was, is); happened {
			events = append(events, e)
		}
	}
	d.Routes = Routes(in, d.Services)
	return d, events
}

// Reconfigured returns in with the configuration of file. It keeps the weights that still hold under cfg. VIPs, and
// servers of VS/NAT, that are not configured any more become retired ones.
func (in Inputs) Reconfigured(file *config.Director) Inputs {
	cfg, refused := Resolved(file, in.Answers, in.Devices)
	vips := VIPs(cfg)
	in.RetiredVIPs = slices.DeleteFunc(in.AllVIPs(),
		func(vip netip.Addr) bool { return slices.Contains(vips, vip) })
	servers := NATServers(cfg)
	in.RetiredNAT = slices.DeleteFunc(in.AllNATServers(), func(n NATServer) bool {
		_, found := slices.BinarySearchFunc(servers, n, NATServer.compare)
		return found
	})
	in.File, in.Config, in.Refused, in.Weights = file, cfg, refused, in.Weights.kept(cfg)
	return in
}

// Health returns the states of realservers by their names. A realserver whose weight an operator has set has no offset.
func Health(states []health.State, set Weights) map[RealserverID]health.State {
	all := make(map[RealserverID]health.State, len(states))
	for _, st := range states {
		id := RealserverID{st.Service, st.Realserver}
		if _, fixed := set[id]; fixed {
			st.Offset = 0
		}
		all[id] = st
	}
	return all
}

// Realservers returns the realservers of cfg by their names, sorry servers excluded.
func Realservers(cfg *config.Director) map[RealserverID]config.RealserverRef {
	all := map[RealserverID]config.RealserverRef{}
	for i := range cfg.Services {
		for _, r := range cfg.Services[i].Realservers {
			all[RealserverID{cfg.Services[i].Name, r.ID()}] = r
		}
	}
	return all
}

// VIPs returns the VIPs of cfg in ascending order, each once.
func VIPs(cfg *config.Director) []netip.Addr {
	var all []netip.Addr
	for _, s := range cfg.Services {
		all = append(all, s.VIPs...)
	}
	return unique(all)
}

// AllVIPs returns the VIPs of in, the retired ones included, in ascending order. Without a configuration these are all.
func (in *Inputs) AllVIPs() []netip.Addr {
	all := slices.Clone(in.RetiredVIPs)
	if in.Config != nil {
		all = append(all, VIPs(in.Config)...)
	}
	return unique(all)
}

// unique sorts addresses and removes repeated ones.
func unique(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// reroute returns the paths to those retired realservers to which there is a route.
func (p Paths) reroute(sources config.Sources, retired []netip.Addr) map[netip.Addr]balancer.Path {
	if len(retired) == 0 {
		return nil
	}
	known := make(map[netip.Addr]balancer.Path, len(retired))
	for _, a := range retired {
		if p.has(a) {
			known[a] = balancer.Path{MTU: p.mtu(a), Source: cmp.Or(sources.For(a), p.ownAddress(a))}
		}
	}
	return known
}

package plan

import (
	"fmt"
	"math"
	"slices"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/health"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// ServiceState is the state of a service that follows from the health of its realservers.
type ServiceState struct {
	Up       bool // its quorum is reached
	UpWeight int  // total weight of the realservers that are up
	Sorry    bool // its sorry server has the connections
	Known    bool // the known states of its realservers decide Up, or have decided it before
}

// protocols are the numbers of the protocols that a service can have in the configuration.
var protocols = map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "sctp": packet.ProtoSCTP}

// Protocol returns the number of a protocol that a service can have in the configuration.
func Protocol(name string) uint8 { return protocols[name] }

// Table returns [connections] as the connection table takes it.
func Table(c config.Connections) conntab.Config {
	reuse := [...]conntab.Reuse{conntab.ReuseNever, conntab.ReuseClosed, conntab.ReuseClosing}
	t := conntab.Config{Max: c.Max, HalfOpenMax: c.HalfOpenMax, SloppyTCP: c.SloppyTCP,
		SecureTCP:    c.SecureTCP == config.SecureAlways,
		Reuse:        reuse[c.ConnReuse],
		ExpireNodest: c.ExpireNoDest, DropRemoved: c.DropOnRemoval,
		Timeouts: conntab.Timeouts{TCP: c.Timeouts.TCP, TCPFin: c.Timeouts.TCPFin, TCPSyn: c.Timeouts.TCPSyn,
			UDP: c.Timeouts.UDP, SCTP: c.Timeouts.SCTP}}
	if c.SecureTCP == config.SecureOff {
		t.HalfOpenMax = 0
	}
	return t
}

// options returns the settings of cfg for all services. syncing is Inputs.Syncing: what is unknown then may be known
// soon, and to another realserver than the hash's.
func options(cfg *config.Director, syncing bool) balancer.Options {
	return balancer.Options{ExpireQuiescentTemplate: cfg.Connections.ExpireQuiescentTemplate, Silent: cfg.Silent,
		NoResets: cfg.NoResets || syncing, HashUnknown: cfg.HashUnknown && !syncing, Incomplete: syncing}
}

// service returns s as the balancer takes it.
func service(s *config.Service, sources config.Sources, paths Paths) balancer.Service {
	b := balancer.Service{Name: s.Name, VIPs: s.VIPs, Protocol: protocols[s.Protocol], Scheduler: s.Scheduler,
		Flags: balancer.Flags(s.Flags), ByAddress: s.ByAddress,
		Persistence: balancer.Persistence{Timeout: s.Persistence.Timeout, Mask4: s.Persistence.Netmask,
			Mask6: s.Persistence.Netmask6}, OnePacket: s.OnePacket}
	for _, p := range s.Ports {
		b.Ports = append(b.Ports, balancer.PortRange(p))
	}
	for i := range s.Realservers {
		b.Realservers = append(b.Realservers, realserver(s, &s.Realservers[i], sources, paths))
	}
	return b
}

// realserver returns r, a realserver of s, as the balancer takes it.
func realserver(s *config.Service, r *config.RealserverRef, sources config.Sources, paths Paths) balancer.Realserver {
	rs := balancer.Realserver{Address: r.Address, Weight: r.Weight, Upper: r.Upper, Lower: r.Lower,
		Config: method.Config{Kind: r.Forward, Port: r.Port, Key: r.Key, HasKey: r.HasKey, Checksum: r.Checksum,
			Source: sources.For(r.Address),
			MTU:    paths.mtu(r.Address)}}
	path, asked := paths[r.Address]
	rs.Own = path.Local
	if r.Forward == method.NAT && asked && path == (query.Path{}) {
		rs.MTU = 0 // no route: clients are told so
	}
	rs.Encap, _ = encap.ParseKind(r.Encap) // the configuration is validated
	if rs.Encap.UDP() {
		rs.EncapPort = s.EncapPort
	}
	if rs.Encap.Sealed() {
		rs.Source = r.Own
	}
	// Elsewhere the kernel fills in the source.
	if !rs.Source.IsValid() && (!r.Address.Is4() || rs.Encap.UDP() && rs.Checksum) {
		rs.Source = paths.ownAddress(r.Address)
	}
	return rs
}

// nameHops lets packets to those of a service's realservers name another one that have a tunnel for that.
func nameHops(list []balancer.Realserver) {
	for i := range list {
		r := &list[i]
		r.Hop = r.Kind == method.TUN && r.Encap == encap.KindGUE && r.Address.Is4()
	}
}

// sorryServer returns the sorry server of s as a realserver. While it is not in use it is down, so that its connections
// that can be rescheduled move to other realservers.
func sorryServer(s *config.Service, sources config.Sources, paths Paths, inUse bool) balancer.Realserver {
	r := realserver(s, &s.Sorry, sources, paths)
	r.Down = !inUse
	return r
}

// applyHealth gives the realservers of b, which was made from s, the weights that their checks leave them, marks the
// failed ones, and returns the service's state. The state before was *was; nil stands for a new service.
func applyHealth(b *balancer.Service, s *config.Service, states map[RealserverID]health.State, neighbours Neighbours,
	was *ServiceState) ServiceState {
	var is ServiceState
	down, unknown := make([]bool, len(s.Realservers)), false
	for i := range s.Realservers {
		st, monitored := states[RealserverID{s.Name, s.Realservers[i].ID()}]
		b.Realservers[i].Weight = Weight(s.Realservers[i].Weight, st)
		down[i], unknown = monitored && !st.Up, unknown || monitored && !st.Known
	}
	rank := activeRank(b, s, down)
	least, most := 0, 0 // bounds of the weight that is up, whatever the unknown states are
	for i := range s.Realservers {
		r := &s.Realservers[i]
		st, monitored := states[RealserverID{s.Name, r.ID()}]
		weight := b.Realservers[i].Weight
		if r.Standby > rank {
			if b.Realservers[i].Weight = 0; unknown { // the rank may be another one
				most += weight
			}
			continue
		}
		if !down[i] {
			is.UpWeight += weight
		}
		switch known := !monitored || st.Known; {
		case !known:
			most += weight
		case !down[i]:
			least, most = least+weight, most+weight
		}
	}
	// A new service was up before if none of its realservers is known to be down.
	wasUp := was != nil && was.Up || was == nil && !slices.Contains(down, true)
	quorum := health.Quorum{Weight: s.Quorum, Hysteresis: s.Hysteresis}
	is.Up = quorum.Up(wasUp, is.UpWeight)
	is.Known = was != nil && was.Known || quorum.Up(wasUp, least) == quorum.Up(wasUp, most)
	is.Sorry = !is.Up && s.HasSorry()
	for i := range down {
		r := &b.Realservers[i]
		reachable := neighbours.fault(&s.Realservers[i]) == ""
		switch {
		case is.Sorry && reachable && r.ID() == s.Sorry.ID(): // whatever its own check has found
			r.Weight, r.Upper, r.Lower = max(r.Weight, 1), 0, 0
		case !down[i] && !is.Sorry:
		case s.Realservers[i].DrainOnFailure:
			r.Weight = 0
		default:
			r.Down = true
		}
	}
	return is
}

// activeRank returns the least rank of a realserver that is up and has a weight. Those with a higher rank stand by.
func activeRank(b *balancer.Service, s *config.Service, down []bool) int {
	rank := math.MaxInt
	for i := range s.Realservers {
		if !down[i] && b.Realservers[i].Weight > 0 {
			rank = min(rank, s.Realservers[i].Standby)
		}
	}
	return rank
}

// event returns the event of s, if its state has changed. Its state before was *was; nil stands for a new service.
func event(s *config.Service, was *ServiceState, is ServiceState) (e Event, happened bool) {
	e = Event{Service: s.Name, Old: Unknown, New: UpDown(is.Up),
		Reason: fmt.Sprintf("weight %d is up, quorum %d", is.UpWeight, s.Quorum)}
	if is.Sorry {
		e.Reason += fmt.Sprintf("; clients go to the sorry server %s", words.Realserver(s.Sorry.ID()))
	}
	if was != nil && was.Known {
		e.Old = UpDown(was.Up)
	}
	if !is.Known {
		e.New = Unknown
		return e, was == nil && !is.Up
	}
	e.Expected = e.Old == Unknown && is.Up && !canFail(s)
	return e, e.Old != e.New
}

// canFail reports whether the state of s depends on more than its configuration: a realserver is checked, or there is
// a sorry server.
func canFail(s *config.Service) bool {
	return s.HasSorry() ||
		slices.ContainsFunc(s.Realservers, func(r config.RealserverRef) bool { return r.Check != nil })
}

// Package balancer decides which realserver a packet goes to: services, realservers, schedulers, and the connection
// table behind them.
package balancer

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
)

// Config is the configuration of a Balancer. The caller ensures that service names are unique, that a service's
// realservers have different IDs, and that no two services share VIP, protocol and port.
type Config struct {
	Services []Service
	Probed   []Target // targets of Pin, independent of services; each once
	// LeftVIPs are former VIPs whose packets still arrive, in ascending order: see Snapshot.WasVIP.
	LeftVIPs []netip.Addr
	Options  Options
	Table    *conntab.Config // of the connection table, except Max; nil: unchanged
}

// hasIPv6 reports whether there is an IPv6 VIP.
func (c *Config) hasIPv6() bool {
	return slices.ContainsFunc(c.Services, func(s Service) bool { return slices.ContainsFunc(s.VIPs, netip.Addr.Is6) })
}

// Options are the settings of all services.
type Options struct {
	// A persistent client of a realserver with weight 0 goes elsewhere with its next connection (IPVS's sysctl).
	ExpireQuiescentTemplate bool

	Silent   bool // a packet for which there is no service, or no realserver, is dropped without an answer
	NoResets bool // a TCP packet of an unknown connection is dropped without a RST
	// a scheduler that decides by the packet alone (Scheduler.Hash) decides for TCP packets of unknown connections
	HashUnknown bool
	// Connections of other directors may be missing: replies of VS/NAT's realservers of unknown connections wait.
	Incomplete bool
}

// Target is the reachability part of a Realserver. Checks that take the path of clients' packets are sent to it.
type Target struct {
	Address netip.Addr
	method.Config
}

// ID identifies r within its service: its address, and its own port, where it has one (VS/NAT), else 0.
func (r *Realserver) ID() netip.AddrPort { return netip.AddrPortFrom(r.Address, r.Port) }

// Target is the reachability part of r.
func (r Realserver) Target() Target { return Target{r.Address, r.Config} }

// key is the identity of a target: everything except what its path gives.
func (t Target) key() Target {
	t.Source, t.Link, t.MTU = netip.Addr{}, method.Link{}, 0
	return t
}

// Service is one virtual service: one scheduler spreads its connections over its realservers.
type Service struct {
	Name        string
	VIPs        []netip.Addr // IPv4 and IPv6
	Protocol    uint8        // packet.ProtoTCP, ProtoUDP or ProtoSCTP
	Ports       []PortRange
	Scheduler   string // one of Schedulers
	Flags       Flags  // of the scheduler
	ByAddress   bool   // a hash scheduler takes the realservers in order of address and port, not as they were added
	Persistence Persistence
	OnePacket   bool         // each UDP datagram is scheduled by itself, without a connection, except to VS/NAT
	Realservers []Realserver // in the order of `ipvsadm -a`
}

// Flags change how a scheduler works. Only sh and mh have flags.
type Flags struct {
	Port     bool // the source port is part of the key ("sh-port", "mh-port")
	Fallback bool // a realserver that may not be chosen is replaced by another ("sh-fallback", "mh-fallback")
}

// Persistence sends all connections of a client, or of a network of clients, to one realserver. The zero value is none.
type Persistence struct {
	Timeout time.Duration // after the last new connection; while connections exist, the template stays
	Mask4   int           // prefix length of one client's network, IPv4
	Mask6   int           // the same for IPv6
}

func (s *Service) equal(o *Service) bool {
	return s.Name == o.Name && s.Protocol == o.Protocol && s.Scheduler == o.Scheduler && s.Flags == o.Flags &&
		s.ByAddress == o.ByAddress && s.Persistence == o.Persistence && s.OnePacket == o.OnePacket &&
		slices.Equal(s.VIPs, o.VIPs) && slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Realservers, o.Realservers)
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// EveryPort stands for all ports that no other service of the VIP and protocol has.
var EveryPort = PortRange{}

// String returns "80", or "8000-8099", or "0" for EveryPort.
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Realserver is one realserver of one service.
type Realserver struct {
	Address netip.Addr // IPv4 or IPv6, whatever the VIPs are
	Weight  int        // 0: existing connections stay, new ones go elsewhere
	Upper   int        // at this number of connections, active and inactive, it gets no new ones; 0: no bound
	Lower   int        // below this number it gets new ones again; 0: three quarters of Upper
	Down    bool       // failed: gets no new connections; see Snapshot.Decide for existing ones
	method.Config
}

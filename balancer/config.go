// Package balancer decides which realserver a packet goes to: services, realservers, schedulers, and the connection table behind them.
package balancer

import (
	"fmt"
	"net/netip"
	"slices"
)

// Config is what a Balancer balances. Names are unique among services, addresses among a service's realservers, and no two services have
// VIP, protocol and port in common: who makes a Config sees to that.
type Config struct {
	Services []Service
}

// Service is one virtual service: everything that its scheduler spreads together.
type Service struct {
	Name        string
	VIPs        []netip.Addr // IPv4
	Protocol    uint8        // packet.ProtoTCP or packet.ProtoUDP
	Ports       []PortRange
	Scheduler   string       // one of Schedulers
	Realservers []Realserver // in the order of `ipvsadm -a`
}

func (s *Service) equal(o *Service) bool {
	return s.Name == o.Name && s.Protocol == o.Protocol && s.Scheduler == o.Scheduler && slices.Equal(s.VIPs, o.VIPs) &&
		slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Realservers, o.Realservers)
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// String is "80", or "8000-8099".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Realserver is one realserver of one service.
type Realserver struct {
	Address netip.Addr // IPv4
	Weight  int        // 0: existing connections stay, new ones go elsewhere
	Source  netip.Addr // outer source address; the zero Addr: what the kernel's route gives
	MTU     int        // largest outer packet on the way to it, in bytes
}

package plan

import (
	"net/netip"
	"slices"

	"vstun/routing"
)

// Packets of this host itself to VIPs, such as health checks, have a TUN device and a worker of their own. A flood of
// clients' packets overruns the clients' device only, and no check fails.
//
//	from the network: main table  → vs0       → a worker for each queue ─┐
//	                                                                     ├→ realserver
//	of this host: rule, own table → vs0-local → its worker ──────────────┘

const (
	// localPriority is the priority of the rule. It precedes the rules of hosts with several uplinks, which select by
	// source address. The table has only routes of VIPs.
	localPriority = 10
	// lastResort is the metric of a route that is used when there is no other.
	lastResort = 4294967294
	// deviceMTU is the largest MTU. The director itself enforces the MTU of each tunnel.
	deviceMTU = 65535
	// queueLen is the number of packets that wait for a worker. They cover the time for which a busy machine's
	// scheduler holds the worker up: 60 ms at 70,000 packets a second.
	queueLen = 4096
)

// Machine returns the state of the machine that in needs: routes lead the VIPs, the retired ones included, into the TUN
// devices.
func Machine(in Inputs) routing.State {
	if in.Config.TAP {
		return portMachine(in)
	}
	cfg, vips := in.Config, in.AllVIPs()
	s := routing.State{Loose: slices.Clone(in.ReplyLinks)}
	v4, v6 := slices.ContainsFunc(vips, netip.Addr.Is4), slices.ContainsFunc(vips, netip.Addr.Is6)
	for _, name := range []string{cfg.TUN, cfg.LocalTUN()} {
		s.Links = append(s.Links, routing.Link{Name: name, MTU: deviceMTU, TxQueueLen: queueLen, Up: true})
		s.Sysctls = append(s.Sysctls, deviceSysctls(name, v6)...)
	}
	if v6 { // packets for a VIP are forwarded into the device
		s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: "net/ipv6/conf/all/forwarding", Value: "1"})
	}
	if v4 {
		s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: "net/ipv4/ip_forward", Value: "1"})
	}
	rule4, rule6 := v4 && in.Rules.IPv4, v6 && in.Rules.IPv6
	if rule4 {
		s.Rules = append(s.Rules, routing.Rule{In: routing.Loopback, Table: cfg.Table, Priority: localPriority})
	}
	if rule6 {
		s.Rules = append(s.Rules, routing.Rule{IPv6: true, In: routing.Loopback, Table: cfg.Table,
			Priority: localPriority})
	}
	for _, vip := range vips {
		dst := netip.PrefixFrom(vip, vip.BitLen())
		s.Routes = append(s.Routes, routing.Route{Dst: dst, Link: cfg.TUN},
			// A kill removes the device with its route. Without this route, the default route would lead the VIP's
			// packets back to the router, which sends them here again.
			routing.Route{Dst: dst, Unreachable: true, Metric: lastResort})
		if vip.Is4() && rule4 || vip.Is6() && rule6 {
			s.Routes = append(s.Routes, routing.Route{Dst: dst, Link: cfg.LocalTUN(), Table: cfg.Table})
		}
	}
	s.Addrs = append(s.Addrs, in.owned()...)
	s.Tables = map[int]string{cfg.Table: "set another table in [director]"}
	addReplies(&s, &in)
	return s
}

// SameMachine reports whether in and o need the same machine, without a comparison of different configurations.
func (in *Inputs) SameMachine(o *Inputs) bool {
	return in.Config == o.Config && in.Rules == o.Rules && slices.Equal(in.RetiredVIPs, o.RetiredVIPs) &&
		slices.Equal(in.ReplyLinks, o.ReplyLinks) && slices.Equal(in.RetiredNAT, o.RetiredNAT) && in.SameOwned(o) &&
		in.sameReplyPaths(o)
}

// deviceSysctls returns the sysctls of a TUN device, with IPv6 or without. The device never has an IPv6 address: with
// one the kernel would look for neighbours, and there are none.
func deviceSysctls(name string, ipv6 bool) []routing.Sysctl {
	device := "net/ipv6/conf/" + name
	if !ipv6 {
		return []routing.Sysctl{{Key: device + "/disable_ipv6", Value: "1", Optional: true, Cosmetic: true}}
	}
	return []routing.Sysctl{
		{Key: device + "/addr_gen_mode", Value: "1", Cosmetic: true},
		{Key: device + "/accept_ra", Value: "0", Cosmetic: true},
		{Key: device + "/disable_ipv6", Value: "0"},
	}
}

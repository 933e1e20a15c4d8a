package director

import (
	"net/netip"
	"slices"

	"vstun/balancer/forward"
	"vstun/cmd/internal/config"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/tundev"
)

// This host's own packets to VIPs, such as health checks, have a TUN device and a worker of their own. Clients that
// send more than the director takes overrun only the clients' device, and no check fails.
//
//	from the network: main table  → vs0       → a worker for each queue ─┐
//	                                                                     ├→ realserver
//	of this host: rule, own table → vs0-local → its worker ──────────────┘

// localPriority is the priority of the rule. It precedes the rules of hosts with several uplinks, which lead by
// source address: the table has nothing but VIPs.
const localPriority = 10

// urgent is the priority of packets that a full queue of the network device must not delay: TC_PRIO_INTERACTIVE in
// linux/pkt_sched.h, the first band of pfifo_fast and prio.
const urgent = 6

// openLocal opens the device for this host's own packets, and makes its worker. The worker has a socket of its own,
// which no flood fills.
func (d *director) openLocal() (err error) {
	d.local, err = tundev.Open(d.cfg.LocalTUN(), tundev.Options{Queues: 1, Plain: !d.cfg.Offload})
	if err != nil {
		return err
	}
	s, err := wire.NewSender()
	if err != nil {
		return err
	}
	d.senders = append(d.senders, s)
	if err := s.SetPriority(urgent); err != nil {
		return err
	}
	d.workers = append(d.workers, forward.NewWorker(forward.WorkerConfig{ID: d.cfg.Queues,
		Source: d.local.Queues()[0], Raw: s, Balancer: d.bal, Shared: d.shared, Clock: d.now}))
	for _, ipv6 := range []bool{false, true} {
		if !routing.HasRules(ipv6) && (!ipv6 || routing.HasIPv6()) {
			d.log.Warn("the kernel has no rules (CONFIG_IP_MULTIPLE_TABLES): health checks share the clients' queues, "+
				"and a flood can fail them", "ipv6", ipv6)
		}
	}
	return nil
}

// machine is the state of the machine that the director needs to run cfg with these VIPs.
func (d *director) machine(cfg *config.Director, vips []netip.Addr) routing.State {
	s := network(cfg, vips)
	s.Loose = d.loose
	return s
}

// network is the state of the machine that cfg needs for these VIPs: routes lead them into the TUN devices. The devices
// have the largest MTU, since the director itself enforces the MTU of each tunnel.
func network(cfg *config.Director, vips []netip.Addr) (s routing.State) {
	v4, v6 := slices.ContainsFunc(vips, netip.Addr.Is4), slices.ContainsFunc(vips, netip.Addr.Is6)
	for _, name := range []string{cfg.TUN, cfg.LocalTUN()} {
		s.Links = append(s.Links, routing.Link{Name: name, MTU: 65535, TxQueueLen: 1000, Up: true})
		s.Sysctls = append(s.Sysctls, deviceSysctls(name, v6)...)
	}
	if v6 { // packets for a VIP are forwarded into the device
		s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: "net/ipv6/conf/all/forwarding", Value: "1"})
	}
	if v4 {
		s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: "net/ipv4/ip_forward", Value: "1"})
	}
	rules := map[bool]bool{false: v4 && routing.HasRules(false), true: v6 && routing.HasRules(true)}
	for _, ipv6 := range []bool{false, true} {
		if rules[ipv6] {
			s.Rules = append(s.Rules, routing.Rule{IPv6: ipv6, Table: cfg.Table, Priority: localPriority})
		}
	}
	for _, vip := range vips {
		dst := netip.PrefixFrom(vip, vip.BitLen())
		s.Routes = append(s.Routes, routing.Route{Dst: dst, Link: cfg.TUN},
			// A kill removes the device with its route. Without this route, the default route would lead the VIP's
			// packets back to the router, which sends them here again.
			routing.Route{Dst: dst, Unreachable: true, Metric: lastResort})
		if rules[vip.Is6()] {
			s.Routes = append(s.Routes, routing.Route{Dst: dst, Link: cfg.LocalTUN(), Table: cfg.Table})
		}
	}
	return s
}

// deviceSysctls are those of a TUN device, with IPv6 or without. It never has an IPv6 address: with one the kernel
// would look for neighbours that are not there.
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

// sysctls lists what must be set before a director with cfg starts on a machine whose /proc/sys is read-only.
func sysctls(cfg *config.Director) ([]routing.Sysctl, error) {
	to, err := routing.Paths(append(addressees(cfg), somewhere4, somewhere6))
	if err != nil {
		return nil, err
	}
	s := network(cfg, vips(cfg))
	s.Loose = (&ways{to: to, sources: cfg.Source}).answersBy(cfg)
	return routing.Presets(s), nil
}

// lastResort is the metric of a route that is used when there is no other.
const lastResort = 4294967294

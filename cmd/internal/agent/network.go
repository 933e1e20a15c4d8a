package agent

import (
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/wireguard"
	"vstun/routing"
	"vstun/routing/query"
)

// mss returns the MSS that the host's SYN-ACKs may advertise over IPv4 and over IPv6, in bytes, so that clients'
// packets fit the tunnel. endpoints are where the peers of WireGuard are now. known is false if no path to a director
// is known: then the paths count as Ethernet's.
func mss(cfg *config.Realserver, endpoints map[netip.Addr]netip.Addr) (v4, v6 int, known bool) {
	if cfg.MSS > 0 {
		return cfg.MSS, cfg.MSS, true
	}
	const headers4, headers6 = 20 + 20, 40 + 20 // IP and TCP, without options
	list := tunnels(cfg, endpoints)
	if len(list) == 0 { // no tunnel is accepted
		return 0, 0, false
	}
	var asked []netip.Addr
	for _, t := range list {
		if t.from.IsValid() {
			asked = append(asked, t.from)
		}
	}
	// The MTU of the path to a director is the best guess for the path back. Without that MTU the agent runs, too.
	paths, _ := query.Paths(asked)
	least := 0
	for _, t := range list {
		mtu := 1500
		if p, ok := paths[t.from]; ok {
			mtu = p.MTU
		} else if len(paths) > 0 && t.from.IsValid() {
			continue
		}
		if room := t.room(mtu); least == 0 || room < least {
			least = room
		}
	}
	const smallest = 88 // TCP_MIN_MSS of Linux
	return max(least-headers4, smallest), max(least-headers6, smallest), len(paths) > 0
}

// incoming is the path of a director's packets.
type incoming struct {
	from     netip.Addr // invalid: it is not known
	overhead int        // the most bytes that it adds to a packet, without WireGuard's own
	sealed   bool       // its packets come in WireGuard
}

// room returns the size in bytes of the largest packet that comes whole by a path with an MTU of mtu bytes.
func (t *incoming) room(mtu int) int {
	if t.sealed {
		mtu = wireguard.Unpadded(mtu - wireguard.Overhead(!t.from.Is4())) // an unknown one may be of IPv6
	}
	return mtu - t.overhead
}

// tunnels returns the tunnels of cfg, one for each director, or for its prefix.
func tunnels(cfg *config.Realserver, endpoints map[netip.Addr]netip.Addr) (all []incoming) {
	plain := len(decapsulators(cfg)) > 0
	for _, d := range cfg.Directors {
		a := d.Addr()
		if !d.IsSingleIP() {
			a = a.Next() // the prefix's own address is no host's
		} else if cfg.WireGuard.Peer(a) != nil {
			continue
		}
		if plain {
			all = append(all, incoming{from: a, overhead: overhead(cfg, a.Is6())})
		}
	}
	if !accepts(cfg) {
		return all
	}
	for _, p := range cfg.WireGuard.Peers {
		from := endpoints[p.Address]
		if !from.IsValid() {
			from = p.Endpoint.Addr()
		}
		n := packet.IPv4HeaderLen
		if p.Address.Is6() {
			n = packet.IPv6HeaderLen
		}
		all = append(all, incoming{from: from, overhead: n, sealed: true})
	}
	return all
}

// overhead returns the most bytes that the tunnels of cfg add to a packet. Directors may give GRE a checksum, and with
// second chances GUE over IPv4 a hop.
func overhead(cfg *config.Realserver, over6 bool) (n int) {
	for _, e := range decapsulators(cfg) {
		n = max(n, e.Kind.Overhead4())
		if e.Kind == encap.KindGRE {
			n = max(n, e.Kind.Overhead4()+greOption)
			if e.HasKey {
				n = max(n, e.Kind.Overhead4()+2*greOption)
			}
		}
		if e.Kind == encap.KindGUE && cfg.SecondChance.On && !over6 {
			n = max(n, e.Kind.Overhead4()+encap.HopLen)
		}
	}
	if over6 {
		n += packet.IPv6HeaderLen - packet.IPv4HeaderLen
	}
	return n
}

// greOption is the length of GRE's checksum, and of its key, in bytes (RFC 2784, RFC 2890).
const greOption = 4

// network returns the state of the host's network that cfg needs.
func network(cfg *config.Realserver, mss4, mss6 int) routing.State {
	_, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	s := routing.State{QuietIPIP: takesIPIP(cfg), Links: []routing.Link{{Name: cfg.TUN, Up: true}}}
	if conf := "net/ipv6/conf/" + cfg.TUN; vip6 {
		s.Sysctls = append(s.Sysctls,
			// no link-local address, and no router solicitations
			routing.Sysctl{Key: conf + "/addr_gen_mode", Value: "1", Cosmetic: true},
			routing.Sysctl{Key: conf + "/accept_ra", Value: "0", Cosmetic: true},
			routing.Sysctl{Key: conf + "/disable_ipv6", Value: "0"})
	} else {
		s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: conf + "/disable_ipv6", Value: "1", Optional: true,
			Cosmetic: true})
	}
	if len(cfg.VIPs) == 0 { // it has point-to-point tunnels alone
		return s
	}
	s.Loose = []string{cfg.TUN} // clients' packets come in by the device, and answers leave by another
	s.Sysctls = append(s.Sysctls,
		// Where director and realserver share a subnet, only the director may answer ARP requests for the VIP. IPv6
		// needs no such setting: a device answers for its own addresses alone.
		routing.Sysctl{Key: "net/ipv4/conf/all/arp_ignore", Value: "1", AtLeast: true},
		routing.Sysctl{Key: "net/ipv4/conf/all/arp_announce", Value: "2", AtLeast: true})
	if cfg.MSS != config.MSSOff {
		s.Replies = &routing.Replies{From: cfg.VIPs, Table: cfg.Table, Priority: cfg.Table, AdvMSS: mss4, AdvMSS6: mss6,
			Bound: cfg.TUN}
		const hint = "set another table in [realserver]"
		s.Tables = map[int]string{cfg.Table: hint, cfg.Table + 1: hint + " (this one is table plus 1)"}
		s.Routes = boundRoutes(cfg, mss4, mss6)
	}
	if cfg.ForeignVIPs {
		if slices.ContainsFunc(cfg.VIPs, netip.Addr.Is4) {
			s.Addrs = []routing.Addr{{Link: cfg.TUN, Prefix: netip.PrefixFrom(deviceAddress, 32)}}
		}
		refuseUntaken(cfg, &s)
		return s
	}
	for _, vip := range cfg.VIPs {
		s.Addrs = append(s.Addrs, routing.Addr{Link: cfg.TUN, Prefix: netip.PrefixFrom(vip, vip.BitLen())})
	}
	return s
}

// deviceAddress is the IPv4 address of a device that has no VIP. Packets out of a device without an address fail the
// reverse-path filter, even a loose one (Linux net/ipv4/fib_frontend.c, __fib_validate_source). No packet has it: a
// loopback address never leaves the host. A director's device has another one.
var deviceAddress = netip.MustParseAddr("127.118.0.2")

// refuseUntaken adds to s routes for packets to VIPs that come out of the tunnel and that no program on this host
// takes: neither an address nor a translation in PREROUTING, which comes before the route. Without them the main table
// would lead such packets back to the director, round and round until their TTL is used up.
func refuseUntaken(cfg *config.Realserver, s *routing.State) {
	table := cfg.Table + 1<<16 // which no key can name
	if s.Tables == nil {
		s.Tables = map[int]string{}
	}
	s.Tables[table] = "set another table in [realserver] (this one is table plus 65536)"
	for _, vip := range cfg.VIPs {
		s.Routes = append(s.Routes, routing.Route{Dst: netip.PrefixFrom(vip, vip.BitLen()), Unreachable: true,
			Table: table})
	}
	vip4, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	rule := routing.Rule{In: cfg.TUN, Table: table, Priority: cfg.Table + 1}
	if vip4 {
		s.Rules = append(s.Rules, rule)
	}
	if rule.IPv6 = true; vip6 {
		s.Rules = append(s.Rules, rule)
	}
}

// boundRoutes returns the routes that lead the answers of sockets bound to the device into it. Without a route the
// kernel learns no path MTU to their clients, and sends nothing over IPv6.
func boundRoutes(cfg *config.Realserver, mss4, mss6 int) (all []routing.Route) {
	const mtu = 1500 // of a TUN device
	to := routing.Route{Link: cfg.TUN, Table: cfg.Table + 1}
	vip4, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	if vip4 {
		to.Dst, to.AdvMSS = netip.PrefixFrom(netip.IPv4Unspecified(), 0), min(mss4, mtu-40)
		all = append(all, to)
	}
	if vip6 {
		to.Dst, to.AdvMSS = netip.PrefixFrom(netip.IPv6Unspecified(), 0), min(mss6, mtu-60)
		all = append(all, to)
	}
	return all
}

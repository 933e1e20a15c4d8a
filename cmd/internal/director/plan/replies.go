package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/routing"
)

// Replies of realservers of VS/NAT pass the director, which is their gateway. Rules lead the replies into the TUN
// device by a table of their own. A worker rewrites them and writes them back into the device, and the kernel routes
// them by the main table. A packet of no connection is written back as it came.
//
//	realserver → eth1: rule, reply table → vs0 → worker ─┐
//	client     ← eth0: main table        ← vs0 ←─────────┘
//
// Each packet of the host passes the rules, one after the other, so that their number matters. A request matches the
// rule of its protocol's ports, and passes no long list of realservers:
//
//	11  from OWN iif lo ipproto P sport PORT lookup T   replies of this host's own servers (LocalNode)
//	12  iif lo goto 32                    this host's other packets
//	12  iif vs0 goto 32                   written back: they must not loop
//	13  iif eth1 ipproto icmp lookup T    an ICMP error has no port, and may come from a router
//	13  from SERVERS ipproto P sport PORT lookup T      replies of few servers
//	14  ipproto P sport PORT goto 18      replies of many servers
//	15  ipproto P sport 1-65534 goto 32   all other packets of TCP, UDP or SCTP; but fragments have no port
//	16  from SERVERS ipproto P lookup T   fragments, and port 65535, which no rule can select
//	17  goto 32
//	18  from SERVERS ipproto P sport PORT lookup T      the lists of many servers
//	32  iif vs0 nop                       the target of goto; the rules of other programs follow
const (
	ownPriority       = localPriority + 1 + iota // LocalNode
	skipPriority                                 // packets that are no replies
	replyPriority                                // ICMP, and packets by their port
	listedPriority                               // packets by their port, of many servers
	portedPriority                               // other packets with a port
	portlessPriority                             // fragments
	restPriority                                 // all others
	firstListPriority                            // long lists of servers
)

const (
	lists       = 14 // of servers, with a priority each
	endPriority = firstListPriority + lists
	// shortList is the largest number of prefixes that every packet passes.
	shortList = 4
	// maxPrefixes is the largest number of prefixes in a list. More are replaced by larger prefixes, which have other
	// hosts too. The packets of these hosts are written back as they came.
	maxPrefixes = 64
)

// DeviceAddress is the IPv4 address of the TUN device with VS/NAT. Packets that are written into a device without an
// address fail the reverse-path filter, even a loose one (Linux net/ipv4/fib_frontend.c, __fib_validate_source). No
// packet has it: a loopback address never leaves the host.
var DeviceAddress = netip.MustParseAddr("127.118.0.1")

// NATServer is a server whose replies pass the director: a realserver's address, with a protocol and ports there.
type NATServer struct {
	Address  netip.Addr
	Protocol uint8
	Ports    config.PortRange // of the realserver; all: balancer.EveryPort
}

func (n NATServer) compare(o NATServer) int {
	return cmp.Or(cmp.Compare(n.Protocol, o.Protocol), cmp.Compare(n.Ports.First, o.Ports.First),
		cmp.Compare(n.Ports.Last, o.Ports.Last), n.Address.Compare(o.Address))
}

// In reports whether used has a port of n. Each element of used has one port.
func (n NATServer) In(used map[NATServer]bool) bool {
	every := n.Ports == balancer.EveryPort
	if n.Ports.First == n.Ports.Last && !every {
		return used[n]
	}
	for u := range used {
		if u.Address == n.Address && u.Protocol == n.Protocol &&
			(every || n.Ports.First <= u.Ports.First && u.Ports.First <= n.Ports.Last) {
			return true
		}
	}
	return false
}

// NATServers returns the servers of cfg whose replies pass the director, in a fixed order.
func NATServers(cfg *config.Director) (all []NATServer) {
	add := func(s *config.Service, r *config.RealserverRef) {
		if r.Forward != method.NAT {
			return
		}
		ports := s.Ports
		if r.Port != 0 {
			ports = []config.PortRange{{First: r.Port, Last: r.Port}}
		}
		for _, p := range ports {
			all = append(all, NATServer{r.Address, Protocol(s.Protocol), p})
		}
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			add(s, &s.Realservers[j])
		}
		if s.HasSorry() {
			add(s, &s.Sorry)
		}
	}
	slices.SortFunc(all, NATServer.compare)
	return slices.Compact(all)
}

// AllNATServers returns the servers of in whose replies pass the director, the retired ones included, in a
// fixed order.
func (in *Inputs) AllNATServers() []NATServer {
	all := slices.Clone(in.RetiredNAT)
	if in.Config != nil {
		all = append(all, NATServers(in.Config)...)
	}
	slices.SortFunc(all, NATServer.compare)
	return slices.Compact(all)
}

// Translates reports whether in has servers of VS/NAT, the retired ones included.
func (in *Inputs) Translates() bool { return len(in.AllNATServers()) > 0 }

// sameReplyPaths reports whether the paths of in and o lead to the same rules for replies, if all else is the same.
func (in *Inputs) sameReplyPaths(o *Inputs) bool {
	all := in.AllNATServers()
	mtus := in.Paths.mtu(documentation4) == o.Paths.mtu(documentation4) &&
		in.Paths.mtu(documentation6) == o.Paths.mtu(documentation6)
	return len(all) == 0 || mtus && !slices.ContainsFunc(all, func(n NATServer) bool {
		a, b := in.Paths[n.Address], o.Paths[n.Address]
		return a.Link != b.Link || a.Local != b.Local
	})
}

// looseLinks returns links, and the devices whose reverse-path filter must be loose for the replies of servers: the TUN
// device, since the routes of the packets that are written back lead elsewhere; and those by which other hosts reach
// the servers' own addresses and ports, past the director, since the way back seems to lead into the TUN device. Such
// packets come from clients, or from other servers.
func (in *Inputs) looseLinks(links []string, servers []NATServer) []string {
	links = append(links, in.Config.TUN)
	for _, n := range servers {
		links = append(links, in.Paths[n.Address].Link, in.Paths.DefaultLink())
	}
	slices.Sort(links)
	return slices.DeleteFunc(slices.Compact(links), func(name string) bool { return name == "" })
}

// OwnServers returns the IPv4 addresses of this host that are servers of VS/NAT and that other hosts can reach, each
// once. Packets of other hosts to these servers seem to have a way back into the TUN device: the filter of the devices
// by which they come in must be loose.
func (in *Inputs) OwnServers() (all []netip.Addr) {
	for _, n := range in.AllNATServers() {
		if n.Address.Is4() && in.Paths[n.Address].Local && !n.Address.IsLoopback() {
			all = append(all, n.Address)
		}
	}
	return unique(all)
}

// DefaultLink returns the device of the IPv4 default route, "" for none.
func (p Paths) DefaultLink() string { return p[documentation4].Link }

// addReplies adds the rules and sysctls for replies of in's servers to s.
func addReplies(s *routing.State, in *Inputs) {
	var own4, own6, four, six []NATServer
	for _, n := range in.AllNATServers() {
		if !pick(n.Address.Is4(), in.Rules.IPv4, in.Rules.IPv6) {
			continue
		}
		list := pick(n.Address.Is4(), &four, &six)
		if in.Paths[n.Address].Local {
			list = pick(n.Address.Is4(), &own4, &own6)
		}
		*list = append(*list, n)
	}
	cfg := in.Config
	if len(own4)+len(four) > 0 {
		s.Addrs = append(s.Addrs, routing.Addr{Link: cfg.TUN, Prefix: netip.PrefixFrom(DeviceAddress, 32)})
		s.Loose = in.looseLinks(s.Loose, four)
		s.Sysctls = append(s.Sysctls, deviceReplySysctls(cfg.TUN, own4)...)
		s.Routes = append(s.Routes, replyRoutes(in, netip.IPv4Unspecified(), len(own4) > 0)...)
	}
	if len(own6)+len(six) > 0 {
		s.Routes = append(s.Routes, replyRoutes(in, netip.IPv6Unspecified(), len(own6) > 0)...)
	}
	if len(own4)+len(four)+len(own6)+len(six) > 0 {
		s.Tables[cfg.ReplyTable()] = fmt.Sprintf("set another table in [director] (this one is table = %d plus %d)",
			cfg.Table, cfg.ReplyTable()-cfg.Table)
	}
	s.Sysctls = append(s.Sysctls, in.redirectSysctls(four)...)
	s.Rules = append(s.Rules, replyRules(in, false, own4, four)...)
	s.Rules = append(s.Rules, replyRules(in, true, own6, six)...)
}

func pick[T any](which bool, a, b T) T {
	if which {
		return a
	}
	return b
}

// deviceReplySysctls returns the sysctls of the device for VS/NAT over IPv4, with own, servers that are addresses of
// this host. The device accepts packets from these, which have been written back, and packets from and to loopback
// addresses. Without own the first of them saves time: the kernel looks up no route to the source of what is written
// back, which it checked when the packet came in (fib_validate_source in net/ipv4/fib_frontend.c). IPv6 needs no such
// setting.
func deviceReplySysctls(device string, own []NATServer) []routing.Sysctl {
	conf := "net/ipv4/conf/" + device
	all := []routing.Sysctl{{Key: conf + "/accept_local", Value: "1", Cosmetic: len(own) == 0}}
	if slices.ContainsFunc(own, func(n NATServer) bool { return n.Address.IsLoopback() }) {
		all = append(all, routing.Sysctl{Key: conf + "/route_localnet", Value: "1"})
	}
	return all
}

// redirectSysctls returns the sysctls that keep the kernel from sending ICMP redirects to servers. A server whose other
// traffic leaves by the device by which it came would learn a way past the director, and answer clients there. IPv6 has
// no such setting.
func (in *Inputs) redirectSysctls(servers []NATServer) (all []routing.Sysctl) {
	links := map[string]bool{}
	for _, n := range servers {
		if name := in.Paths[n.Address].Link; name != "" {
			links[name] = true
		}
	}
	if len(links) > 0 {
		links["all"] = true // the kernel sends redirects if either allows it
	}
	for _, name := range slices.Sorted(maps.Keys(links)) {
		all = append(all, routing.Sysctl{Key: "net/ipv4/conf/" + name + "/send_redirects", Value: "0"})
	}
	return all
}

// replyRoutes returns the routes of the reply table in a family: the default route, and one for the time after a kill.
// A kill removes the device with its route, and the rules stay. Without the second route replies would reach the
// clients as they are, and the clients' RSTs would end connections that the next start could go on with.
//
// With own, servers of this host use the table, and see no other: the MTU is then that of the default route to the
// clients, and not the device's.
func replyRoutes(in *Inputs, family netip.Addr, own bool) []routing.Route {
	dst, table := netip.PrefixFrom(family, 0), in.Config.ReplyTable()
	r := routing.Route{Dst: dst, Link: in.Config.TUN, Table: table}
	if own {
		r.MTU = in.Paths.mtu(pick(family.Is4(), documentation4, documentation6))
	}
	return []routing.Route{r, {Dst: dst, Blackhole: true, Metric: lastResort, Table: table}}
}

// replyRules returns the rules of a family for servers on this host and for the others.
func replyRules(in *Inputs, ipv6 bool, own, servers []NATServer) []routing.Rule {
	if len(own)+len(servers) == 0 {
		return nil
	}
	b := ruleBuilder{in: in, ipv6: ipv6}
	tun := in.Config.TUN
	b.add(endPriority, routing.Rule{In: tun})
	b.skip(skipPriority, routing.Rule{In: routing.Loopback})
	b.skip(skipPriority, routing.Rule{In: tun})
	b.own(own)
	b.lists(servers)
	return b.rules
}

// ruleBuilder makes the rules of a family.
type ruleBuilder struct {
	in    *Inputs
	ipv6  bool
	rules []routing.Rule
}

func (b *ruleBuilder) add(priority int, r routing.Rule) {
	r.IPv6, r.Priority = b.ipv6, priority
	b.rules = append(b.rules, r)
}

func (b *ruleBuilder) skip(priority int, r routing.Rule) { r.Goto = endPriority; b.add(priority, r) }

func (b *ruleBuilder) reply(priority int, r routing.Rule) {
	r.Table = b.in.Config.ReplyTable()
	b.add(priority, r)
}

// own adds the rules for servers of this host. The kernel sends no fragments that have to be routed.
func (b *ruleBuilder) own(servers []NATServer) {
	seen := map[routing.Rule]bool{}
	for _, n := range servers {
		r := routing.Rule{In: routing.Loopback, From: netip.PrefixFrom(n.Address, n.Address.BitLen())}
		replies, icmp := r, r
		replies.Protocol, replies.SrcPorts, icmp.Protocol = n.Protocol, rulePorts(n.Ports), b.icmp()
		for _, r := range []routing.Rule{replies, icmp} {
			if !seen[r] {
				seen[r] = true
				b.reply(ownPriority, r)
			}
		}
	}
}

func (b *ruleBuilder) icmp() uint8 { return pick[uint8](b.ipv6, packet.ProtoICMPv6, packet.ProtoICMP) }

// rulePorts returns p as a rule selects it. For port 65535 alone it returns the zero value: all packets.
func rulePorts(p config.PortRange) routing.PortRange {
	if p == balancer.EveryPort {
		return routing.PortRange{First: 1, Last: routing.MaxRulePort}
	}
	if p.First > routing.MaxRulePort {
		return routing.PortRange{}
	}
	return routing.PortRange{First: p.First, Last: min(p.Last, routing.MaxRulePort)}
}

// lists adds the rules for servers, which are on other hosts.
func (b *ruleBuilder) lists(servers []NATServer) {
	devices, addrs := map[string]bool{}, map[uint8][]netip.Addr{} // of all servers of a protocol
	var ports []NATServer                                         // without an address
	byPorts := map[NATServer][]netip.Addr{}
	for _, n := range servers {
		if name := b.in.Paths[n.Address].Link; name != "" {
			devices[name] = true
		}
		addrs[n.Protocol] = append(addrs[n.Protocol], n.Address)
		key := NATServer{Protocol: n.Protocol, Ports: n.Ports}
		if byPorts[key] == nil {
			ports = append(ports, key)
		}
		byPorts[key] = append(byPorts[key], n.Address)
	}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		b.reply(replyPriority, routing.Rule{In: name, Protocol: b.icmp()})
	}
	if b.ported(ports, byPorts) {
		b.skip(restPriority, routing.Rule{})
	}
	for _, protocol := range slices.Sorted(maps.Keys(addrs)) {
		b.skip(portedPriority, routing.Rule{Protocol: protocol,
			SrcPorts: routing.PortRange{First: 1, Last: routing.MaxRulePort}})
		for _, p := range prefixes(addrs[protocol]) {
			b.reply(portlessPriority, routing.Rule{From: p, Protocol: protocol})
		}
	}
}

// ported adds the rules for packets with a port, which is one of keys. It reports whether there are lists with a
// priority of their own. Several keys may share such a list.
func (b *ruleBuilder) ported(keys []NATServer, addrs map[NATServer][]netip.Addr) (long bool) {
	var many []NATServer
	for _, key := range keys {
		if len(prefixes(addrs[key])) > shortList {
			many = append(many, key)
		}
	}
	for _, key := range keys {
		priority, r := replyPriority, routing.Rule{Protocol: key.Protocol, SrcPorts: rulePorts(key.Ports)}
		if r.SrcPorts == (routing.PortRange{}) {
			continue
		}
		if i := slices.Index(many, key); i >= 0 {
			priority = firstListPriority + i*lists/max(len(many), lists)
			gate := r
			gate.Goto = priority
			b.add(listedPriority, gate)
		}
		for _, p := range prefixes(addrs[key]) {
			r.From = p
			b.reply(priority, r)
		}
	}
	return len(many) > 0
}

// prefixes returns prefixes that have addrs, which are of one family: exactly these addresses if maxPrefixes are enough
// for them, else the longest prefixes of one length that are few enough.
func prefixes(addrs []netip.Addr) []netip.Prefix {
	for bits := addrs[0].BitLen(); ; bits-- {
		var b netipx.IPSetBuilder
		for _, a := range addrs {
			b.AddPrefix(netip.PrefixFrom(a, bits).Masked())
		}
		set, err := b.IPSet()
		if list := set.Prefixes(); err != nil || len(list) <= maxPrefixes {
			return list
		}
	}
}

package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/doctor/nft"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// pathCheck describes packets that the firewall must accept.
type pathCheck struct {
	name    string // for the report: "clients' requests for 198.51.100.80 port 80"
	spec    nft.PacketSpec
	hooks   []nft.Hook
	grade   Severity
	why     string
	nft     string // the match of a rule of nftables that accepts them …
	xtables string // … and of iptables
}

// firewall examines whether the firewall accepts the packets of all checks. legacy are the relevant chains of
// iptables-legacy.
func (res *result) firewall(checks []pathCheck, legacy ...string) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	index := map[string]int{}
	for _, d := range devices {
		index[d.Name] = d.Index
	}
	rules, err := nft.Read()
	switch {
	case errors.Is(err, nft.ErrNoTables):
	case res.failed(err):
		return
	default:
		var reported []*nft.Chain
		for _, c := range checks {
			c.spec.Index = index
			res.evaluate(rules, c, &reported)
		}
	}
	res.legacyFirewall(legacy)
	if len(res.findings) == 0 {
		var names []string
		for _, c := range checks {
			if !slices.Contains(names, c.name) {
				names = append(names, c.name)
			}
		}
		res.fine("accepts: %s", brief(names))
	}
}

// evaluate examines one pathCheck. Each chain is reported once.
func (res *result) evaluate(rules *nft.Ruleset, c pathCheck, reported *[]*nft.Chain) {
	for _, hook := range c.hooks {
		spec := c.spec
		switch hook {
		case nft.Prerouting, nft.Input:
			spec.OIF = ""
		case nft.Output, nft.Postrouting:
			spec.IIF = ""
		}
		v := rules.Evaluate(&spec, hook)
		c.spec.State = spec.State
		if v.Drops == nft.No || slices.Contains(*reported, v.Chain) {
			continue
		}
		if v.Drops == nft.Maybe && !v.Chain.PolicyDrop {
			continue // a rate limit or a list of blocked addresses: most firewalls have one
		}
		*reported = append(*reported, v.Chain)
		verb, grade := "drops", c.grade
		if v.Drops == nft.Maybe {
			verb, grade = "may drop (some of its conditions are not known here)", Warning
		}
		res.find(Finding{Severity: grade,
			Where: fmt.Sprintf("nftables chain %s %s %s", v.Chain.Family, v.Chain.Table, v.Chain.Name),
			What:  fmt.Sprintf("the firewall %s %s", verb, c.name), Why: c.why, Fix: accept(v.Chain, c),
			Remarks: []string{"add the rule to the firewall's own files too"}})
		return
	}
}

// accept returns the command that makes a chain accept the packets of a pathCheck.
func accept(c *nft.Chain, check pathCheck) string {
	if c.Family != "inet" && slices.Contains([]string{"FORWARD", "INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"},
		c.Name) {
		command := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[c.Family]
		if c.Table != "filter" {
			command += " -t " + c.Table
		}
		return fmt.Sprintf("%s -I %s %s -j ACCEPT", command, c.Name, check.xtables)
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s accept", c.Family, c.Table, c.Name, check.nft)
}

// legacyFirewall examines iptables-legacy by its own program: no library reads its rules without cgo.
func (res *result) legacyFirewall(chains []string) {
	for _, family := range []struct{ names, program string }{
		{"/proc/net/ip_tables_names", "iptables-legacy"}, {"/proc/net/ip6_tables_names", "ip6tables-legacy"},
	} {
		text, err := os.ReadFile(family.names)
		if err != nil || !slices.Contains(strings.Fields(string(text)), "filter") {
			continue
		}
		for _, chain := range chains {
			name, device, _ := strings.Cut(chain, " ")
			rules, err := exec.Command(family.program, "-S", name).Output()
			if err != nil {
				res.skip("chain %s of %s: %v", name, family.program, err)
				continue
			}
			if dropsAll(string(rules), device) {
				res.find(Finding{Severity: Warning, Where: fmt.Sprintf("%s chain %s", family.program, name),
					What: "its policy is DROP, and none of its rules accepts packets with " + device,
					Why:  "packets of the VIPs are dropped, unless a chain that it jumps to accepts them",
					Fix:  fmt.Sprintf("%s -I %s %s -j ACCEPT", family.program, name, device)})
			}
		}
	}
}

// dropsAll reports whether a chain, as iptables -S prints it, has the policy DROP and no rule that accepts all packets,
// or all packets of a device ("-o vs0").
func dropsAll(rules, device string) bool {
	drops := false
	for line := range strings.Lines(rules) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 3 && fields[0] == "-P":
			drops = fields[2] == "DROP"
		case len(fields) == 4 && fields[2] == "-j" && fields[3] == "ACCEPT", strings.Contains(line, device+" ") &&
			strings.Contains(line, "-j ACCEPT"):
			return false
		}
	}
	return drops
}

// anyClient is the source address of packets of unknown source, by whether it is IPv6.
var anyClient = map[bool]netip.Addr{
	false: netip.MustParseAddr("192.0.2.1"), true: netip.MustParseAddr("2001:db8::1"),
}

// request returns the beginning of a packet of a protocol from src to a port of dst.
func request(src netip.Addr, protocol uint8, dst netip.AddrPort) []byte {
	b := newPacket(src, dst.Addr(), protocol, packet.TCPHeaderLen)
	t := packet.TCP(transport(b))
	t.SetSrcPort(1024)
	t.SetDstPort(dst.Port())
	t.SetHeaderLen(packet.TCPHeaderLen)
	t.SetFlags(packet.FlagSYN)
	return b
}

// protocolNumbers are the protocols of services.
var protocolNumbers = map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "sctp": packet.ProtoSCTP}

// directorFirewall examines whether the firewall lets clients' packets through to the director's device, and those of
// VS/NAT out of it.
func (res *result) directorFirewall(d *Director) {
	tun := d.Config.TUN
	all, err := forwardChecks(d.Config, lookup)
	if res.failed(err) {
		return
	}
	legacy := []string{"FORWARD -o " + tun}
	for _, c := range all {
		switch {
		case c.spec.IIF == tun:
			legacy = append(legacy, "FORWARD -i "+tun)
		case slices.Contains(c.hooks, nft.Output):
			legacy = append(legacy, "OUTPUT "+c.xtables)
		}
	}
	all = append(append(all, d.errorChecks()...), portChecks(&d.Config.WireGuard, lookup)...)
	res.firewall(all, legacy...)
}

// forwardChecks returns the packets that the kernel forwards into the director's device and out of it. With VS/TUN and
// VS/DR the director's host sees only one direction of a connection: its connection tracking marks all TCP packets
// after a client's SYN as invalid (net/netfilter/nf_conntrack_proto_tcp.c, sSS and ACK). With VS/NAT it sees both.
func forwardChecks(cfg *config.Director,
	lookup func(netip.Addr) (query.Path, bool, error)) (all []pathCheck, err error) {
	nat := map[bool]bool{} // the families that have a check for VS/NAT
	for i := range cfg.Services {
		s := &cfg.Services[i]
		direct := slices.ContainsFunc(ends(s), func(r config.RealserverRef) bool { return r.Forward != method.NAT })
		for _, vip := range s.VIPs {
			route, ok, err := lookup(outside[vip.Is6()])
			if err != nil {
				return nil, err
			}
			c := pathCheck{
				name: fmt.Sprintf("clients' packets for %s", vip), grade: Error,
				why:   "these packets never get to the director",
				hooks: []nft.Hook{nft.Prerouting, nft.Forward, nft.Postrouting},
				spec: nft.PacketSpec{Packet: request(anyClient[vip.Is6()], protocolNumbers[s.Protocol],
					netip.AddrPortFrom(vip, s.Ports[0].First)),
					UnknownSource: true, OIF: cfg.TUN, State: nft.New, ReversePath: true},
				nft: fmt.Sprintf("oifname %q", cfg.TUN), xtables: "-o " + cfg.TUN,
			}
			if ok {
				c.spec.IIF = route.Link
			}
			all = append(all, c)
			if s.Protocol == "tcp" && direct {
				c.spec.State = nft.Invalid
				c.name = fmt.Sprintf("packets after a client's SYN to %s", vip)
				c.why = "connection tracking sees no answers here and takes these packets for invalid: connections hang"
				all = append(all, c)
			}
		}
		for _, r := range ends(s) {
			six := r.Address.Is6()
			if r.Forward != method.NAT || nat[six] {
				continue
			}
			route, ok, err := lookup(r.Address)
			if err != nil {
				return nil, err
			}
			if !ok || route.Local {
				continue
			}
			nat[six] = true
			all = append(all, natChecks(cfg.TUN, s, &r, route.Link)...)
		}
	}
	return all, nil
}

// natChecks returns the translated requests to r, a realserver of s behind the device link: those that leave by a
// socket, and large ones, which come out of the director's device tun, as replies do. The route to their source does
// not lead back into tun.
func natChecks(tun string, s *config.Service, r *config.RealserverRef, link string) []pathCheck {
	p := request(anyClient[r.Address.Is6()], protocolNumbers[s.Protocol], s.Endpoint(r))
	return []pathCheck{{
		name: "requests to realservers of nat", grade: Error,
		why:   "these packets never get to the realservers",
		hooks: []nft.Hook{nft.Output, nft.Postrouting},
		spec:  nft.PacketSpec{Packet: p, UnknownSource: true, OIF: link, State: nft.New},
		nft:   fmt.Sprintf("oifname %q", link), xtables: "-o " + link,
	}, {
		name: fmt.Sprintf("replies and large requests of nat that come out of %s", tun), grade: Error,
		why:   "these packets never get to clients and realservers",
		hooks: []nft.Hook{nft.Prerouting, nft.Forward, nft.Postrouting},
		spec:  nft.PacketSpec{Packet: p, UnknownSource: true, IIF: tun, OIF: link, State: nft.New},
		nft:   fmt.Sprintf("iifname %q", tun), xtables: "-i " + tun,
	}}
}

// errorChecks returns the ICMP errors about tunnel packets, from which the director learns the paths' MTUs.
func (d *Director) errorChecks() (all []pathCheck) {
	list, _ := realservers(d.Config)
	seen, tunnels := map[bool]bool{}, tunnelEnds(d.Config)
	for _, a := range list {
		if !tunnels[a] {
			continue
		}
		route, ok, err := query.Lookup(a, netip.Addr{})
		if seen[a.Is6()] || err != nil || !ok || !route.Source.IsValid() {
			continue
		}
		seen[a.Is6()] = true
		protocol, f := uint8(packet.ProtoICMP), packet.ICMPFields{Type: packet.ICMPUnreachable,
			Code: packet.ICMPCodeFragNeeded}
		c := pathCheck{name: "ICMP errors about tunnel packets", grade: Warning,
			why: "the director does not learn the MTU of paths to realservers: uploads hang if one is less than this " +
				"host's MTU",
			hooks: []nft.Hook{nft.Prerouting, nft.Input},
			nft:   "icmp type destination-unreachable", xtables: "-p icmp --icmp-type fragmentation-needed"}
		if a.Is6() {
			protocol, f = packet.ProtoICMPv6, packet.ICMPFields{Type: packet.ICMPv6TooBig}
			c.nft, c.xtables = "icmpv6 type packet-too-big", "-p icmpv6 --icmpv6-type packet-too-big"
		}
		b := newPacket(anyClient[a.Is6()], route.Source, protocol, packet.TCPHeaderLen)
		packet.ICMP(transport(b)).Encode(f)
		c.spec = nft.PacketSpec{Packet: b, UnknownSource: true, IIF: route.Link, State: nft.Related, ReversePath: true}
		all = append(all, c)
	}
	return all
}

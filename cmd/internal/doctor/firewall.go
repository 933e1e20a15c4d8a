package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"vstun/encap/packet"
	"vstun/routing"
)

// crossing is a kind of packets that must come through the firewall.
type crossing struct {
	name    string // for people: "clients' requests for 198.51.100.80 port 80"
	suspect suspect
	hooks   []nftables.ChainHook
	grade   Severity
	why     string
	nft     string // what lets them pass, as a rule of nftables …
	xtables string // … and of iptables
}

// firewall examines whether crossings come through; legacy are the chains that matter of an iptables that is not
// nftables.
func (e *exam) firewall(crossings []crossing, legacy ...string) {
	devices, err := routing.Devices()
	if e.failed(err) {
		return
	}
	index := map[string]int{}
	for _, d := range devices {
		index[d.Name] = d.Index
	}
	r, err := readRules()
	switch {
	case errors.Is(err, errNoTables):
	case e.failed(err):
		return
	default:
		var reported []*nftables.Chain
		for _, c := range crossings {
			c.suspect.index = index
			e.cross(r, c, &reported)
		}
	}
	e.legacyFirewall(legacy)
	if len(e.findings) == 0 {
		var names []string
		for _, c := range crossings {
			if !slices.Contains(names, c.name) {
				names = append(names, c.name)
			}
		}
		e.fine("lets pass: %s", brief(names))
	}
}

// cross examines one crossing. A chain is reported once for what it does to packets of the same kind.
func (e *exam) cross(r *rules, c crossing, reported *[]*nftables.Chain) {
	for _, hook := range c.hooks {
		s := c.suspect
		switch hook {
		case *nftables.ChainHookPrerouting, *nftables.ChainHookInput:
			s.oif = ""
		case *nftables.ChainHookOutput, *nftables.ChainHookPostrouting:
			s.iif = ""
		}
		f := r.judge(&s, hook)
		if f.drops == no || slices.Contains(*reported, f.where) {
			continue
		}
		policy := f.where.Policy != nil && *f.where.Policy == nftables.ChainPolicyDrop
		if f.drops == perhaps && !policy {
			continue // a bound on a rate, a list of bad addresses: everybody has some
		}
		*reported = append(*reported, f.where)
		verb, grade := "drops", c.grade
		if f.drops == perhaps {
			verb, grade = "may drop (its conditions can't all be judged from here)", Warning
		}
		e.find(Finding{Severity: grade, Where: chainName(f.where),
			What: fmt.Sprintf("the firewall %s %s", verb, c.name), Why: c.why, Fix: accept(f.where, c),
			Remarks: []string{"add the rule to the firewall's own files too"}})
		return
	}
}

// chainName is a chain as nft(8) names it.
func chainName(c *nftables.Chain) string {
	return fmt.Sprintf("nftables chain %s %s %s", familyName(c), c.Table.Name, c.Name)
}

func familyName(c *nftables.Chain) string {
	switch c.Table.Family {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// accept is the command that lets the crossing pass the chain.
func accept(c *nftables.Chain, x crossing) string {
	family := familyName(c)
	if family != "inet" && slices.Contains([]string{"FORWARD", "INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"},
		c.Name) {
		command := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[family]
		if c.Table.Name != "filter" {
			command += " -t " + c.Table.Name
		}
		return fmt.Sprintf("%s -I %s %s -j ACCEPT", command, c.Name, x.xtables)
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s accept", family, c.Table.Name, c.Name, x.nft)
}

// legacyFirewall examines the iptables that is not nftables, by its program: it has no other reader.
func (e *exam) legacyFirewall(chains []string) {
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
				e.skip("chain %s of %s: %v", name, family.program, err)
				continue
			}
			if dropsAll(string(rules), device) {
				e.find(Finding{Severity: Warning, Where: fmt.Sprintf("%s chain %s", family.program, name),
					What: "its policy is DROP, and no rule of it accepts what is for " + device,
					Why:  "packets of the VIPs are dropped, unless a chain that it jumps to accepts them",
					Fix:  fmt.Sprintf("%s -I %s %s -j ACCEPT", family.program, name, device)})
			}
		}
	}
}

// dropsAll reports whether a chain as iptables -S prints it drops what no rule accepts, and no rule accepts what is for
// a device ("-o vs0"), or all.
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

// anybody stands for a client in packets whose source is not known.
var anybody = map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.1"), true: netip.MustParseAddr("2001:db8::1")}

// request is the front of a client's packet to a VIP.
func request(vip netip.Addr, protocol uint8, port uint16) []byte {
	to := netip.AddrPortFrom(vip, port)
	b := segment(netip.AddrPortFrom(anybody[vip.Is6()], 1024), to, 0, 0, packet.FlagSYN)
	if vip.Is4() {
		packet.IPv4(b).SetProtocol(protocol)
	} else {
		packet.IPv6(b).SetNextHeader(protocol)
	}
	return b
}

// protocolNumbers are those of services.
var protocolNumbers = map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "sctp": packet.ProtoSCTP}

// directorFirewall examines whether the firewall lets clients' packets through to the director's device. The director
// sees only one direction: for connection tracking, all that a client sends over TCP behind his SYN is invalid
// (net/netfilter/nf_conntrack_proto_tcp.c, sSS and ACK).
func (e *exam) directorFirewall(d *Director) {
	var all []crossing
	for _, s := range d.Config.Services {
		for _, vip := range s.VIPs {
			hop, ok, err := routing.Lookup(outside[vip.Is6()], netip.Addr{})
			if e.failed(err) {
				return
			}
			c := crossing{
				name: fmt.Sprintf("clients' packets for %s", vip), grade: Error, why: "they never get to the director",
				hooks: []nftables.ChainHook{*nftables.ChainHookPrerouting, *nftables.ChainHookForward,
					*nftables.ChainHookPostrouting},
				suspect: suspect{packet: request(vip, protocolNumbers[s.Protocol], s.Ports[0].First), anybody: true,
					oif: d.Config.TUN, state: expr.CtStateBitNEW, back: true},
				nft: fmt.Sprintf("oifname %q", d.Config.TUN), xtables: "-o " + d.Config.TUN,
			}
			if ok {
				c.suspect.iif = hop.Link
			}
			all = append(all, c)
			if s.Protocol == "tcp" {
				c.suspect.state = expr.CtStateBitINVALID
				c.name = fmt.Sprintf("what follows a client's SYN to %s", vip)
				c.why = "connection tracking sees no answers here and takes it for invalid: connections hang"
				all = append(all, c)
			}
		}
	}
	e.firewall(append(all, d.errorCrossings()...), "FORWARD -o "+d.Config.TUN)
}

// errorCrossings are the ICMP errors about tunnel packets, by which the director learns what the ways to the
// realservers take.
func (d *Director) errorCrossings() (all []crossing) {
	list, _ := realservers(d.Config)
	seen := map[bool]bool{}
	for _, a := range list {
		hop, ok, err := routing.Lookup(a, netip.Addr{})
		if seen[a.Is6()] || err != nil || !ok || !hop.Source.IsValid() {
			continue
		}
		seen[a.Is6()] = true
		c := crossing{name: "ICMP errors about tunnel packets", grade: Warning,
			why: "the director does not learn what the ways to the realservers take: uploads hang where that is " +
				"less than this host's MTU",
			hooks: []nftables.ChainHook{*nftables.ChainHookPrerouting, *nftables.ChainHookInput},
			suspect: suspect{packet: request(hop.Source, packet.ProtoICMP, 0), anybody: true, iif: hop.Link,
				state: expr.CtStateBitRELATED, back: true},
			nft: "icmp type destination-unreachable", xtables: "-p icmp --icmp-type fragmentation-needed"}
		t := packet.ICMP(c.suspect.packet[headerLen(a):])
		t.Encode(packet.ICMPFields{Type: packet.ICMPUnreachable, Code: packet.ICMPCodeFragNeeded})
		if a.Is6() {
			c.nft, c.xtables = "icmpv6 type packet-too-big", "-p icmpv6 --icmpv6-type packet-too-big"
			packet.IPv6(c.suspect.packet).SetNextHeader(packet.ProtoICMPv6)
			t.Encode(packet.ICMPFields{Type: packet.ICMPv6TooBig})
		}
		all = append(all, c)
	}
	return all
}

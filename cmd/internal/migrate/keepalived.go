package migrate

import (
	"encoding/binary"
	"errors"
	"iter"
	"math/big"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options are the settings of an import.
type Options struct {
	ConfigID string // keepalived's, for lines that begin with @
	Include  bool   // keepalived's include may read files
}

// Keepalived imports a keepalived.conf. file is its name in messages; paths of included files begin in its directory.
// The syntax is keepalived.conf(5)'s, the defaults are keepalived 2's.
func Keepalived(file string, text []byte, options Options) (*Import, error) {
	p := &plan{program: "keepalived"}
	r := &lineReader{id: options.ConfigID, include: options.Include, plan: p,
		defs: map[string]string{"_INSTANCE": options.ConfigID, "_HASH": "#", "_BANG": "!"}}
	if err := r.file(file, filepath.Dir(file), text, 0); err != nil {
		return nil, err
	}
	root, err := p.parseBlocks(r.lines)
	if err != nil {
		return nil, err
	}
	k := &keepalived{plan: p, root: root, groups: map[string]*statement{}, files: map[string]*trackFile{},
		include: options.Include}
	k.read()
	if p.tooMuch != nil {
		return nil, p.tooMuch
	}
	return p.finish(file)
}

// keepalived reads a tree of statements.
type keepalived struct {
	*plan
	root   *statement
	groups map[string]*statement
	files  map[string]*trackFile
	ssl    *clientCertificate // nil: none

	include bool // included files may be read
}

// Definitions, to which other blocks refer, are read first. Blocks with a counterpart follow. All other blocks become
// notes.
var (
	definitions = map[string]func(*keepalived, *statement){
		"virtual_server_group": (*keepalived).defineGroup,
		"track_file":           (*keepalived).defineFile,
		"vrrp_track_file":      (*keepalived).defineFile,
		"SSL":                  (*keepalived).defineSSL,
	}
	blocks = map[string]func(*keepalived, *statement){
		"virtual_server": (*keepalived).virtualServer,
		"global_defs":    (*keepalived).globals,
	}
)

const noFileCheck = "no FILE_CHECK of a real_server has it: it is for VRRP, which stays with keepalived"

// elsewhere has the keywords, by prefix, of blocks without a counterpart, and the remedy for each.
var elsewhere = []struct{ prefix, what string }{
	{"vrrp_instance", "no counterpart: leave VRRP to keepalived, without its virtual_server blocks"},
	{"vrrp_track_file", noFileCheck},
	{"vrrp_", "has no counterpart: it is for VRRP, which stays with keepalived"},
	{"static_ipaddress", "set up the host's addresses with its own network configuration"},
	{"static_route", "set up the host's routes with its own network configuration"},
	{"static_rule", "set up the host's rules with its own network configuration"},
	{"static_", "has no counterpart: it is for VRRP, which stays with keepalived"},
	{"garp_group", "has no counterpart: it is for VRRP, which stays with keepalived"},
	{"linkbeat_", "has no counterpart: it is for VRRP, which stays with keepalived"},
	{"interface_up_down_delays", "has no counterpart: it is for VRRP, which stays with keepalived"},
	{"track_file", noFileCheck},
	{"real_server", "is outside of a virtual_server: look for a } too many above"},
	{"bfd_instance", "no counterpart: let a daemon such as bird speak BFD, or use checks with a short interval"},
	{"net_namespace", "start the director in its namespace: ip netns exec NAME director run"},
	{"namespace_with_ipsets", "has no counterpart and needs none: leave it out"},
	{"instance", "has no counterpart and needs none: each director.toml names its own control socket and device"},
	{"use_pid_dir", "has no counterpart and needs none: the control socket reports whether a director runs"},
}

func (k *keepalived) read() {
	for _, s := range k.root.block {
		if define, ok := definitions[s.name()]; ok {
			define(k, s)
		}
	}
	for _, s := range k.root.block {
		_, defined := definitions[s.name()]
		switch read, ok := blocks[s.name()]; {
		case ok:
			read(k, s)
		case !defined:
			k.other(s)
		}
	}
	for _, s := range k.root.block {
		if f := k.files[s.arg(1)]; f != nil && f.of == s && !f.used {
			k.other(s)
		}
	}
	k.checkVRRPAddresses()
}

func (k *keepalived) defineGroup(s *statement) {
	if _, twice := k.groups[s.arg(1)]; twice {
		k.note(s.Place, "virtual_server_group %s: is there twice: the last one is taken: rename one", s.arg(1))
	}
	k.groups[s.arg(1)] = s
}

// other notes a block that has no counterpart.
func (k *keepalived) other(s *statement) {
	title := s.name()
	if s.arg(1) != "" && s.hasBlock {
		title += " " + s.arg(1)
	}
	for _, e := range elsewhere {
		if strings.HasPrefix(s.name(), e.prefix) {
			k.note(s.Place, "%s: %s", title, e.what)
			return
		}
	}
	k.note(s.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what it does", title)
}

// maxGlobals is how many keywords of global_defs a note names.
const maxGlobals = 100

// globals reads global_defs. The timeouts of connections and mail have counterparts.
func (k *keepalived) globals(block *statement) {
	var others []string
	said := map[string]bool{}
	for _, s := range block.block {
		switch name := s.name(); name {
		case "lvs_timeouts":
			for i := 1; i+1 < len(s.words); i += 2 {
				k.timeout(s.Place, s.words[i], s.words[i+1])
			}
		case "lvs_sync_daemon":
			k.note(s.Place, "lvs_sync_daemon: connections are not synchronised between directors: a failover ends "+
				"those that another realserver gets")
		default:
			if mailStatements[name] != nil {
				k.mailStatement(s)
				continue
			}
			if !said[name] {
				said[name] = true
				others = append(others, name)
			}
		}
	}
	if n := len(others) - maxGlobals; n > 0 {
		others = append(others[:maxGlobals], strconv.Itoa(n)+" more")
	}
	if len(others) > 0 {
		k.note(block.Place, "global_defs: %s: no counterpart, and none needed", strings.Join(others, ", "))
	}
}

// timeout sets a timeout of lvs_timeouts or of ipvsadm --set. 0 leaves it unchanged.
func (p *plan) timeout(at Place, name, seconds string) {
	n, err := strconv.ParseUint(seconds, 10, 32)
	to, known := map[string]*time.Duration{"tcp": &p.timeouts.tcp, "tcpfin": &p.timeouts.tcpFin,
		"tcp_fin": &p.timeouts.tcpFin, "udp": &p.timeouts.udp}[name]
	switch {
	case !known:
		p.note(at, "timeout %s: unknown: left out: those of tcp, tcp_fin, tcp_syn, udp and sctp stand in [connections]",
			name)
	case err != nil || n > uint64(maxTimeout/time.Second):
		p.note(at, "timeout %s %q: left out: want 1 to 2678400 seconds", name, seconds)
	case n > 0:
		*to = time.Duration(n) * time.Second
	}
}

// checkVRRPAddresses warns of VIPs that VRRP would add to the director's host itself.
func (k *keepalived) checkVRRPAddresses() {
	vips := map[netip.Addr]bool{}
	for _, s := range k.services {
		for _, vip := range s.vips {
			vips[vip] = true
		}
	}
	for _, vrrp := range k.root.block {
		if vrrp.name() != "vrrp_instance" {
			continue
		}
		for _, list := range vrrp.block {
			if list.name() != "virtual_ipaddress" && list.name() != "virtual_ipaddress_excluded" {
				continue
			}
			for _, s := range list.block {
				address, _, _ := strings.Cut(s.name(), "/")
				if a, err := netip.ParseAddr(address); err == nil && vips[a] {
					k.note(s.Place, "%s %s: is a VIP, which the director's host must not own: let VRRP move an "+
						"address of the directors' own, and route the VIP to that", list.name(), a)
				}
			}
		}
	}
}

// virtualServer reads a virtual_server: one service, or one for each set of ports of a group.
func (k *keepalived) virtualServer(block *statement) {
	source := "virtual_server " + strings.TrimSpace(block.arg(1)+" "+block.arg(2))
	base := service{Place: block.Place, source: printable(source)}
	switch block.arg(1) {
	case "fwmark":
		s := base
		s.ports = []uint16{0}
		s.want = "fwmark-" + block.arg(2)
		k.fill(&s, block, false)
		if block.find("protocol") == nil {
			s.protocol = "tcp" // a guess: a mark has no protocol
		}
		k.addMark(&s, block.Place)
	case "group":
		group, ok := k.groups[block.arg(2)]
		if !ok {
			k.note(block.Place, "%s: there is no such virtual_server_group: left out: write the group, or its "+
				"addresses", source)
			return
		}
		parts := k.group(group)
		size := block.size()
		every := slices.ContainsFunc(parts, func(p groupPart) bool { return p.ports[0] == 0 })
		replaces := replacesPorts(block)
		for _, part := range parts {
			for s := range k.divide(block.Place, part, replaces) {
				if !k.spend(block.Place, size*(1+(len(s.vips)+len(s.ports))/1024)) {
					return
				}
				s.Place, s.source, s.want = base.Place, base.source, block.arg(2)+s.want
				k.fill(s, block, every)
				k.services = append(k.services, s)
			}
		}
	default:
		vip, err := unicast(block.arg(1))
		if err != nil {
			k.note(block.Place, "%s: %v: left out: want an address that the realservers can have", source, err)
			return
		}
		port, ok := k.port(block.Place, source, block.arg(2))
		if !ok {
			return
		}
		s := base
		s.vips, s.ports = []netip.Addr{vip}, []uint16{port}
		k.fill(&s, block, port == 0)
		k.services = append(k.services, &s)
	}
}

// addMark keeps the service of a firewall mark as a comment, which the user can complete.
func (p *plan) addMark(s *service, at Place) {
	p.note(at, "%s: only the firewall's rules know a mark's addresses and ports: left out, but as a comment: give "+
		"it the VIPs and ports that get the mark (iptables -t mangle -S, nft list ruleset)", s.source)
	p.marks = append(p.marks, s)
}

// port reads an optional port. A missing one is 0, every port.
func (k *keepalived) port(at Place, what, text string) (uint16, bool) {
	if text == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		k.note(at, "%s: %q is no port: left out: want 0 to 65535", what, text)
	}
	return uint16(n), err == nil
}

// groupPart is the set of a group's addresses with the same ports.
type groupPart struct {
	vips  []netip.Addr
	ports []uint16
}

var errManyAddresses = errors.New("the groups make too many services: write fewer addresses and ports")

// maxGroup is the maximum number of addresses in one line of a group: an IPv4 /20.
const maxGroup = 4096

func (k *keepalived) group(block *statement) (parts []groupPart) {
	var order []netip.Addr
	ports := map[netip.Addr][]uint16{}
	known := map[netip.AddrPort]bool{}
	for _, s := range block.block {
		if !k.spend(s.Place, addressWork) {
			return nil
		}
		if s.name() == "fwmark" {
			k.note(s.Place, "fwmark %s of group %s: only the firewall's rules know a mark's addresses: left out: "+
				"write the addresses that get it", s.arg(1), block.arg(1))
			continue
		}
		first, last, ok := addressRange(s.name())
		port, portOK := k.port(s.Place, s.name(), s.arg(1))
		if !ok || !portOK {
			k.note(s.Place, "%s of group %s: is neither an address nor a range of at most %d: left out: write the "+
				"addresses", s.name(), block.arg(1), maxGroup)
			continue
		}
		for a := first; ; a = a.Next() {
			if _, err := unicast(a.String()); err != nil {
				k.note(s.Place, "%s of group %s: %v: left out: want addresses that the realservers can have", s.name(),
					block.arg(1), err)
				break
			}
			if !k.spend(s.Place, addressWork) {
				return nil
			}
			if ports[a] == nil {
				order = append(order, a)
			}
			if l := netip.AddrPortFrom(a, port); !known[l] {
				known[l] = true
				ports[a] = append(ports[a], port)
			}
			if a == last {
				break
			}
		}
	}
	index := map[string]int{}
	for _, a := range order {
		list := ports[a]
		if slices.Contains(list, 0) {
			list = []uint16{0} // every port
		}
		slices.Sort(list)
		var id []byte
		for _, port := range list {
			id = binary.BigEndian.AppendUint16(id, port)
		}
		i, known := index[string(id)]
		if !known {
			i = len(parts)
			index[string(id)] = i
			parts = append(parts, groupPart{ports: list})
		}
		parts[i].vips = append(parts[i].vips, a)
	}
	return parts
}

// divide yields services with the VIPs and ports of a part. With replaces, each has one port, and a part of its name.
func (k *keepalived) divide(at Place, part groupPart, replaces bool) iter.Seq[*service] {
	return func(yield func(*service) bool) {
		if !replaces || len(part.ports) == 1 {
			yield(&service{vips: part.vips, ports: part.ports})
			return
		}
		for _, port := range part.ports {
			if !k.spend(at, addressWork*len(part.vips)) || !yield(&service{vips: slices.Clone(part.vips),
				ports: []uint16{port}, want: "-" + strconv.Itoa(int(port))}) {
				return
			}
		}
	}
}

// replacesPorts reports whether a server in a virtual_server's block gets packets at another port than the VIP's. Then
// each port needs a service of its own.
func replacesPorts(block *statement) bool {
	isNAT := func(of *statement, absent bool, keywords ...string) bool {
		for _, st := range of.block {
			if slices.Contains(keywords, st.name()) {
				absent = st.arg(1) != "TUN" && st.arg(1) != "DR"
			}
		}
		return absent
	}
	byDefault := isNAT(block, true, "lb_kind", "lvs_method")
	sorry := isNAT(block, byDefault, "sorry_server_lvs_method")
	return slices.ContainsFunc(block.block, func(st *statement) bool {
		replaces := false
		switch st.name() {
		case "real_server":
			replaces = isNAT(st, byDefault, "lb_kind", "lvs_method")
		case "sorry_server":
			replaces = sorry
		default:
			return false
		}
		a, err := server(st.arg(1))
		return st.arg(2) != "" && st.arg(2) != "0" && (replaces || err == nil && a.IsLoopback())
	})
}

// addressRange reads "192.0.2.1", "192.0.2.1-9", "192.0.2.1-192.0.2.9" or "192.0.2.0/28", and the same forms with IPv6,
// whose end is hexadecimal.
func addressRange(text string) (first, last netip.Addr, ok bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		p = p.Masked()
		if p.Addr().BitLen()-p.Bits() > 12 {
			return first, last, false
		}
		end := p.Addr().AsSlice()
		for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
			end[bit/8] |= 0x80 >> (bit % 8)
		}
		last, _ = netip.AddrFromSlice(end)
		return p.Addr(), last, true
	}
	from, to, isRange := strings.Cut(text, "-")
	first, err := netip.ParseAddr(from)
	if err != nil || first.Zone() != "" || first.Is4In6() {
		return first, last, false
	}
	if !isRange {
		return first, first, true
	}
	if last, err = netip.ParseAddr(to); err != nil {
		i := strings.LastIndexAny(from, ".:")
		if last, err = netip.ParseAddr(from[:i+1] + to); err != nil {
			return first, last, false
		}
	}
	if last.Is4() != first.Is4() || last.Zone() != "" || last.Less(first) {
		return first, last, false
	}
	distance := new(big.Int).Sub(new(big.Int).SetBytes(last.AsSlice()), new(big.Int).SetBytes(first.AsSlice()))
	return first, last, distance.Cmp(big.NewInt(maxGroup)) < 0
}

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
		vrrpScripts: map[string]*vrrpScript{}, byTitle: map[string]*instance{}, groupNames: map[string]bool{},
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

	vrrpScripts map[string]*vrrpScript
	byTitle     map[string]*instance // all of them, by keepalived's names
	syncGroups  []*syncGroup
	groupNames  map[string]bool

	include bool // included files may be read
}

// Definitions, to which other blocks refer, are read first. Blocks with a counterpart follow. All other blocks become
// notes.
var (
	definitions = map[string]func(*keepalived, *statement){
		"virtual_server_group": (*keepalived).defineGroup,
		"track_file":           (*keepalived).defineFile,
		"vrrp_track_file":      (*keepalived).defineFile,
		"vrrp_script":          (*keepalived).defineScript,
		"SSL":                  (*keepalived).defineSSL,
	}
	blocks = map[string]func(*keepalived, *statement){
		"virtual_server":  (*keepalived).virtualServer,
		"global_defs":     (*keepalived).globals,
		"vrrp_instance":   (*keepalived).vrrpInstance,
		"vrrp_sync_group": (*keepalived).vrrpGroup,
	}
)

const unused = "nothing refers to it: left out, as by keepalived"

// elsewhere has the keywords, by prefix, of blocks without a counterpart, and the remedy for each.
var elsewhere = []struct{ prefix, what string }{
	{"vrrp_script", unused},
	{"vrrp_track_file", unused},
	{"vrrp_track_process", "no counterpart: track a service, whose check can look at the process"},
	{"static_ipaddress", "set up the host's addresses with its own network configuration"},
	{"static_route", "set up the host's routes with its own network configuration"},
	{"static_rule", "set up the host's rules with its own network configuration"},
	{"track_group", "set up what it tracks with the host's own network configuration"},
	{"garp_group", noneNeeded},
	{"linkbeat_", noneNeeded},
	{"interface_up_down_delays", "no counterpart: left out: a link that is gone is a fault at once"},
	{"track_file", unused},
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
		if v := k.vrrpScripts[s.arg(1)]; v != nil && v.of == s && !v.used {
			k.other(s)
		}
	}
	k.joinGroups()
	k.settleSync(k.byTitle)
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

// globalKeywords are the keywords of global_defs with a counterpart, or with an effect that the director does not have.
// Keywords of mail are in mailStatements.
var globalKeywords = map[string]func(*keepalived, *statement){
	"lvs_timeouts": func(k *keepalived, st *statement) {
		for i := 1; i+1 < len(st.words); i += 2 {
			k.timeout(st.Place, st.words[i], st.words[i+1])
		}
	},
	"lvs_sync_daemon": (*keepalived).syncDaemon,
	"vrrp_strict":     func(k *keepalived, st *statement) { k.vrrp.strict = boolean(st) },
	"vrrp_version": func(k *keepalived, st *statement) {
		n, ok := vrrpVersion(st.arg(1))
		if !ok {
			k.note(st.Place, "vrrp_version %q: left out, as by keepalived: want 2 or 3", st.arg(1))
			return
		}
		k.vrrp.version = n
	},
	"vrrp_mcast_group4":       globally("no counterpart: left out: set peers where another group was meant"),
	"vrrp_mcast_group6":       globally("no counterpart: left out: set peers where another group was meant"),
	"vrrp_startup_delay":      globally("no counterpart: left out: let the director's unit start later"),
	"vrrp_down_timer_adverts": globally("no counterpart: left out: another director takes over after 3 intervals"),
	"notify_fifo":             globally(noFIFO), "notify_fifo_script": globally(noFIFO),
	"vrrp_notify_fifo": globally(noFIFO), "vrrp_notify_fifo_script": globally(noFIFO),
	"lvs_notify_fifo": globally(noFIFO), "lvs_notify_fifo_script": globally(noFIFO),
}

const noFIFO = "no counterpart: left out: write command in [notify]: changes come one after the other"

// globally returns a reader of a keyword of global_defs without a counterpart.
func globally(note string) func(*keepalived, *statement) {
	return func(k *keepalived, st *statement) { k.note(st.Place, "%s: %s", st.name(), note) }
}

// globals reads global_defs.
func (k *keepalived) globals(block *statement) {
	var others []string
	said := map[string]bool{}
	for _, s := range block.block {
		name := s.name()
		switch read := globalKeywords[name]; {
		case read != nil:
			read(k, s)
		case mailStatements[name] != nil:
			k.mailStatement(s)
		case !said[name]:
			said[name] = true
			others = append(others, name)
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

var errManyAddresses = errors.New("the groups make too many services or tracks: write fewer addresses, ports and " +
	"members")

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

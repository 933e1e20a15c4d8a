package migrate

import (
	"encoding/binary"
	"math/big"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options is what an import has to know.
type Options struct {
	Schedulers []string // names of those that the director has
	ConfigID   string   // keepalived's, for lines that begin with @
	Include    bool     // keepalived's include may read files
}

// Keepalived imports a keepalived.conf; file is its name in messages, and where files that it includes are looked for from. Its syntax is that of
// keepalived.conf(5), its defaults are those of keepalived 2.
func Keepalived(file string, text []byte, options Options) (*Import, error) {
	p := &plan{program: "keepalived", schedulers: options.Schedulers}
	r := &lineReader{id: options.ConfigID, include: options.Include, plan: p, defs: map[string]string{"_INSTANCE": options.ConfigID, "_HASH": "#", "_BANG": "!"}}
	if err := r.file(file, filepath.Dir(file), text, 0); err != nil {
		return nil, err
	}
	root, err := p.parseBlocks(r.lines)
	if err != nil {
		return nil, err
	}
	k := &keepalived{plan: p, root: root, groups: map[string]*statement{}, files: map[string]*trackFile{}, include: options.Include}
	k.read()
	return p.finish(file), nil
}

// keepalived reads a tree of statements.
type keepalived struct {
	*plan
	root   *statement
	groups map[string]*statement
	files  map[string]*trackFile
	ssl    *clientCertificate // nil: there is none

	include bool // files may be read
}

// Blocks that others refer to are read first, then those that become something; all others are named.
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

// What has no counterpart, and what to do about it, by the beginning of its keyword.
var elsewhere = []struct{ prefix, what string }{
	{"vrrp_instance", "VRRP is none of this: keep keepalived for it, without its virtual_server blocks"},
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
	{"bfd_instance", "BFD is none of this: let a daemon such as bird speak it, or use checks with a short interval"},
	{"net_namespace", "start the director in its namespace: ip netns exec NAME director run"},
	{"namespace_with_ipsets", "has no counterpart and needs none: leave it out"},
	{"instance", "has no counterpart and needs none: each director.toml names its own control socket and device"},
	{"use_pid_dir", "has no counterpart and needs none: the control socket tells whether a director runs"},
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

// other names a block that is none of a director's.
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

// globals reads global_defs, of which only the timeouts of connections have a counterpart.
func (k *keepalived) globals(block *statement) {
	var others []string
	for _, s := range block.block {
		switch name := s.name(); name {
		case "lvs_timeouts":
			for i := 1; i+1 < len(s.words); i += 2 {
				k.timeout(s.Place, s.words[i], s.words[i+1])
			}
		case "lvs_sync_daemon":
			k.note(s.Place, "lvs_sync_daemon: connections are not synchronised between directors: a failover ends those that another realserver gets")
		case "notification_email", "smtp_server", "smtp_alert", "smtp_alert_checker":
			k.note(s.Place, "%s: there is no mail: let the command of [notify] send it", name)
		default:
			if !slices.Contains(others, name) {
				others = append(others, name)
			}
		}
	}
	if len(others) > 0 {
		k.note(block.Place, "global_defs: %s: no counterpart, and none needed", strings.Join(others, ", "))
	}
}

// timeout takes one of lvs_timeouts, or of ipvsadm --set; 0 leaves it as it is.
func (p *plan) timeout(at Place, name, seconds string) {
	n, err := strconv.ParseUint(seconds, 10, 32)
	to, known := map[string]*time.Duration{"tcp": &p.timeouts.tcp, "tcpfin": &p.timeouts.tcpFin, "tcp_fin": &p.timeouts.tcpFin, "udp": &p.timeouts.udp}[name]
	switch {
	case !known:
		p.note(at, "timeout %s: unknown: left out: those of tcp, tcp_fin, tcp_syn, udp and sctp stand in [connections]", name)
	case err != nil || n > uint64(maxTimeout/time.Second):
		p.note(at, "timeout %s %q: left out: want 1 to 2678400 seconds", name, seconds)
	case n > 0:
		*to = time.Duration(n) * time.Second
	}
}

// checkVRRPAddresses warns of VIPs that VRRP would give to the director's host itself.
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
					k.note(s.Place, "%s %s: is a VIP, which the director's host must not own: let VRRP move an address of the directors' own, and route the VIP to that", list.name(), a)
				}
			}
		}
	}
}

// virtualServer reads a virtual_server: one service, or, of a group, one for each set of ports.
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
			s.protocol = "tcp" // as likely as any: a mark has none
		}
		k.addMark(&s, block.Place)
	case "group":
		group, ok := k.groups[block.arg(2)]
		if !ok {
			k.note(block.Place, "%s: there is no such virtual_server_group: left out: write the group, or its addresses", source)
			return
		}
		parts := k.group(group)
		every := slices.ContainsFunc(parts, func(p groupPart) bool { return p.ports[0] == 0 })
		for _, part := range parts {
			s := base
			s.vips, s.ports, s.want = part.vips, part.ports, block.arg(2)
			k.fill(&s, block, every)
			k.services = append(k.services, &s)
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

// addMark keeps a service that can't be one yet, for a comment that can become one.
func (p *plan) addMark(s *service, at Place) {
	p.note(at, "%s: only the firewall's rules know a mark's addresses and ports: left out, but as a comment: give it the VIPs and ports that get the mark (iptables -t mangle -S, nft list ruleset)", s.source)
	p.marks = append(p.marks, s)
}

// port reads an optional port, of which there is 0, every port.
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

// groupPart is those addresses of a group that have the same ports.
type groupPart struct {
	vips  []netip.Addr
	ports []uint16
}

// maxGroup is how many addresses one line of a group may stand for: IPv4's /20.
const maxGroup = 4096

func (k *keepalived) group(block *statement) (parts []groupPart) {
	var order []netip.Addr
	ports := map[netip.Addr][]uint16{}
	for _, s := range block.block {
		if s.name() == "fwmark" {
			k.note(s.Place, "fwmark %s of group %s: only the firewall's rules know a mark's addresses: left out: write the addresses that get it", s.arg(1), block.arg(1))
			continue
		}
		first, last, ok := addressRange(s.name())
		port, portOK := k.port(s.Place, s.name(), s.arg(1))
		if !ok || !portOK {
			k.note(s.Place, "%s of group %s: is neither an address nor a range of at most %d: left out: write the addresses", s.name(), block.arg(1), maxGroup)
			continue
		}
		for a := first; ; a = a.Next() {
			if _, err := unicast(a.String()); err != nil {
				k.note(s.Place, "%s of group %s: %v: left out: want addresses that the realservers can have", s.name(), block.arg(1), err)
				break
			}
			if _, known := ports[a]; !known {
				order = append(order, a)
			}
			if !slices.Contains(ports[a], port) {
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

// addressRange reads "192.0.2.1", "192.0.2.1-9", "192.0.2.1-192.0.2.9" or "192.0.2.0/28", and the same of IPv6, where the end is hexadecimal.
func addressRange(text string) (first, last netip.Addr, ok bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		p = p.Masked()
		if p.Addr().BitLen()-p.Bits() > 12 {
			return first, last, false
		}
		first, last = p.Addr(), p.Addr()
		for range 1<<(p.Addr().BitLen()-p.Bits()) - 1 {
			last = last.Next()
		}
		return first, last, true
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

// settings are what a virtual_server says for its real_servers, and these for their checks.
type settings struct {
	delay      time.Duration // delay_loop
	timeout    time.Duration // connect_timeout
	retry      int           // -1: the checker's default
	leastRetry int           // that keepalived takes
	retryDelay time.Duration // 0: the checker's default
	alpha      bool          // down until a check says otherwise
	inhibit    bool
	host       string // virtualhost
	weight     int
	tunnel     tunnel
}

// settingKeywords are those of settings. A block that does not know one has keepalived ignore it.
var settingKeywords = map[string]struct {
	read func(*keepalived, *service, *statement, *settings)
	in   []string // the blocks that know it, beside virtual_server and real_server; all: each checker with settings
	only bool     // not virtual_server and real_server
}{
	"delay_loop":         {func(k *keepalived, s *service, st *statement, t *settings) { k.timer(s, st, &t.delay) }, all, false},
	"connect_timeout":    {func(k *keepalived, s *service, st *statement, t *settings) { k.timer(s, st, &t.timeout) }, connecting, false},
	"delay_before_retry": {func(k *keepalived, s *service, st *statement, t *settings) { k.timer(s, st, &t.retryDelay) }, all, false},
	"retry":              {(*keepalived).retry, all, false},
	"nb_get_retry":       {(*keepalived).retry, []string{"HTTP_GET", "SSL_GET"}, true},
	"nb_sock_retry":      {nil, nil, true},
	"nb_gethost_retry":   {nil, nil, true},
	"warmup":             {(*keepalived).warmup, all, false},
	"alpha":              {func(_ *keepalived, _ *service, st *statement, t *settings) { t.alpha = isTrue(st.arg(1)) }, all, false},
	"inhibit_on_failure": {func(_ *keepalived, _ *service, st *statement, t *settings) { t.inhibit = isTrue(st.arg(1)) }, nil, false},
	"virtualhost":        {func(_ *keepalived, _ *service, st *statement, t *settings) { t.host, _ = st.rest() }, []string{"HTTP_GET", "SSL_GET"}, false},
}

var (
	connecting = []string{"HTTP_GET", "SSL_GET", "TCP_CHECK", "SMTP_CHECK", "DNS_CHECK", "UDP_CHECK", "PING_CHECK"}
	all        = append(slices.Clip(connecting), "MISC_CHECK")
)

// read takes a statement of that block, if it is one of these.
func (t *settings) read(k *keepalived, s *service, block string, st *statement) bool {
	keyword, ok := settingKeywords[st.name()]
	if !ok {
		return false
	}
	isServer := block == "virtual_server" || block == "real_server"
	if isServer && !keyword.only || slices.Contains(keyword.in, block) {
		keyword.read(k, s, st, t)
		return true
	}
	where := "nowhere any more"
	if known := slices.Clone(keyword.in); len(known) > 0 || !keyword.only {
		if !keyword.only {
			known = append([]string{"virtual_server", "real_server"}, known...)
		}
		where = "in " + strings.Join(known, " and ") + " only"
	}
	k.noteOf(s, st.Place, "%s of %s: keepalived knows it %s, and ignores it here: so does the import: take it out", st.name(), block, where)
	return true
}

func (k *keepalived) retry(s *service, st *statement, t *settings) {
	n, err := strconv.ParseUint(st.arg(1), 10, 16)
	if err != nil || int(n) < t.leastRetry {
		k.noteOf(s, st.Place, "%s %q: is no number of retries here: left out, as by keepalived: write fall in the check", st.name(), st.arg(1))
		return
	}
	t.retry = int(n)
}

func (k *keepalived) warmup(s *service, st *statement, _ *settings) {
	k.noteOf(s, st.Place, "warmup: no counterpart, and none needed: the first checks are spread by themselves")
}

// isTrue reads a BOOL, which may be missing.
func isTrue(text string) bool { return !slices.Contains([]string{"off", "false", "no"}, text) }

// timer reads seconds, which may have a fraction.
func (k *keepalived) timer(s *service, st *statement, to *time.Duration) {
	const most = 24 * time.Hour
	f, err := strconv.ParseFloat(st.arg(1), 64)
	if err != nil || f < 0 || f != f || f > most.Seconds() {
		k.noteOf(s, st.Place, "%s %q: is no number of seconds: left out: write it in the check", st.name(), st.arg(1))
		return
	}
	*to = time.Duration(f * float64(time.Second)).Round(time.Millisecond)
}

// fill reads the block of a virtual_server into s, whose VIPs and ports are known. every says that an address of the virtual_server has every port.
func (k *keepalived) fill(s *service, block *statement, every bool) {
	if s.protocol = "udp"; block.find("protocol") == nil && len(s.vips) > 0 {
		k.noteOf(s, block.Place, "no protocol: udp, which keepalived takes then: write tcp where that was meant")
	}
	general := settings{delay: 60 * time.Second, timeout: 5 * time.Second, retry: -1, leastRetry: 1, weight: 1, tunnel: tunnel{encap: "ipip"}}
	method := ""
	for _, st := range block.block {
		switch st.name() {
		case "lb_kind", "lvs_method":
			method = k.method(s, st, &general.tunnel)
		case "persistence_timeout":
			switch st.arg(1) {
			case "":
				s.persistence.timeout = usualPersistence
			case "0": // keepalived leaves it as it is
			default:
				k.setPersistence(s, st.Place, st.arg(1))
			}
		case "persistence_granularity":
			k.setNetmask(s, st.Place, st.arg(1))
		case "weight":
			k.setWeight(s, s.source, &general.weight, st.Place, st.arg(1))
		case "real_server": // once all else is known
		default:
			if !general.read(k, s, "virtual_server", st) {
				k.serviceStatement(s, st)
			}
		}
	}
	if s.persistence != (persistence{}) && s.persistence.timeout == 0 {
		s.persistence.timeout = usualPersistence
	}
	if every && s.persistence.timeout == 0 {
		s.persistence.timeout = usualPersistence
		k.noteOf(s, block.Place, "port 0 without persistence_timeout: keepalived makes it 360 seconds, and so does the import: take persistence out where no client has to stay")
	}
	if method == "" {
		method = "NAT" // keepalived's default
	}
	ownMethods := true
	for _, st := range block.block {
		if st.name() == "real_server" {
			ownMethods = k.realServer(s, st, general) && ownMethods
		}
	}
	if !ownMethods {
		k.noteMethod(s, block.Place, method, s.source)
	}
}

// usualPersistence is keepalived's default, IPVS_SVC_PERSISTENT_TIMEOUT.
const usualPersistence = 6 * time.Minute

// method reads "TUN type gue port 6080 csum", "DR" or "NAT".
func (k *keepalived) method(s *service, st *statement, t *tunnel) string {
	method := st.arg(1)
	switch method {
	case "DR", "NAT":
		return method
	case "TUN":
	default:
		k.noteOf(s, st.Place, "%s %s: unknown: imported as a tunnel, ipip", st.name(), method)
		return "TUN"
	}
	*t = tunnel{encap: "ipip"}
	for i := 2; i < len(st.words); i++ {
		switch w := st.words[i]; w {
		case "type":
			i++
			if t.encap = st.arg(i); !slices.Contains([]string{"ipip", "gue", "gre"}, t.encap) {
				k.noteOf(s, st.Place, "tunnel type %q: unknown: imported as ipip: there are ipip, gre and gue", t.encap)
				t.encap = "ipip"
			}
		case "port":
			i++
			port, ok := k.port(st.Place, "tunnel", st.arg(i))
			if ok {
				t.port = port
			}
		case "csum":
			t.checksum = true
		case "nocsum":
		case "remcsum":
			k.noteOf(s, st.Place, "remcsum: no counterpart, agents refuse such packets: imported without checksum: encap_checksum = true has UDP's")
		default:
			k.noteOf(s, st.Place, "%s: tunnel option %q: unknown: left out", st.name(), w)
		}
	}
	return method
}

// serviceKeywords are those of a virtual_server, beside settings, real_server and what fill reads itself.
var serviceKeywords = map[string]func(*keepalived, *service, *statement){
	"lb_algo":   func(k *keepalived, s *service, st *statement) { k.setScheduler(s, st.Place, st.arg(1)) },
	"lvs_sched": func(k *keepalived, s *service, st *statement) { k.setScheduler(s, st.Place, st.arg(1)) },
	"flag-1":    (*keepalived).flag, "flag-2": (*keepalived).flag, "flag-3": (*keepalived).flag,
	"sh-port": (*keepalived).flag, "sh-fallback": (*keepalived).flag, "mh-port": (*keepalived).flag, "mh-fallback": (*keepalived).flag,
	"ops":                     func(_ *keepalived, s *service, _ *statement) { s.onePacket = true },
	"protocol":                (*keepalived).protocol,
	"quorum":                  func(k *keepalived, s *service, st *statement) { k.sum(s, st, &s.quorum) },
	"hysteresis":              func(k *keepalived, s *service, st *statement) { k.sum(s, st, &s.hysteresis) },
	"quorum_up":               func(k *keepalived, s *service, st *statement) { k.script(s, st, netip.Addr{}, "up") },
	"quorum_down":             func(k *keepalived, s *service, st *statement) { k.script(s, st, netip.Addr{}, "down") },
	"sorry_server":            (*keepalived).sorryServer,
	"sorry_server_inhibit":    without("sorry_server_inhibit: no counterpart: the sorry server is there while it is needed"),
	"sorry_server_lvs_method": without("sorry_server_lvs_method: no counterpart: the sorry server is reached through its service's tunnel"),
	"omega":                   without("omega: no counterpart: a director that ends notifies nobody: do it in its unit (ExecStopPost=)"),
	"ha_suspend":              without("ha_suspend: no counterpart: checks run on every director, also on one that no VIP is routed to"),
	"smtp_alert":              (*keepalived).smtpAlert,
	"persistence_engine": func(k *keepalived, s *service, st *statement) {
		k.noteOf(s, st.Place, "persistence_engine %s: no counterpart: left out: clients stay by their address", st.arg(1))
	},
	"snmp_name": func(_ *keepalived, s *service, st *statement) { s.want = st.arg(1) },
	"nat_mask":  without("nat_mask: no counterpart, and none needed"),
	"ip_family": without("ip_family: no counterpart, and none needed"),
	"hashed":    without("hashed: no counterpart, and none needed"),
}

// without reads a keyword that has no counterpart.
func without(note string) func(*keepalived, *service, *statement) {
	return func(k *keepalived, s *service, st *statement) { k.noteOf(s, st.Place, "%s", note) }
}

// isSetting reports whether a keyword of a virtual_server or a real_server has no block.
func isSetting(name string) bool {
	_, ofService := serviceKeywords[name]
	_, general := settingKeywords[name]
	return ofService || general || slices.Contains([]string{"lb_kind", "lvs_method", "persistence_timeout", "persistence_granularity", "weight"}, name)
}

// serviceStatement reads what is neither a real_server nor a default for these.
func (k *keepalived) serviceStatement(s *service, st *statement) {
	if read, ok := serviceKeywords[st.name()]; ok {
		read(k, s, st)
		return
	}
	k.noteOf(s, st.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what it does", st.name())
}

func (k *keepalived) flag(s *service, st *statement) { k.addFlag(s, st.Place, st.name()) }

func (k *keepalived) protocol(s *service, st *statement) {
	switch p := strings.ToLower(st.arg(1)); p {
	case "tcp", "udp", "sctp":
		s.protocol = p
	default:
		k.noteOf(s, st.Place, "protocol %q: unknown: tcp is in its place: want tcp, udp or sctp", st.arg(1))
	}
}

// sum reads a sum of weights.
func (k *keepalived) sum(s *service, st *statement, to *int) {
	n, err := strconv.ParseUint(st.arg(1), 10, 31)
	if err != nil {
		k.noteOf(s, st.Place, "%s %q: is no number: left out", st.name(), st.arg(1))
		return
	}
	*to = int(n)
}

func (k *keepalived) sorryServer(s *service, st *statement) {
	a, err := unicast(st.arg(1))
	port, ok := k.port(st.Place, "sorry_server "+st.arg(1), st.arg(2))
	if err != nil {
		k.noteOf(s, st.Place, "sorry_server %s: %v: left out: it is reached through a tunnel, as a realserver is", st.arg(1), err)
		return
	}
	s.sorry = a
	if ok && st.arg(2) != "" {
		k.notePort(s, st.Place, "sorry_server "+st.arg(1), port)
	}
}

func (k *keepalived) smtpAlert(s *service, st *statement) {
	if isTrue(st.arg(1)) {
		k.noteOf(s, st.Place, "smtp_alert: there is no mail: let the command of [notify] send it")
	}
}

// realServer reads a real_server, and says whether it names its own lvs_method.
func (k *keepalived) realServer(s *service, block *statement, general settings) (ownMethod bool) {
	a, err := unicast(block.arg(1))
	if err != nil {
		k.noteOf(s, block.Place, "real_server %s: %v: left out: want an address that the director reaches", block.arg(1), err)
		return true
	}
	title := "real_server " + a.String()
	r := &realserver{Place: block.Place, address: a, weight: general.weight}
	var found []*statement // checkers
	for _, st := range block.block {
		switch st.name() {
		case "weight":
			k.setWeight(s, title, &r.weight, st.Place, st.arg(1))
		case "lvs_method", "lb_kind":
			ownMethod = true
			k.noteMethod(s, st.Place, k.method(s, st, &general.tunnel), title)
		case "uthreshold":
			k.setThreshold(s, r, st.Place, &r.upper, st.arg(1))
		case "lthreshold":
			k.setThreshold(s, r, st.Place, &r.lower, st.arg(1))
		case "notify_up":
			k.script(s, st, a, "up")
		case "notify_down":
			k.script(s, st, a, "down")
		case "smtp_alert":
			k.smtpAlert(s, st)
		case "snmp_name":
			k.noteOf(s, st.Place, "snmp_name %s: no counterpart: a realserver is known by its address", st.arg(1))
		default:
			switch _, isChecker := checkers[st.name()]; {
			case general.read(k, s, "real_server", st):
			case isChecker:
				found = append(found, st)
			default:
				k.noteOf(s, st.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what it does", st.name())
			}
		}
	}
	if port, ok := k.port(block.Place, title, block.arg(2)); ok && block.arg(2) != "" {
		k.notePort(s, block.Place, title, port)
	}
	r.tunnel, r.drain = general.tunnel, general.inhibit
	port, _ := strconv.ParseUint(block.arg(2), 10, 16)
	r.check = k.check(s, r, uint16(port), found, general)
	s.realservers = append(s.realservers, r)
	return ownMethod
}

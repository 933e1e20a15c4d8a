package migrate

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/cmd/internal/config"
	"vstun/routing/vrrp"
)

// instance is a future [[vrrp]].
type instance struct {
	Place
	source       string // its line in the source, for its comment
	title        string // its name in the source
	name         string
	device       string
	routerID     uint8
	version      uint8 // 0: not set
	priority     uint8
	interval     time.Duration
	intervalAt   Place
	addresses    []moving
	excluded     []moving
	from         netip.Addr // unicast_src_ip or mcast_src_ip
	fromAt       Place
	master       bool // state MASTER
	noPreempt    bool
	preemptDelay time.Duration
	strict       *bool // its own strict_mode; nil: not set
	auth         auth
	peers        []peer
	group        *syncGroup // nil: none
	checksum     bool       // as RFC 9568 has it
	tracks       []track
	alert        *bool // its own smtp_alert; nil: not set
}

// moving is an address of an instance.
type moving struct {
	Place
	address netip.Addr
	length  int    // of its prefix; the whole address without one
	device  string // "": the instance's
}

// auth is the content of authentication.
type auth struct {
	Place
	kind, password string
}

// peer is an address of unicast_peer.
type peer struct {
	Place
	address netip.Addr
}

// vrrpGlobals are the defaults of global_defs for instances.
type vrrpGlobals struct {
	version uint8 // vrrp_version; 0: not set
	strict  *bool // vrrp_strict
}

// Defaults of keepalived: VRRP_PRIO_DFL and VRRP_ADVER_DFL.
const (
	usualPriority = 100
	usualInterval = time.Second
)

// instanceKeywords are the keywords of a vrrp_instance.
var instanceKeywords = map[string]func(*keepalived, *instance, *statement){
	"state":                      (*keepalived).vrrpState,
	"interface":                  (*keepalived).vrrpInterface,
	"virtual_router_id":          (*keepalived).routerID,
	"priority":                   (*keepalived).priority,
	"advert_int":                 (*keepalived).interval,
	"version":                    (*keepalived).instanceVersion,
	"nopreempt":                  func(_ *keepalived, v *instance, _ *statement) { v.noPreempt = true },
	"preempt":                    func(_ *keepalived, v *instance, _ *statement) { v.noPreempt = false },
	"preempt_delay":              (*keepalived).preemptDelay,
	"authentication":             (*keepalived).authentication,
	"auth_hmac":                  (*keepalived).authHMAC,
	"strict_mode":                func(_ *keepalived, v *instance, st *statement) { v.strict = boolean(st) },
	"unicast_src_ip":             (*keepalived).sourceAddress,
	"mcast_src_ip":               (*keepalived).sourceAddress,
	"unicast_peer":               (*keepalived).peers,
	"virtual_ipaddress":          func(k *keepalived, v *instance, st *statement) { k.addresses(v, st, &v.addresses) },
	"virtual_ipaddress_excluded": func(k *keepalived, v *instance, st *statement) { k.addresses(v, st, &v.excluded) },
	"v3_checksum_as_v2":          func(_ *keepalived, v *instance, st *statement) { v.checksum = isTrue(st.arg(1)) },
	"smtp_alert":                 func(k *keepalived, v *instance, st *statement) { k.setAlert(nil, st, &v.alert) },
	"lvs_sync_daemon_interface":  (*keepalived).syncInterface,

	"track_interface": func(k *keepalived, v *instance, st *statement) { k.trackInterfaces(v, st, &v.tracks) },
	"track_script":    func(k *keepalived, v *instance, st *statement) { k.trackScripts(v, st, &v.tracks) },
	"track_file":      trackNothing, "track_process": trackNothing, "track_bfd": trackNothing,

	"notify_master": func(k *keepalived, v *instance, st *statement) { k.roleScript(v, st, vrrp.Master) },
	"notify_backup": func(k *keepalived, v *instance, st *statement) { k.roleScript(v, st, vrrp.Backup) },
	"notify_fault":  func(k *keepalived, v *instance, st *statement) { k.roleScript(v, st, vrrp.Fault) },
	"notify":        func(k *keepalived, v *instance, st *statement) { k.roleScript(v, st, anyRole...) },
	"notify_stop":   noCounterpart(noStop), "notify_deleted": noCounterpart(noStop),
	"notify_master_rx_lower_pri": noCounterpart("no counterpart: left out: look at vstun_vrrp_two_masters"),
	"notify_priority_changes":    noCounterpart(noneNeeded),

	"use_vmac":              noCounterpart(noMAC),
	"use_vmac_addr":         noCounterpart(noMAC),
	"vmac_xmit_base":        noCounterpart(noMAC),
	"use_ipvlan":            noCounterpart(noMAC),
	"mcast_dst_ip":          noCounterpart("no counterpart: left out: set peers where another group was meant"),
	"unicast_ttl":           noCounterpart("no counterpart: left out: packets are sent with TTL 255"),
	"down_timer_adverts":    noCounterpart("no counterpart: left out: another director takes over after 3 intervals"),
	"dont_track_primary":    noCounterpart("no counterpart: left out: without a link of its interface it is a fault"),
	"virtual_routes":        noCounterpart("set up the host's routes with its own network configuration"),
	"virtual_rules":         noCounterpart("set up the host's rules with its own network configuration"),
	"vrf":                   noCounterpart("no counterpart: left out: name the interface"),
	"unicast_fault_no_peer": noCounterpart("no counterpart: left out: an instance without peers sends by multicast"),
	"no_virtual_ipaddress":  noCounterpart("no counterpart: an instance needs an address: write one in addresses"),

	"track_src_ip": noCounterpart(noneNeeded), "check_unicast_src": noCounterpart(noneNeeded),
	"native_ipv6": noCounterpart(noneNeeded), "accept": noCounterpart(noneNeeded),
	"no_accept": noCounterpart(noneNeeded), "debug": noCounterpart(noneNeeded),
	"skip_check_adv_addr": noCounterpart(noneNeeded), "promote_secondaries": noCounterpart(noneNeeded),
	"linkbeat_use_polling": noCounterpart(noneNeeded), "kernel_rx_buf_size": noCounterpart(noneNeeded),
	"old_unicast_checksum": noCounterpart(noneNeeded), "lower_prio_no_advert": noCounterpart(noneNeeded),
	"higher_prio_send_advert": noCounterpart(noneNeeded), "timer_expired_backup": noCounterpart(noneNeeded),
	"garp_master_delay": noCounterpart(noneNeeded), "garp_master_repeat": noCounterpart(noneNeeded),
	"garp_master_refresh": noCounterpart(noneNeeded), "garp_master_refresh_repeat": noCounterpart(noneNeeded),
	"garp_lower_prio_delay": noCounterpart(noneNeeded), "garp_lower_prio_repeat": noCounterpart(noneNeeded),
	"garp_extra_if": noCounterpart(noneNeeded), "garp_extra_if_vmac": noCounterpart(noneNeeded),
}

// Notes on keywords without a counterpart.
const (
	noneNeeded = "no counterpart, and none needed"
	noMAC      = "no counterpart: left out: neighbours learn of the master by gratuitous ARP"
	noStop     = "no counterpart: left out: do it in the director's unit (ExecStopPost=)"
)

// noCounterpart returns a reader of a keyword without a counterpart.
func noCounterpart(note string) func(*keepalived, *instance, *statement) {
	return func(k *keepalived, v *instance, st *statement) { k.noteOn(v, st.Place, "%s: %s", st.name(), note) }
}

// vrrpInstance reads a vrrp_instance.
func (k *keepalived) vrrpInstance(block *statement) {
	title := block.arg(1)
	source := printable("vrrp_instance " + title)
	switch {
	case title == "":
		k.note(block.Place, "vrrp_instance without a name: left out, as by keepalived: write one behind it")
		return
	case k.byTitle[title] != nil:
		k.note(block.Place, "%s: is there twice: the first one is taken, as by keepalived: rename one", source)
		return
	}
	v := &instance{Place: block.Place, source: source, title: title, priority: usualPriority,
		interval: usualInterval}
	for _, st := range block.block {
		if read, ok := instanceKeywords[st.name()]; ok {
			read(k, v, st)
			continue
		}
		k.noteOn(v, st.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what it does",
			st.name())
	}
	k.instances, k.byTitle[title] = append(k.instances, v), v
}

func (k *keepalived) vrrpState(v *instance, st *statement) {
	switch st.arg(1) {
	case "MASTER":
		v.master = true
	case "BACKUP":
	default:
		k.noteOn(v, st.Place, "state %q: unknown: BACKUP, as with keepalived: want MASTER or BACKUP", st.arg(1))
	}
}

func (k *keepalived) vrrpInterface(v *instance, st *statement) {
	if !config.IsDevice(st.arg(1)) {
		k.noteOn(v, st.Place, "interface %q: is no name of a device: left out: write interface in the instance",
			st.arg(1))
		return
	}
	v.device = st.arg(1)
}

func (k *keepalived) routerID(v *instance, st *statement) {
	n, err := strconv.ParseUint(st.arg(1), 10, 8)
	if err != nil || n == 0 {
		k.noteOn(v, st.Place, "virtual_router_id %q: left out, as by keepalived: want 1 to 255", st.arg(1))
		return
	}
	v.routerID = uint8(n)
}

func (k *keepalived) priority(v *instance, st *statement) {
	n, err := strconv.ParseUint(st.arg(1), 10, 8)
	if err != nil || n == 0 {
		k.noteOn(v, st.Place, "priority %q: %d is in its place, as with keepalived: want 1 to 255", st.arg(1),
			usualPriority)
		n = usualPriority
	}
	v.priority = uint8(n)
}

func (k *keepalived) interval(v *instance, st *statement) {
	const least, most = 0.01, 255 // seconds
	f, err := strconv.ParseFloat(st.arg(1), 64)
	if err != nil || !(f >= least && f <= most) {
		k.noteOn(v, st.Place, "advert_int %q: left out, as by keepalived: want 0.01 to 255 seconds", st.arg(1))
		return
	}
	v.interval, v.intervalAt = time.Duration(f*float64(time.Second)), st.Place
}

func (k *keepalived) instanceVersion(v *instance, st *statement) {
	if n, ok := vrrpVersion(st.arg(1)); ok {
		v.version = n
	} else {
		k.noteOn(v, st.Place, "version %q: left out, as by keepalived: want 2 or 3", st.arg(1))
	}
}

func vrrpVersion(text string) (n uint8, ok bool) {
	switch text {
	case "2":
		return vrrp.Version2, true
	case "3":
		return vrrp.Version3, true
	}
	return 0, false
}

func (k *keepalived) preemptDelay(v *instance, st *statement) {
	const most = 1000 // seconds
	f, err := strconv.ParseFloat(st.arg(1), 64)
	if err != nil || !(f >= 0 && f <= most) {
		k.noteOn(v, st.Place, "preempt_delay %q: left out, as by keepalived: want 0 to 1000 seconds", st.arg(1))
		return
	}
	v.preemptDelay = time.Duration(f * float64(time.Second)).Round(time.Millisecond)
}

// authentication reads the block of a password.
func (k *keepalived) authentication(v *instance, block *statement) {
	v.auth.Place = block.Place
	for _, st := range block.block {
		switch st.name() {
		case "auth_type":
			v.auth.kind = st.arg(1)
		case "auth_pass":
			v.auth.password = st.arg(1)
		default:
			k.noteOn(v, st.Place, "%s of authentication: unknown to this program: left out: look into "+
				"keepalived.conf(5) for what it does", st.name())
		}
	}
}

// authHMAC notes keepalived 2.4's auth_hmac, with the keys of [[vrrp]]. The import does not know whether the director's
// host has the file.
func (k *keepalived) authHMAC(v *instance, block *statement) {
	file, id, mode := "FILE", "", ""
	if st := block.find("active_key"); st != nil {
		id = st.arg(1)
	}
	for _, st := range block.block {
		if st.name() != "key" || id != "" && st.arg(1) != id {
			continue
		}
		id = st.arg(1)
		if path, ok := strings.CutPrefix(st.arg(2), "file:"); ok {
			file = path
		}
	}
	if st := block.find("mode"); st != nil && st.arg(1) != "enforce" {
		mode = ", key_mode = " + quote("permissive")
	}
	k.noteOn(v, block.Place, "auth_hmac: left out: write key = %s, key_id = %s%s in the instance, where the file is "+
		"on this host", quote(file), id, mode)
}

// sourceAddress reads unicast_src_ip and mcast_src_ip.
func (k *keepalived) sourceAddress(v *instance, st *statement) {
	a, err := netip.ParseAddr(st.arg(1))
	if why := config.NotUnicast(a); err != nil || a.Zone() != "" || a.Is4In6() ||
		why != "" && !a.IsLinkLocalUnicast() {
		k.noteOn(v, st.Place, "%s %q: is no address to send from: left out: write source in the instance", st.name(),
			st.arg(1))
		return
	}
	v.from, v.fromAt = a, st.Place
}

// peers reads unicast_peer.
func (k *keepalived) peers(v *instance, block *statement) {
	for _, st := range block.block {
		a, err := unicast(st.name())
		if err != nil {
			k.noteOn(v, st.Place, "unicast_peer: %v: left out: want an address of another director", err)
			continue
		}
		if len(st.words) > 1 {
			k.noteOn(v, st.Place, "unicast_peer: %s: no counterpart: left out: the TTL of its packets does not count",
				strings.Join(st.words[1:], " "))
		}
		v.peers = append(v.peers, peer{st.Place, a})
	}
}

// addressOptions are the words of an address in virtual_ipaddress, with the number of their arguments.
var addressOptions = map[string]int{"dev": 1, "brd": 1, "broadcast": 1, "scope": 1, "label": 1, "peer": 1,
	"preferred_lft": 1, "valid_lft": 1, "track_group": 1, "home": 0, "nodad": 0, "-nodad": 0, "mngtmpaddr": 0,
	"noprefixroute": 0, "autojoin": 0, "no_track": 0, "use_vmac": 0}

// addresses reads virtual_ipaddress and virtual_ipaddress_excluded: "10.0.2.10/24 brd 10.0.2.255 dev eth1".
func (k *keepalived) addresses(v *instance, block *statement, to *[]moving) {
	for _, st := range block.block {
		text, length, hasLength := strings.Cut(st.name(), "/")
		a, err := netip.ParseAddr(text)
		if why := config.NotUnicast(a); err != nil || a.Zone() != "" || a.Is4In6() ||
			why != "" && !a.IsLinkLocalUnicast() {
			k.noteOn(v, st.Place, "%s: %q is no address that moves: left out: write it in addresses", block.name(),
				st.name())
			continue
		}
		m := moving{Place: st.Place, address: a, length: a.BitLen()}
		if n, err := strconv.Atoi(length); err == nil && n >= 1 && n <= a.BitLen() {
			m.length = n
		} else if hasLength {
			k.noteOn(v, st.Place, "%s: %s: /%d is in its place, as with keepalived: want a length of 1 to %d",
				block.name(), st.name(), m.length, m.length)
		}
		k.addressWords(v, block, st, &m)
		*to = append(*to, m)
	}
}

// addressWords reads what stands behind an address.
func (k *keepalived) addressWords(v *instance, block, st *statement, m *moving) {
	var others []string
	for i := 1; i < len(st.words); i++ {
		w := st.words[i]
		n, known := addressOptions[w]
		switch {
		case !known:
			k.noteOn(v, st.Place, "%s: %q is unknown: left out, as by keepalived: want each address in a line of its "+
				"own", block.name(), w)
			return
		case w == "dev" && config.IsDevice(st.arg(i+1)):
			m.device = st.arg(i + 1)
		case w == "dev":
			k.noteOn(v, st.Place, "%s: %q is no name of a device: left out", block.name(), st.arg(i+1))
		default:
			others = append(others, w)
		}
		i += n
	}
	if len(others) > 0 {
		k.noteOn(v, st.Place, "%s: %s: %s", block.name(), strings.Join(others, ", "), noneNeeded)
	}
}

// boolean returns the value of a BOOL of keepalived, which is true if it is missing, or nil if it is none.
func boolean(st *statement) *bool {
	on := isTrue(st.arg(1))
	if on && !slices.Contains([]string{"", "on", "true", "yes"}, st.arg(1)) {
		return nil
	}
	return &on
}

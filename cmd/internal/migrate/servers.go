package migrate

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/balancer/method"
)

// fill reads the block of a virtual_server into s, which has its VIPs and ports. every is set if an address of the
// virtual_server has every port.
func (k *keepalived) fill(s *service, block *statement, every bool) {
	if s.protocol = "udp"; block.find("protocol") == nil && len(s.vips) > 0 {
		k.noteOf(s, block.Place, "no protocol: udp, which keepalived takes then: write tcp where that was meant")
	}
	general := settings{delay: 60 * time.Second, timeout: 5 * time.Second, retry: -1, leastRetry: 1, weight: 1,
		tunnel: tunnel{encap: "ipip"}}
	s.forward = usualMethod
	for _, st := range block.block {
		switch st.name() {
		case "lb_kind", "lvs_method":
			s.forward = k.method(s, st, &general.tunnel)
		case "persistence_timeout":
			switch st.arg(1) {
			case "":
				s.persistence.timeout = usualPersistence
			case "0": // unchanged, as in keepalived
			default:
				k.setPersistence(s, st.Place, st.arg(1))
			}
		case "persistence_granularity":
			k.setNetmask(s, st.Place, st.arg(1))
		case "weight":
			k.setWeight(s, s.source, &general.weight, st.Place, st.arg(1))
		case "real_server", "sorry_server", "sorry_server_lvs_method": // read last, see below
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
		k.noteOf(s, block.Place, "port 0 without persistence_timeout: keepalived makes it 360 seconds, and so does "+
			"the import: take persistence out where no client has to stay")
	}
	sorryMethod := s.forward
	for _, st := range block.block {
		if st.name() == "sorry_server_lvs_method" {
			sorryMethod = k.sorryMethod(s, st, general.tunnel)
		}
	}
	for _, st := range block.block {
		switch st.name() {
		case "real_server":
			k.realServer(s, st, general)
		case "sorry_server":
			k.sorryServer(s, st, sorryMethod)
		}
	}
}

// usualMethod is keepalived's default.
const usualMethod = method.NAT

// usualPersistence is keepalived's default, IPVS_SVC_PERSISTENT_TIMEOUT.
const usualPersistence = 6 * time.Minute

// method reads "TUN type gue port 6080 csum", "DR" or "NAT".
func (k *keepalived) method(s *service, st *statement, t *tunnel) method.Kind {
	switch name := st.arg(1); name {
	case "DR":
		return method.DR
	case "NAT":
		return method.NAT
	case "TUN":
	default:
		k.noteOf(s, st.Place, "%s %s: unknown: nat, keepalived's default, is in its place: want TUN, DR or NAT",
			st.name(), name)
		return usualMethod
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
			k.noteOf(s, st.Place, "remcsum: no counterpart, agents refuse such packets: imported without checksum: "+
				"encap_checksum = true has UDP's")
		default:
			k.noteOf(s, st.Place, "%s: tunnel option %q: unknown: left out", st.name(), w)
		}
	}
	return method.TUN
}

// serviceKeywords are the keywords of a virtual_server that are not settings and that fill does not read itself.
var serviceKeywords = map[string]func(*keepalived, *service, *statement){
	"lb_algo":   func(k *keepalived, s *service, st *statement) { k.setScheduler(s, st.Place, st.arg(1)) },
	"lvs_sched": func(k *keepalived, s *service, st *statement) { k.setScheduler(s, st.Place, st.arg(1)) },
	"flag-1":    (*keepalived).flag, "flag-2": (*keepalived).flag, "flag-3": (*keepalived).flag,
	"sh-port": (*keepalived).flag, "sh-fallback": (*keepalived).flag,
	"mh-port": (*keepalived).flag, "mh-fallback": (*keepalived).flag,
	"ops":         func(_ *keepalived, s *service, _ *statement) { s.onePacket = true },
	"protocol":    (*keepalived).protocol,
	"quorum":      func(k *keepalived, s *service, st *statement) { k.sum(s, st, &s.quorum) },
	"hysteresis":  func(k *keepalived, s *service, st *statement) { k.sum(s, st, &s.hysteresis) },
	"quorum_up":   func(k *keepalived, s *service, st *statement) { k.script(s, st, nil, "up") },
	"quorum_down": func(k *keepalived, s *service, st *statement) { k.script(s, st, nil, "down") },
	"sorry_server_inhibit": without("sorry_server_inhibit: no counterpart: the sorry server is there while it is " +
		"needed"),
	"omega": without("omega: no counterpart: a director sends no notification at its end: do it in its " +
		"unit (ExecStopPost=)"),
	"ha_suspend": without("ha_suspend: no counterpart: checks run on every director, also on one that " +
		"no VIP is routed to"),
	"smtp_alert": func(k *keepalived, s *service, st *statement) { k.setAlert(s, st, &s.alert) },
	"persistence_engine": func(k *keepalived, s *service, st *statement) {
		k.noteOf(s, st.Place, "persistence_engine %s: no counterpart: left out: clients stay by their address",
			st.arg(1))
	},
	"snmp_name": func(_ *keepalived, s *service, st *statement) { s.want = st.arg(1) },
	"nat_mask":  without("nat_mask: no counterpart, and none needed"),
	"ip_family": without("ip_family: no counterpart, and none needed"),
	"hashed":    without("hashed: no counterpart, and none needed"),
}

// without returns a reader of a keyword without a counterpart.
func without(note string) func(*keepalived, *service, *statement) {
	return func(k *keepalived, s *service, st *statement) { k.noteOf(s, st.Place, "%s", note) }
}

// isSetting reports whether a keyword of a virtual_server or a real_server has no block.
func isSetting(name string) bool {
	_, ofService := serviceKeywords[name]
	_, general := knownIn[name]
	return ofService || general || slices.Contains([]string{"lb_kind", "lvs_method", "persistence_timeout",
		"persistence_granularity", "weight", "sorry_server", "sorry_server_lvs_method"}, name)
}

// serviceStatement reads a statement that is neither a real_server nor a default for real_servers.
func (k *keepalived) serviceStatement(s *service, st *statement) {
	if read, ok := serviceKeywords[st.name()]; ok {
		read(k, s, st)
		return
	}
	k.noteOf(s, st.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what it does",
		st.name())
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

func (k *keepalived) sorryServer(s *service, st *statement, forward method.Kind) {
	title := "sorry_server " + st.arg(1)
	a, err := server(st.arg(1))
	port, _ := k.port(st.Place, title, st.arg(2))
	if err != nil {
		k.noteOf(s, st.Place, "%s: %v: left out: want an address that the director reaches", title, err)
		return
	}
	s.sorry = &realserver{Place: st.Place, address: a}
	k.setMethod(s, s.sorry, title, forward, port)
}

// sorryMethod reads sorry_server_lvs_method. The sorry server has its service's tunnel, which is general.
func (k *keepalived) sorryMethod(s *service, st *statement, general tunnel) method.Kind {
	own := general
	forward := k.method(s, st, &own)
	if forward == method.TUN && own != general {
		k.noteOf(s, st.Place, "sorry_server_lvs_method: the sorry server's tunnel is the service's: left out: make it "+
			"one of the realservers, with weight 0")
	}
	return forward
}

// realServer reads a real_server.
func (k *keepalived) realServer(s *service, block *statement, general settings) {
	a, err := server(block.arg(1))
	if err != nil {
		k.noteOf(s, block.Place, "real_server %s: %v: left out: want an address that the director reaches",
			block.arg(1), err)
		return
	}
	title := "real_server " + a.String()
	r := &realserver{Place: block.Place, address: a, weight: general.weight}
	forward := s.forward
	var found []*statement // checkers
	for _, st := range block.block {
		switch st.name() {
		case "weight":
			k.setWeight(s, title, &r.weight, st.Place, st.arg(1))
		case "lvs_method", "lb_kind":
			forward = k.method(s, st, &general.tunnel)
		case "uthreshold":
			k.setThreshold(s, r, st.Place, &r.upper, st.arg(1))
		case "lthreshold":
			k.setThreshold(s, r, st.Place, &r.lower, st.arg(1))
		case "notify_up":
			k.script(s, st, r, "up")
		case "notify_down":
			k.script(s, st, r, "down")
		case "smtp_alert":
			k.setAlert(s, st, &r.alert)
		case "snmp_name":
			k.noteOf(s, st.Place, "snmp_name %s: no counterpart: a realserver is known by its address", st.arg(1))
		default:
			switch _, isChecker := checkers[st.name()]; {
			case general.read(k, s, "real_server", st):
			case isChecker:
				found = append(found, st)
			default:
				k.noteOf(s, st.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what "+
					"it does", st.name())
			}
		}
	}
	port, _ := k.port(block.Place, title, block.arg(2))
	k.setMethod(s, r, title, forward, port)
	r.tunnel, r.drain = general.tunnel, general.inhibit
	r.check = k.check(s, r, port, found, general)
	s.realservers = append(s.realservers, r)
}

package migrate

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/balancer/method"
)

// IPVSAdm imports the output of ipvsadm-save or ipvsadm -S, the input of ipvsadm -R: a line for each service, "-A", and
// each realserver, "-a". Lines may begin with the program's name, as in scripts.
func IPVSAdm(file string, text []byte, options Options) (*Import, error) {
	p := &ipvsadm{plan: &plan{program: "ipvsadm"}, known: map[string]*service{},
		lost: map[string]bool{}}
	n := 0
	for raw := range strings.Lines(string(text)) {
		n++
		at := Place{file, n}
		line, _, _ := strings.Cut(raw, "#")
		w := shellWords(line)
		if len(w) > 0 && (w[0] == "ipvsadm" || strings.HasSuffix(w[0], "/ipvsadm")) {
			w = w[1:]
		}
		if len(w) == 0 {
			continue
		}
		r, err := parseRule(w)
		if err != nil {
			return nil, at.fault("%s", printable(err.Error()))
		}
		p.rule(at, r)
	}
	return p.finish(file)
}

type ipvsadm struct {
	*plan
	known map[string]*service // by its -t, -u or -f
	lost  map[string]bool     // services that have been left out
}

// ruleOptions are ipvsadm's options with their short names. value reports whether a value follows: 'n'o, 'y'es, or
// 'm'aybe. See ipvsadm(8).
var ruleOptions = map[string]struct {
	short string
	value byte
}{
	"add-service": {"A", 'n'}, "edit-service": {"E", 'n'}, "delete-service": {"D", 'n'}, "clear": {"C", 'n'},
	"restore": {"R", 'n'}, "save": {"S", 'n'},
	"add-server": {"a", 'n'}, "edit-server": {"e", 'n'}, "delete-server": {"d", 'n'}, "list": {"L", 'n'},
	"zero": {"Z", 'n'},
	"set":  {"", 'n'}, "start-daemon": {"", 'y'}, "stop-daemon": {"", 'y'},
	"tcp-service": {"t", 'y'}, "udp-service": {"u", 'y'}, "sctp-service": {"", 'y'}, "fwmark-service": {"f", 'y'},
	"ipv6":      {"6", 'n'},
	"scheduler": {"s", 'y'}, "sched-flags": {"b", 'y'}, "pe": {"", 'y'}, "persistent": {"p", 'm'},
	"netmask": {"M", 'y'}, "ops": {"o", 'n'},
	"real-server": {"r", 'y'}, "gatewaying": {"g", 'n'}, "ipip": {"i", 'n'}, "masquerading": {"m", 'n'},
	"weight":      {"w", 'y'},
	"u-threshold": {"x", 'y'}, "l-threshold": {"y", 'y'},
	"tun-type": {"", 'y'}, "tun-port": {"", 'y'}, "tun-nocsum": {"", 'n'}, "tun-csum": {"", 'n'},
	"tun-remcsum":     {"", 'n'},
	"mcast-interface": {"", 'y'}, "mcast-group": {"", 'y'}, "mcast-port": {"", 'y'}, "mcast-ttl": {"", 'y'},
	"sync-maxlen": {"", 'y'}, "syncid": {"", 'y'},
	"numeric": {"n", 'n'}, "exact": {"", 'n'}, "nosort": {"", 'n'}, "sort": {"", 'n'},
}

// longOptions are the long names of short ones.
var longOptions = func() map[string]string {
	long := map[string]string{}
	for name, o := range ruleOptions {
		if o.short != "" {
			long[o.short] = name
		}
	}
	return long
}()

// rule is a line: its options by their long names, and its other words.
type rule struct {
	options map[string]string
	others  []string
}

func (r rule) has(name string) bool { _, ok := r.options[name]; return ok }

// parseRule reads a line's words as popt(3) does for ipvsadm.
func parseRule(words []string) (rule, error) {
	r := rule{options: map[string]string{}}
	for i := 0; i < len(words); i++ {
		w := words[i]
		if len(w) < 2 || w[0] != '-' {
			r.others = append(r.others, w)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		if !strings.HasPrefix(w, "--") {
			name, value = "", strings.TrimPrefix(w[2:], "=")
			hasValue = value != ""
			name = longOptions[w[1:2]]
			if hasValue && name != "" && ruleOptions[name].value == 'n' { // several short options in one word
				words = slices.Insert(slices.Clone(words), i+1, "-"+w[2:])
				value, hasValue = "", false
			}
		}
		o, known := ruleOptions[name]
		switch {
		case !known:
			return r, fmt.Errorf("%q is no option of ipvsadm: want the output of ipvsadm-save -n", w)
		case r.has(name):
			return r, fmt.Errorf("%q is there twice: want the output of ipvsadm-save -n", w)
		case o.value == 'n' && hasValue:
			return r, fmt.Errorf("%q has no value: want the output of ipvsadm-save -n", w)
		case o.value == 'y' && !hasValue:
			if i++; i == len(words) {
				return r, fmt.Errorf("%q needs a value: want the output of ipvsadm-save -n", w)
			}
			value = words[i]
		case o.value == 'm' && !hasValue && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-"):
			i++
			value = words[i]
		}
		r.options[name] = value
	}
	commands := 0
	for _, c := range commandsOfRules {
		if r.has(c) {
			commands++
		}
	}
	if commands != 1 {
		return r, fmt.Errorf("%q holds %d commands of ipvsadm: want one, as ipvsadm-save -n prints it",
			strings.Join(words, " "), commands)
	}
	return r, nil
}

var commandsOfRules = []string{"add-service", "add-server", "edit-service", "edit-server", "delete-service",
	"delete-server", "clear", "restore", "save", "list",
	"zero", "set", "start-daemon", "stop-daemon"}

// rule imports a line.
func (p *ipvsadm) rule(at Place, r rule) {
	switch {
	case r.has("add-service"):
		p.addService(at, r)
	case r.has("add-server"):
		p.addServer(at, r)
	case r.has("set"):
		for i, name := range []string{"tcp", "tcpfin", "udp"} {
			if i < len(r.others) {
				p.timeout(at, name, r.others[i])
			}
		}
	case r.has("start-daemon"):
		p.startDaemon(at, r)
	case r.has("edit-service"), r.has("edit-server"), r.has("delete-service"), r.has("delete-server"):
		p.note(at, "changes what is there: left out: import what ipvsadm-save -n prints once it has run")
	} // The other commands change no rule, or need an earlier one.
}

// key returns the option that names a service, and its value.
func (r rule) key() (option, value string) {
	for _, option := range []string{"tcp-service", "udp-service", "sctp-service", "fwmark-service"} {
		if value, ok := r.options[option]; ok {
			return option, value
		}
	}
	return "", ""
}

func (p *ipvsadm) addService(at Place, r rule) {
	option, value := r.key()
	s := &service{Place: at, source: printable(shortFor[option] + " " + value), protocol: strings.TrimSuffix(option,
		"-service")}
	id := option + " " + value
	switch {
	case option == "":
		p.note(at, "names no service: left out: want -t, -u, --sctp-service or -f")
		return
	case p.known[id] != nil:
		p.note(at, "%s: is there already, at line %d: left out", s.source, p.known[id].Line)
		return
	case option == "fwmark-service":
		s.protocol, s.ports, s.want = "tcp", []uint16{0}, "fwmark-"+value
		s.source = printable("firewall mark " + value)
	default:
		a, port, err := hostPort(value, unicast)
		if err != nil {
			p.note(at, "%s: %v: left out, with its realservers", s.source, err)
			p.lost[id] = true
			return
		}
		s.vips, s.ports = []netip.Addr{a}, []uint16{port}
	}
	p.known[id] = s
	if name := r.options["scheduler"]; name != "" {
		p.setScheduler(s, at, name)
	}
	if flags := r.options["sched-flags"]; flags != "" {
		for _, flag := range strings.Split(flags, ",") {
			p.addFlag(s, at, flag)
		}
	}
	if seconds, ok := r.options["persistent"]; ok {
		if seconds == "" {
			s.persistence.timeout = 360 * time.Second // ipvsadm's default
		} else {
			p.setPersistence(s, at, seconds)
		}
		if mask := r.options["netmask"]; mask != "" {
			p.setNetmask(s, at, mask)
		}
	}
	s.onePacket = r.has("ops")
	if pe := r.options["pe"]; pe != "" {
		p.noteOf(s, at, "--pe %s: no counterpart: left out: clients stay by their address", pe)
	}
	if option == "fwmark-service" {
		p.addMark(s, at)
		return
	}
	p.services = append(p.services, s)
}

var shortFor = map[string]string{"tcp-service": "-t", "udp-service": "-u", "sctp-service": "--sctp-service",
	"fwmark-service": "-f"}

// hostPort reads "192.0.2.1:80" or "[2001:db8::1]:80". A missing port is every port. address reads the address.
func hostPort(text string, address func(string) (netip.Addr, error)) (netip.Addr, uint16, error) {
	host, port := text, "0"
	if i := strings.LastIndexByte(text, ':'); i >= 0 && (strings.HasPrefix(text, "[") && strings.HasSuffix(text[:i],
		"]") || strings.Count(text, ":") == 1) {
		host, port = text[:i], text[i+1:]
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	a, err := address(host)
	if err != nil {
		return a, 0, fmt.Errorf("%w: want an address, as ipvsadm-save -n prints it", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		named, lookupErr := net.LookupPort("tcp", port)
		if lookupErr != nil || named < 0 || named > 65535 {
			return a, 0, fmt.Errorf("%q is no port: want a number, as ipvsadm-save -n prints it", printable(port))
		}
		n = uint64(named)
	}
	return a, uint16(n), nil
}

func (p *ipvsadm) addServer(at Place, r rule) {
	option, value := r.key()
	s := p.known[option+" "+value]
	if p.lost[option+" "+value] {
		return
	}
	if s == nil {
		p.note(at, "realserver %s: there is no service %s before it: left out: add the service (-A)",
			r.options["real-server"], strings.TrimSpace(shortFor[option]+" "+value))
		return
	}
	a, port, err := hostPort(r.options["real-server"], server)
	if err != nil {
		p.noteOf(s, at, "realserver %s: %v: left out", r.options["real-server"], err)
		return
	}
	title := "realserver " + a.String()
	rs := &realserver{Place: at, address: a, weight: 1, tunnel: tunnel{encap: "ipip"}}
	if text, ok := r.options["weight"]; ok {
		p.setWeight(s, "realserver "+rs.address.String(), &rs.weight, at, text)
	}
	if text, ok := r.options["u-threshold"]; ok {
		p.setThreshold(s, rs, at, &rs.upper, text)
	}
	if text, ok := r.options["l-threshold"]; ok {
		p.setThreshold(s, rs, at, &rs.lower, text)
	}
	forward := method.DR // ipvsadm's default
	switch {
	case r.has("ipip"):
		forward = method.TUN
		p.tunnel(s, at, r, &rs.tunnel)
	case r.has("masquerading"):
		forward = method.NAT
	}
	p.setMethod(s, rs, title, forward, port)
	s.realservers = append(s.realservers, rs)
}

// tunnel reads --tun-type and its options.
func (p *ipvsadm) tunnel(s *service, at Place, r rule, t *tunnel) {
	if kind, ok := r.options["tun-type"]; ok && kind != "ipip" && kind != "gre" && kind != "gue" {
		p.noteOf(s, at, "--tun-type %q: unknown: imported as ipip: there are ipip, gre and gue", kind)
	} else if ok {
		t.encap = kind
	}
	if port, ok := r.options["tun-port"]; ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			p.noteOf(s, at, "--tun-port %q: is no port: 6080 is in its place: write encap_port", port)
		}
		t.port = uint16(n)
	}
	t.checksum = r.has("tun-csum")
	if r.has("tun-remcsum") {
		p.noteOf(s, at, "--tun-remcsum: no counterpart, agents refuse such packets: imported without checksum: "+
			"encap_checksum = true has UDP's")
	}
}

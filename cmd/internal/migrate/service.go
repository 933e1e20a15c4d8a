package migrate

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
)

// service is a future [[service]].
type service struct {
	Place
	source      string // its line in the source, for its comment
	want        string // its name in the source, or ""
	name        string
	vips        []netip.Addr
	protocol    string
	ports       []uint16 // 0: every port
	scheduler   string
	flags       []string
	persistence persistence
	onePacket   bool
	quorum      int // 0: the default
	hysteresis  int
	forward     method.Kind // of keepalived's virtual_server
	sorry       *realserver // nil: none
	realservers []*realserver
	alert       *bool // its own smtp_alert; nil: not set
}

// persistence has the values of IPVS's persistence; the zero value means none.
type persistence struct {
	timeout  time.Duration
	netmask  int // of IPv4; 0: the default
	netmask6 int // of IPv6
}

// realserver is a future [[service.realserver]].
type realserver struct {
	Place
	address      netip.Addr
	forward      method.Kind
	port         uint16 // of nat; 0: the service's
	weight       int
	upper, lower int
	tunnel       tunnel
	drain        bool   // on_failure
	check        *check // nil: none
	alert        *bool  // its own smtp_alert; nil: not set
}

// name returns the realserver's name in messages: its address, and its own port, where it has one.
func (r *realserver) name() string {
	if r.port == 0 {
		return r.address.String()
	}
	return netip.AddrPortFrom(r.address, r.port).String()
}

// tunnel has the values of the keys encap, encap_port and encap_checksum.
type tunnel struct {
	encap    string // "ipip", "gre" or "gue"
	port     uint16 // of gue
	checksum bool
}

// timeouts are the timeouts of connections; 0 means the default.
type timeouts struct{ tcp, tcpFin, udp time.Duration }

// maxTimeout is the longest timeout of connections and templates in director.toml.
const maxTimeout = 31 * 24 * time.Hour

// unicast reads an address that a host can have. Its error names the reason for a refusal.
func unicast(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	a = a.Unmap()
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is no address", printable(text))
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone", printable(text))
	case config.NotUnicast(a) != "":
		return netip.Addr{}, fmt.Errorf("%s is %s", a, config.NotUnicast(a))
	}
	return a, nil
}

// server reads the address of a realserver. A loopback address is this host itself, as IPVS's LocalNode.
func server(text string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Is4() && a.IsLoopback() {
		return a, nil
	}
	return unicast(text)
}

// setMethod sets the forwarding method of a realserver, and its port, 0 for none.
func (p *plan) setMethod(s *service, r *realserver, title string, forward method.Kind, port uint16) {
	r.forward = forward
	if r.address.IsLoopback() && forward != method.NAT {
		p.noteOf(s, r.Place, "%s: is the director's own host: imported as nat: its server gets packets for %s, "+
			"with IPVS for the VIP: let it listen on that address", title, r.address)
		r.forward = method.NAT
	}
	every := slices.Contains(s.ports, 0) && len(s.vips) > 0
	switch {
	case port == 0 || len(s.ports) == 1 && port == s.ports[0]:
	case r.forward != method.NAT:
		p.notePort(s, r.Place, title, r.forward, port)
	case every:
		p.noteOf(s, r.Place, "%s port %d: in a service of every port IPVS leaves ports as they are: left out", title,
			port)
	default:
		r.port = port
	}
}

// settle removes conflicts within one director.toml: VIPs and ports of another service, realservers that are VIPs.
func (p *plan) settle() {
	type listener struct {
		protocol string
		vip      netip.Addr
		port     uint16
	}
	owners := map[listener]*service{}
	vips := map[netip.Addr]bool{}
	var kept []*service
	for _, s := range p.services {
		s.vips = slices.DeleteFunc(s.vips, func(vip netip.Addr) bool {
			for _, port := range s.ports {
				if o := owners[listener{s.protocol, vip, port}]; o != nil {
					p.note(s.Place, "%s: %s port %d of %s is that of line %d already: left out here: keep one of them",
						s.source, s.protocol, port, vip, o.Line)
					return true
				}
			}
			for _, port := range s.ports {
				owners[listener{s.protocol, vip, port}] = s
			}
			return false
		})
		if len(s.vips) == 0 {
			continue
		}
		for _, vip := range s.vips {
			vips[vip] = true
		}
		kept = append(kept, s)
	}
	p.services = kept

	names := map[string]int{}
	for _, s := range p.marks {
		s.name = unique(s.title(), names)
		p.settleTunnels(s)
	}
	for _, s := range p.services {
		s.name = unique(s.title(), names)
		p.settleRealservers(s, vips)
		p.settleTunnels(s)
		p.settleQuorum(s, vips)
		if s.onePacket && s.protocol != "udp" {
			p.noteOf(s, s.Place, "one-packet scheduling is for udp only, in IPVS too: left out")
			s.onePacket = false
		}
	}
}

func (p *plan) settleRealservers(s *service, vips map[netip.Addr]bool) {
	seen := map[netip.AddrPort]bool{}
	s.realservers = slices.DeleteFunc(s.realservers, func(r *realserver) bool {
		at := netip.AddrPortFrom(r.address, r.port)
		if r.port == 0 && len(s.ports) == 1 {
			at = netip.AddrPortFrom(r.address, s.ports[0])
		}
		switch {
		case vips[r.address]:
			p.noteOf(s, r.Place, "realserver %s is a VIP: left out: name the server's own address", r.address)
		case !s.reaches(r):
			p.noteOf(s, r.Place, "realserver %s: its IP version is not the VIP's, and %v cannot change that: left "+
				"out: use tun", r.address, r.forward)
		case seen[at]:
			p.noteOf(s, r.Place, "realserver %s is there twice: left out: add its weight to the first", r.name())
		default:
			seen[at] = true
			return false
		}
		return true
	})
	for _, r := range s.realservers {
		switch {
		case r.lower == 0:
		case r.upper == 0:
			p.noteOf(s, r.Place, "realserver %s: a lower threshold has no meaning without an upper one, in IPVS "+
				"too: left out", r.address)
			r.lower = 0
		case r.lower > r.upper:
			p.noteOf(s, r.Place, "realserver %s: the lower threshold is more than the upper one: left out, which is "+
				"three quarters of that", r.address)
			r.lower = 0
		}
	}
}

// reaches reports whether r can have the packets of all VIPs of s: only tunnels carry the packets of one IP version
// over the other.
func (s *service) reaches(r *realserver) bool {
	return r.forward == method.TUN || !slices.ContainsFunc(s.vips, func(vip netip.Addr) bool {
		return vip.Is4() != r.address.Is4()
	})
}

// settleQuorum lowers a quorum above the sum of weights, as keepalived does, and removes a sorry server that is a VIP.
func (p *plan) settleQuorum(s *service, vips map[netip.Addr]bool) {
	sum, drains := 0, len(s.realservers) == 0
	for _, r := range s.realservers {
		sum += r.weight
		drains = drains || r.weight == 0
	}
	switch r := s.sorry; {
	case r == nil:
	case vips[r.address]:
		p.noteOf(s, s.Place, "sorry_server %s is a VIP: left out: name the server's own address", r.address)
		s.sorry = nil
	case !s.reaches(r):
		p.noteOf(s, r.Place, "sorry_server %s: its IP version is not the VIP's, and %v cannot change that: left out",
			r.address, r.forward)
		s.sorry = nil
	}
	if most := max(s.quorum, 1) - 1; s.hysteresis > most {
		p.noteOf(s, s.Place, "hysteresis %d is not less than the quorum: %d is in its place", s.hysteresis, most)
		s.hysteresis = most
	}
	if need := s.quorum + s.hysteresis; need > max(sum, 1) && !drains {
		p.noteOf(s, s.Place, "quorum %d with hysteresis %d is more than the weights of all realservers, %d: quorum "+
			"%d without hysteresis is in its place", s.quorum, s.hysteresis, sum, min(s.quorum, sum))
		s.quorum, s.hysteresis = min(s.quorum, sum), 0
	}
}

// settleTunnels gives all realservers of a service the same GUE port.
func (p *plan) settleTunnels(s *service) {
	var port uint16
	for _, r := range s.realservers {
		switch {
		case r.forward != method.TUN:
			r.tunnel = tunnel{}
		case r.tunnel.encap == "ipip":
			r.tunnel = tunnel{encap: "ipip"}
		case r.tunnel.encap == "gre":
			r.tunnel.port = 0
		case r.tunnel.port == 0:
			r.tunnel.port = 6080
		}
		switch {
		case r.tunnel.encap != "gue" || r.tunnel.port == port:
		case port == 0:
			port = r.tunnel.port
		default:
			p.noteOf(s, r.Place, "realserver %s has GUE at port %d, others at %d, and a service has one encap_port: "+
				"set encap_port = %d in its agent's realserver.toml",
				r.address, r.tunnel.port, port, port)
			r.tunnel.port = port
		}
	}
}

// title returns a name for a service: its name in the source, or a name from protocol, VIP and port.
func (s *service) title() string {
	if s.want != "" {
		return nameOf(s.want)
	}
	port := "any"
	if s.ports[0] != 0 {
		port = strconv.Itoa(int(s.ports[0]))
	}
	return s.protocol + "-" + s.vips[0].String() + "-" + port
}

// nameOf makes a name of a word of the source.
func nameOf(word string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (lower(byte(r)) >= 'a' && lower(byte(r)) <= 'z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("._:-", r)) {
			return r
		}
		return '-'
	}, word)
	return name[:min(len(name), maxTitle)]
}

// maxTitle leaves room, in a name of 64 characters, for the number that makes it unique.
const maxTitle = 56

// unique returns name, or name with the first number that makes it absent from taken. taken maps each name to its last
// number.
func unique(name string, taken map[string]int) string {
	n, isTaken := taken[name]
	candidate := name
	for n = max(n, 1); isTaken; _, isTaken = taken[candidate] {
		n++
		candidate = name + "-" + strconv.Itoa(n)
	}
	taken[name] = n
	taken[candidate] = max(taken[candidate], 1)
	return candidate
}

// setScheduler sets the scheduler.
func (p *plan) setScheduler(s *service, at Place, name string) {
	if _, ok := balancer.LookupScheduler(name); !ok {
		p.noteOf(s, at, "scheduler %q is unknown: wlc is in its place: choose among %s", name,
			strings.Join(balancer.Schedulers(), " "))
		name = ""
	}
	s.scheduler = name
}

// addFlag adds a flag of a scheduler, under any of its names. flag-1 and flag-2 are the bits for fallback and port in
// ip_vs_sh.c and ip_vs_mh.c.
func (p *plan) addFlag(s *service, at Place, flag string) {
	switch flag {
	case "flag-1", "flag-2":
		s.flags = append(s.flags, flag) // settledFlags finds its name
	case "sh-port", "sh-fallback", "mh-port", "mh-fallback":
		s.flags = append(s.flags, flag)
	default:
		p.noteOf(s, at, "scheduler flag %q has no meaning here: left out: those that have are sh-port, sh-fallback, "+
			"mh-port and mh-fallback", flag)
	}
}

// settledFlags returns the flags under the names of the service's scheduler, or nil if the scheduler has no flags.
func (s *service) settledFlags() (list []string) {
	if row, _ := balancer.LookupScheduler(s.scheduler); !row.Flags {
		return nil
	}
	for _, bit := range []struct{ flag, meaning string }{{"flag-2", "port"}, {"flag-1", "fallback"}} {
		if slices.Contains(s.flags, bit.flag) || slices.Contains(s.flags, "sh-"+bit.meaning) || slices.Contains(s.flags,
			"mh-"+bit.meaning) {
			list = append(list, s.scheduler+"-"+bit.meaning)
		}
	}
	return list
}

// setPersistence sets the timeout, in seconds.
func (p *plan) setPersistence(s *service, at Place, seconds string) {
	n, err := strconv.ParseUint(seconds, 10, 32)
	switch {
	case err != nil || n == 0:
		p.noteOf(s, at, "persistence of %q is no number of seconds: left out: write persistence = { timeout = \"5m\" }",
			seconds)
	case n > uint64(maxTimeout/time.Second):
		p.noteOf(s, at, "persistence of %d seconds is more than there is: 744h (31 days) is in its place", n)
		s.persistence.timeout = maxTimeout
	default:
		s.persistence.timeout = time.Duration(n) * time.Second
	}
}

// setNetmask sets the granularity of persistence. mask is a netmask for IPv4, or a prefix length, which is for IPv6 if
// there are IPv6 VIPs.
func (p *plan) setNetmask(s *service, at Place, mask string) {
	four := slices.ContainsFunc(s.vips, netip.Addr.Is4) || len(s.vips) == 0
	six := slices.ContainsFunc(s.vips, netip.Addr.Is6) || len(s.vips) == 0
	length, err := strconv.Atoi(mask)
	switch a, addressErr := netip.ParseAddr(mask); {
	case addressErr == nil && a.Is4() && four:
		if length = maskLength(a.As4()); length > 0 {
			s.persistence.netmask = length
			return
		}
	case err == nil && six && length >= 1 && length <= 128:
		s.persistence.netmask6 = length
		return
	case err == nil && !six && length >= 1 && length <= 32:
		s.persistence.netmask = length
		if p.program == "keepalived" {
			p.noteOf(s, at, "persistence_granularity %d: keepalived 2.2 reads it as the netmask 0.0.0.%d: here it "+
				"is what was meant, a prefix of %d bits", length, length, length)
		}
		return
	}
	p.noteOf(s, at, "persistence granularity %q: is no netmask for these VIPs: left out, each client is one: write "+
		"netmask in persistence", mask)
}

// maskLength returns the prefix length of a netmask, or 0 if it is not a valid netmask.
func maskLength(mask [4]byte) (n int) {
	bits := binary.BigEndian.Uint32(mask[:])
	for ; bits&(1<<31) != 0; bits <<= 1 {
		n++
	}
	if bits != 0 {
		return 0
	}
	return n
}

// setWeight sets the weight of a realserver. An illegal weight changes nothing.
func (p *plan) setWeight(s *service, what string, to *int, at Place, text string) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 65535 {
		p.noteOf(s, at, "%s: weight %q: %d is in its place: want 0 to 65535", what, text, *to)
		return
	}
	*to = n
}

func (p *plan) setThreshold(s *service, r *realserver, at Place, to *int, text string) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		p.noteOf(s, at, "realserver %s: threshold %q is none: left out: want 0 to 2147483647", r.address, text)
		return
	}
	*to = int(n)
}

// notePort notes that a method changes no port.
func (p *plan) notePort(s *service, at Place, address string, forward method.Kind, port uint16) {
	if !slices.Contains(s.ports, port) && !slices.Contains(s.ports, 0) {
		p.noteOf(s, at, "%s port %d: %v leaves ports as they are: let the server listen at the VIP's port %d", address,
			port, forward, s.ports[0])
	}
}

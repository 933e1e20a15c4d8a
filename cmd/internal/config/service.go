package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/words"
)

// serviceReader reads the [[service]] tables and keeps the values that must differ between them.
type serviceReader struct {
	names       map[string]string     // name → position of the service that has it
	vips        map[netip.Addr]*table // VIP → the first service that has it
	claims      map[listener][]claim  // sorted and disjoint
	realservers []located
	sealed      []located   // those whose tunnel is WireGuard's
	peers       *peerReader // of WireGuard
	tables      []*table    // of the services
	tap         bool        // the director has a TAP device
}

// listener is a VIP and a protocol.
type listener struct {
	protocol string
	vip      netip.Addr
}

// claim is a range of ports that belongs to a service.
type claim struct {
	PortRange
	service *table
}

// located is a realserver's address and its table and key.
type located struct {
	t       *table
	key     string
	address netip.Addr
}

func newServiceReader(tap bool, w *WireGuard) *serviceReader {
	return &serviceReader{
		tap:    tap,
		peers:  newPeerReader(w),
		names:  map[string]string{},
		vips:   map[netip.Addr]*table{},
		claims: map[listener][]claim{},
	}
}

// read reads all the services.
func (r *serviceReader) read(root *table) []Service {
	const want = "at least one [[service]] table"
	rows := root.tables("service", want)
	if v, ok := root.values["service"]; !ok {
		root.faultAt("service", "missing: want %s", want)
	} else if list, isArray := v.([]any); isArray && len(list) == 0 {
		root.faultAt("service", "is empty: want %s", want)
	}
	var services []Service
	for i, row := range rows {
		services = append(services, r.service(root, i+1, row))
	}
	for _, rs := range r.realservers {
		if owner, ok := r.vips[rs.address]; ok {
			rs.t.faultAt(rs.key, "\"%v\" is also a VIP of %s: want the realserver's own address", rs.address,
				owner.label)
		}
	}
	return services
}

// checkSource refuses a VIP as the source of tunnel packets: realservers own the VIPs, and a host drops packets from
// its own addresses.
func (r *serviceReader) checkSource(t *table, sources Sources) {
	for _, a := range sources.List() {
		if owner, ok := r.vips[a]; ok {
			t.faultAt("source", "\"%v\" is also a VIP of %s: want the director's own address", a, owner.label)
		}
	}
}

// service reads one [[service]]. position is its number in the file.
func (r *serviceReader) service(root *table, position int, written row) Service {
	at := fmt.Sprintf("service[%d]", position)
	label := at
	name, _ := written.values["name"].(string)
	owner, taken := r.names[name]
	if name != "" && !taken {
		label = "service " + show(name)
		r.names[name] = at
	}

	t := root.child(label, written.values, written.at)
	s := Service{Name: readName(t)}
	if taken {
		t.faultAt("name", "%s is also the name of %s: want a name of its own", show(name), owner)
	}
	s.VIPs = t.addresses("vip", t.oneOrMore("vip", "an IPv4 or IPv6 address, or an array of them"))
	protocols := []string{"tcp", "udp", "sctp"}
	if v, ok := t.required("protocol", words.OneOf(protocols)); ok {
		s.Protocol, _ = t.choice("protocol", v, protocols)
	}
	s.Ports = t.ports("port")
	r.readScheduling(t, &s)
	s.Forward = readForward(t, method.TUN)
	s.EncapPort = readEncapPort(t)
	tunnel := readTunnel(t)
	r.readQuorum(t, &s)
	s.AnnounceAlways = readAnnounceWhen(t)
	r.readSorry(t, &s, tunnel)
	checks := newCheckReader(t, &s)
	s.Check = checks.check
	readResolve(t, &s)
	r.readRealservers(t, &s, tunnel, checks)
	r.finishResolve(t, &s, tunnel, checks.check)
	s.JoinSorry()
	checkTunnels(t, tunnel, &s)
	checks.checkVia(&s)
	checkQuorum(t, &s)
	warnUnserved(t, &s)
	warnOnePacket(t, &s)
	t.finish()
	r.tables = append(r.tables, t)

	for _, vip := range s.VIPs {
		if _, ok := r.vips[vip]; !ok {
			r.vips[vip] = t
		}
		if s.Protocol != "" {
			r.claimPorts(t, listener{s.Protocol, vip}, s.Ports)
		}
	}
	return s
}

func readName(t *table) string {
	const want = "1 to 64 printable characters without whitespace"
	v, ok := t.required("name", want)
	if !ok {
		return ""
	}
	name, ok := v.(string)
	if !ok {
		t.wrongType("name", v, want)
		return ""
	}
	unfit := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) }
	if name == "" || utf8.RuneCountInString(name) > maxShown || strings.ContainsFunc(name, unfit) {
		t.faultAt("name", "%s is not a name: want %s", show(name), want)
	}
	return name
}

// scheduler reads the scheduler's name; the default is IPVS's.
func (r *serviceReader) scheduler(t *table) string {
	v, ok := t.value("scheduler")
	if !ok {
		v = "wlc"
	}
	name, _ := t.choice("scheduler", v, balancer.Schedulers())
	return name
}

// readEncap reads a tunnel's name. The default is otherwise.
func readEncap(t *table, otherwise string) string {
	v, ok := t.value("encap")
	if !ok {
		return otherwise
	}
	name, _ := t.choice("encap", v, Encaps())
	return name
}

// readEncapPort reads the UDP port of tunnels over UDP; the default is GUE's (IANA).
func readEncapPort(t *table) uint16 {
	return uint16(t.integer("encap_port", 6080, 1, 65535, "1 to 65535"))
}

// claimPorts gives ports to a service unless another service has them already. Port 0 (every port) is a port like
// others here: a service that names a port precedes the service of every port.
func (r *serviceReader) claimPorts(t *table, at listener, ports []PortRange) {
	for _, p := range ports {
		claims := r.claims[at]
		i, _ := slices.BinarySearchFunc(claims, p, func(c claim, p PortRange) int {
			if c.Last < p.First {
				return -1
			}
			return 1
		})
		free := true
		for _, c := range claims[i:] {
			if c.First > p.Last {
				break
			}
			free = false
			if c.service != t {
				t.faultAt("port", "%v of %s \"%v\" belongs to %s (port %v): want a VIP, protocol and port in one "+
					"service only",
					p, at.protocol, at.vip, c.service.label, c.PortRange)
			}
		}
		if free {
			r.claims[at] = slices.Insert(claims, i, claim{p, t})
		}
	}
}

// readRealservers reads the realservers of s; tunnel is the default of their tunnels.
func (r *serviceReader) readRealservers(service *table, s *Service, tunnel Tunnel, checks *checkReader) {
	seen := endpoints{}
	inherits := false // a realserver has the service's method
	for i, row := range service.tables("realserver", "[[service.realserver]] tables") {
		t := service.child(seen.label(i, row.values), row.values, row.at)
		rs := RealserverRef{Weight: 1, Forward: readForward(t, s.Forward)}
		if _, own := row.values["forward"]; own {
			r.checkMethod(t, "forward", rs.Forward)
		} else {
			inherits = true
		}
		rs.Port = readRealserverPort(t, s, rs.Forward)
		if v, ok := t.required("address", "the realserver's IPv4 or IPv6 address, or its name"); ok {
			r.readAddress(t, v, s, &rs, seen)
		}
		rs.Weight = t.integer("weight", 1, 0, 65535, "0 (drains it) to 65535")
		rs.Upper, rs.Lower = readThresholds(t)
		rs.Tunnel = tunnel.readFor(t, rs.Forward)
		if rs.Host != "" {
			checkNamed(t, "address", s, &rs)
		} else if sealed(rs.Encap) {
			r.sealed = append(r.sealed, located{t, "address", rs.Address})
		}
		r.readRealserverPeer(t, &rs)
		rs.Check = checks.readFor(t, rs.Forward)
		rs.DrainOnFailure = readOnFailure(t, s.DrainOnFailure)
		t.finish()
		if rs.Host != "" {
			s.Named = append(s.Named, rs)
		} else {
			s.Realservers = append(s.Realservers, rs)
		}
	}
	if inherits {
		r.checkMethod(service, "forward", s.Forward)
	}
}

// endpoints are the names, IDs and endpoints of the realservers of a service so far.
type endpoints map[string]bool

// label returns the label of the realserver at an index, with these values: its address or name, unless another one
// has it.
func (e endpoints) label(index int, values map[string]any) string {
	if id, ok := writtenID(values); ok && !e[id.String()] {
		return "realserver " + show(words.Realserver(id))
	}
	if name, ok := writtenName(values); ok {
		return "realserver " + show(name)
	}
	return fmt.Sprintf("realserver[%d]", index+1)
}

// add adds the names of a realserver. It reports whether one of them is there already.
func (e endpoints) add(names ...string) (twice bool) {
	for _, n := range names {
		twice = twice || e[n]
	}
	for _, n := range names {
		e[n] = true
	}
	return twice
}

// readAddress reads the address or the name of rs, a realserver of s.
func (r *serviceReader) readAddress(t *table, v any, s *Service, rs *RealserverRef, seen endpoints) {
	const twice = "%s is there twice: want a realserver once in a service"
	if name, ok := writtenName(t.values); ok {
		rs.Host = name
		if seen.add(sameName(rs)) {
			t.faultAt("address", twice, show(rs.Name()))
		}
		return
	}
	text, ok := v.(string)
	if _, err := netip.ParseAddr(text); ok && err != nil {
		t.faultAt("address", "%s is neither an address nor a name: want an IPv4 or IPv6 address, or a name such as "+
			"\"web1.example.com\"", show(text))
		return
	}
	if rs.Address, ok = t.realserver("address", v, rs.Forward); !ok {
		return
	}
	if seen.add(rs.ID().String(), s.Endpoint(rs).String()) {
		t.faultAt("address", twice, show(rs.Name()))
	}
	r.realservers = append(r.realservers, located{t, "address", rs.Address})
	checkFamily(t, "address", s, rs)
}

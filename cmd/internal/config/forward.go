package config

import (
	"net/netip"
	"slices"

	"vstun/balancer"
	"vstun/balancer/method"
)

// readForward reads a forwarding method; absent is the result without the key.
func readForward(t *table, absent method.Kind) method.Kind { return readMethod(t, "forward", absent) }

func readMethod(t *table, key string, absent method.Kind) method.Kind {
	k, _ := method.ParseKind(t.word(key, absent.String(), method.Kinds()...)) // "": has been reported
	return k
}

const wantPort = "1 to 65535"

// readRealserverPort reads the port of a realserver of s; 0: the packet's own.
func readRealserverPort(t *table, s *Service, forward method.Kind) uint16 {
	port := uint16(t.integer("port", 0, 1, 65535, wantPort))
	if _, written := t.values["port"]; written {
		checkRealserverPort(t, "port", s, forward)
	}
	return port
}

// checkRealserverPort refuses a port that a realserver of s cannot have.
func checkRealserverPort(t *table, key string, s *Service, forward method.Kind) {
	switch {
	case forward != method.NAT:
		t.faultAt(key, "only nat changes the port of packets, and this realserver's method is %v: leave the port "+
			"out, or use nat", forward)
	case len(s.Ports) > 0 && !onePort(s.Ports):
		t.faultAt(key, "one port cannot stand for all of the service's ports: leave the port out, or write a service "+
			"for each port")
	}
}

// onePort reports whether there is one port.
func onePort(ports []PortRange) bool {
	return len(ports) == 1 && ports[0].First == ports[0].Last && ports[0] != balancer.EveryPort
}

// Endpoint returns where r, a realserver of s, gets its packets: its ID, with the service's port for a missing one,
// where there is one.
func (s *Service) Endpoint(r *RealserverRef) netip.AddrPort {
	if r.Port == 0 && onePort(s.Ports) {
		return netip.AddrPortFrom(r.Address, s.Ports[0].First)
	}
	return r.ID()
}

// realserver checks that a value is a realserver's address. A realserver of nat may be this host itself, by a loopback
// address: the kernel takes packets to 127.0.0.0/8 from another device if its sysctl route_localnet is set. It takes
// none to ::1 (RFC 4291, section 2.5.3).
func (t *table) realserver(key string, value any, forward method.Kind) (netip.Addr, bool) {
	s, _ := value.(string)
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || !a.IsLoopback() || a.Is4In6():
		return t.address(key, value)
	case a.Is6():
		t.faultAt(key, "%s gets no packet from a device: want another address of the director's host", show(s))
	case forward != method.NAT:
		t.faultAt(key, "%s is the director's own host, which only nat reaches: set forward = \"nat\"", show(s))
	default:
		return a, true
	}
	return netip.Addr{}, false
}

// checkFamily refuses a realserver of another family than a VIP of s. Only tunnels carry packets of one family over the
// other.
func checkFamily(t *table, key string, s *Service, r *RealserverRef) {
	if r.Forward == method.TUN {
		return
	}
	other := slices.IndexFunc(s.VIPs, func(vip netip.Addr) bool { return vip.Is4() != r.Address.Is4() })
	if other >= 0 {
		t.faultAt(key, "\"%v\" is an %s address and the VIP \"%v\" is not, and %v changes no family: want tun, or a "+
			"service of each family", r.Address, family(r.Address), s.VIPs[other], r.Forward)
	}
}

func family(a netip.Addr) string { return pick(a.Is4(), "IPv4", "IPv6") }

// readSorry reads the sorry server: an address, or with nat an address and a port.
func (r *serviceReader) readSorry(t *table, s *Service, tunnel Tunnel) {
	v, ok := t.value("sorry_server")
	_, hasForward := t.value("sorry_forward")
	if !ok {
		if hasForward {
			t.faultAt("sorry_forward", "there is no sorry_server: leave it out, or name one")
		}
		return
	}
	rs := RealserverRef{Forward: readMethod(t, "sorry_forward", s.Forward), Weight: 1}
	r.checkMethod(t, "sorry_forward", rs.Forward)
	written, _ := v.(string)
	if at, err := netip.ParseAddrPort(written); err == nil {
		v, rs.Port = at.Addr().String(), at.Port()
		if rs.Port == 0 {
			t.faultAt("sorry_server", "%s has port 0: want %s", show(written), wantPort)
			return
		}
	}
	text, _ := v.(string)
	if a, err := netip.ParseAddr(text); err == nil && a.Is4() && a.IsLoopback() && rs.Forward != method.NAT {
		t.faultAt("sorry_server", "%s is the director's own host, which only nat reaches: set sorry_forward = \"nat\"",
			show(written))
		return
	}
	if rs.Port != 0 {
		checkRealserverPort(t, "sorry_server", s, rs.Forward)
	}
	if rs.Address, ok = t.realserver("sorry_server", v, rs.Forward); !ok {
		return
	}
	r.realservers = append(r.realservers, located{t, "sorry_server", rs.Address})
	checkFamily(t, "sorry_server", s, &rs)
	rs.Tunnel = tunnel.readFor(t.child("sorry_server", nil, t.at.key("sorry_server")), rs.Forward)
	if sealed(rs.Encap) {
		r.sealed = append(r.sealed, located{t, "sorry_server", rs.Address})
	}
	s.Sorry = rs
}

// JoinSorry makes the sorry server one of the realservers if it gets its packets where that one does.
func (s *Service) JoinSorry() {
	if !s.HasSorry() {
		return
	}
	at := s.Endpoint(&s.Sorry)
	i := slices.IndexFunc(s.Realservers, func(r RealserverRef) bool { return s.Endpoint(&r) == at })
	if i >= 0 {
		r := &s.Realservers[i]
		s.Sorry.Port, s.Sorry.Forward, s.Sorry.Tunnel = r.Port, r.Forward, r.Tunnel
	}
}

// writtenID returns the ID that the values of a realserver's table give it. ok is false if they give it none.
func writtenID(values map[string]any) (id netip.AddrPort, ok bool) {
	written, _ := values["address"].(string)
	a, err := netip.ParseAddr(written)
	port, _ := values["port"].(int64)
	return netip.AddrPortFrom(a, uint16(port)), err == nil
}

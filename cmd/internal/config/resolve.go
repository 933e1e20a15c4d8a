package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/words"
)

// Resolve is the table resolve of a service: how the names of its realservers are resolved, and a name whose SRV
// records are realservers.
type Resolve struct {
	SRV      string         // as it is written; "": none
	Interval time.Duration  // 1 s to 24 h
	Server   netip.AddrPort // name server; the zero value: those of resolv.conf
	Family   string         // of the addresses of hosts that have both: "any", "ipv4" or "ipv6"
}

// The values of Resolve.Family. FamilyAny is the IPv4 addresses of a host that has some, else its IPv6 addresses.
const (
	FamilyAny = "any"
	FamilyV4  = "ipv4"
	FamilyV6  = "ipv6"
)

// FamilyOf returns the family of the addresses that r, a realserver with a name, can have. Only tunnels carry packets
// of one family over the other.
func (s *Service) FamilyOf(r *RealserverRef) string {
	if r.Forward == method.TUN || len(s.VIPs) == 0 {
		return s.Resolve.Family
	}
	return pick(s.VIPs[0].Is4(), FamilyV4, FamilyV6)
}

// HasNames reports whether the service has realservers whose addresses are the answers of name servers.
func (s *Service) HasNames() bool { return len(s.Named) > 0 || s.Resolve.SRV != "" }

// EveryRef returns the realservers of s, those with names included: one for all SRV records.
func (s *Service) EveryRef() []RealserverRef {
	all := slices.Concat(s.Realservers, s.Named)
	if s.Resolve.SRV != "" {
		all = append(all, s.Found)
	}
	return all
}

// Ours reports whether port is a port of the service.
func (s *Service) Ours(port uint16) bool {
	return slices.ContainsFunc(s.Ports, func(p PortRange) bool {
		return p == balancer.EveryPort || p.First <= port && port <= p.Last
	})
}

// OnePort reports whether the service has one port, which nat can replace.
func (s *Service) OnePort() bool { return onePort(s.Ports) }

// Name returns r's name: its address, or else its host, and its own port, where it has one.
func (r *RealserverRef) Name() string {
	switch {
	case r.Address.IsValid():
		return words.Realserver(r.ID())
	case r.Port != 0:
		return fmt.Sprintf("%s:%d", r.Host, r.Port)
	}
	return r.Host
}

const wantResolve = `a table such as { srv = "_http._tcp.web.example.com", interval = "30s" }`

// readResolve reads the table resolve, which may be missing.
func readResolve(service *table, s *Service) {
	t := service.table("resolve", wantResolve)
	r := Resolve{Interval: t.duration("interval", 30*time.Second, time.Second, 24*time.Hour, "1s to 24h"),
		Family: t.oneOf("family", FamilyAny, FamilyV4, FamilyV6), Server: readNameServer(t)}
	const want = `a name such as "_http._tcp.web.example.com"`
	if text, ok := t.text("srv", "", want); ok && text != "" {
		if fault := nameFault(text); fault != "" {
			t.faultAt("srv", "%s %s: want %s", show(text), fault, want)
		} else {
			r.SRV = text
		}
	}
	t.finish()
	s.Resolve = r
}

// readNameServer reads the address of a name server. The default port is 53.
func readNameServer(t *table) netip.AddrPort {
	const want = `an address such as "10.0.2.53", "10.0.2.53:5353" or "[2001:db8::53]:53"`
	text, ok := t.text("server", "", want)
	if !ok || text == "" {
		return netip.AddrPort{}
	}
	at, err := netip.ParseAddrPort(text)
	if a, none := netip.ParseAddr(text); none == nil {
		at, err = netip.AddrPortFrom(a, 53), nil
	}
	if a := at.Addr(); err != nil || at.Port() == 0 || a.IsMulticast() || a.IsUnspecified() || a.Is4In6() {
		t.faultAt("server", "%s is no address of a name server: want %s", show(text), want)
	}
	return at
}

// nameFault returns why a text is no name of a host or of SRV records, or "". Names of hosts have letters, digits and
// hyphens, and those of services underscores, too (RFC 1123, section 2.1; RFC 2782). One whose last part is a number
// would be a mistyped address.
func nameFault(text string) string {
	name := strings.TrimSuffix(text, ".")
	labels := strings.Split(name, ".")
	last := labels[len(labels)-1]
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.ContainsFunc(l, notOfName) {
			return "is not a name"
		}
	}
	switch {
	case len(name) > 253:
		return "has more than 253 characters"
	case !strings.ContainsFunc(last, func(r rune) bool { return r < '0' || r > '9' }):
		return "is not a name"
	}
	return ""
}

func notOfName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// writtenName returns the name that a realserver's table has as its address. ok is false for anything else.
func writtenName(values map[string]any) (name string, ok bool) {
	text, _ := values["address"].(string)
	return text, nameFault(text) == ""
}

// sameName returns the form of a realserver's name that is the same for all spellings.
func sameName(r *RealserverRef) string {
	return net.JoinHostPort(strings.ToLower(strings.TrimSuffix(r.Host, ".")), fmt.Sprint(r.Port))
}

// checkNamed refuses what a realserver with a name cannot be. The realserver is rs, of s, and key has the name.
func checkNamed(t *table, key string, s *Service, rs *RealserverRef) {
	if sealed(rs.Encap) {
		t.faultAt(key, "%s is a name, and realservers of wireguard are known by their address in the tunnel: want the "+
			"address", show(rs.Host))
	}
	if rs.Forward == method.TUN {
		return
	}
	if slices.ContainsFunc(s.VIPs, func(vip netip.Addr) bool { return vip.Is4() != s.VIPs[0].Is4() }) {
		t.faultAt(key, "%s is a name, and the VIPs are of both families, and %v changes no family: want tun, or a "+
			"service of each family", show(rs.Host), rs.Forward)
	} else if family := s.FamilyOf(rs); s.Resolve.Family != FamilyAny && s.Resolve.Family != family {
		t.faultAt(key, "resolve.family is %s, and %v changes no family: want %s, or leave it out", s.Resolve.Family,
			rs.Forward, family)
	}
}

// finishResolve makes the realserver of SRV records, and warns of a table resolve without effect. tunnel and check are
// the service's.
func (r *serviceReader) finishResolve(service *table, s *Service, tunnel Tunnel, check *Check) {
	_, written := service.values["resolve"]
	t := service.child("resolve", nil, service.at.key("resolve"))
	if s.Resolve.SRV == "" {
		if len(s.Named) == 0 {
			if s.Resolve = (Resolve{}); written {
				service.warnAt("resolve", "no realserver of this service has a name: leave it out, or add srv")
			}
		}
		return
	}
	s.Found = RealserverRef{Host: s.Resolve.SRV, Weight: 1, Forward: s.Forward, Check: check,
		DrainOnFailure: s.DrainOnFailure, Tunnel: tunnel.readFor(t.child("", nil, nil), s.Forward)}
	r.checkMethod(service, "forward", s.Forward)
	checkNamed(t, "srv", s, &s.Found)
}

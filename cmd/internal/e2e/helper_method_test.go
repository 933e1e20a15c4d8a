package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"vstun/cmd/internal/lab"
)

// method is a forwarding method, as in configurations.
type method string

const (
	tun method = "tun"
	dr  method = "dr"
	nat method = "nat"
)

// mapping is added to a service's port for the port of a nat realserver: 80 becomes 8080.
const mapping = 8000

// byMethod runs a test for each forwarding method and family, in parallel.
func byMethod(t *testing.T, test func(t *testing.T, m method, ipv6 bool)) {
	for _, m := range []method{tun, dr, nat} {
		for _, ipv6 := range []bool{false, true} {
			name := string(m) + "-ipv4"
			if ipv6 {
				name = string(m) + "-ipv6"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, m, ipv6)
			})
		}
	}
}

// byMethodOnce is byMethod with one family for each method, and with both in the long form.
func byMethodOnce(t *testing.T, test func(t *testing.T, m method, ipv6 bool)) {
	byMethod(t, func(t *testing.T, m method, ipv6 bool) {
		needFamily(t, m, ipv6)
		test(t, m, ipv6)
	})
}

// needFamily skips a test for the second family of a method, except in the long form.
func needFamily(t *testing.T, m method, ipv6 bool) {
	t.Helper()
	if ipv6 != (m == dr) {
		needFull(t, "the other family has run")
	}
}

// network returns the lab's network that a method needs.
func (m method) network() lab.Network {
	switch m {
	case dr:
		return lab.LAN
	case nat:
		return lab.NAT
	}
	return lab.Routed
}

// keys returns the method's keys of a service, as lines.
func (m method) keys() string {
	if m == tun {
		return "" // the default
	}
	return fmt.Sprintf("forward = %q\n", m)
}

// drained returns the flag of `director drain` that waits until no request is lost. With nat, which sees both
// directions, closed connections stay in TIME_WAIT for two minutes, as in IPVS: --wait would wait for them, too.
func (m method) drained() string {
	if m == nat {
		return "--active"
	}
	return "--wait"
}

// newMethodSite builds the hosts for a forwarding method, with IPv4 or IPv6, without programs.
func newMethodSite(t *testing.T, m method, ipv6 bool, webs int, links map[string]lab.Link) *site {
	t.Helper()
	s := newSiteBy(t, m, webs, links)
	s.speak(ipv6)
	return s
}

// realPort returns the port of the realservers for a port of the VIP.
func (s *site) realPort(port uint16) uint16 {
	if s.method == nat && !s.unmapped {
		return port + mapping
	}
	return port
}

// die ends a realserver suddenly. With tun its agent is killed, else the cable of its host is pulled.
func (s *site) die(i int) {
	s.t.Helper()
	if s.method == tun {
		s.agents[i].kill()
	} else {
		s.plug(s.Webs[i], false)
	}
}

// revive undoes die.
func (s *site) revive(i int) {
	s.t.Helper()
	if s.method == tun {
		s.agents[i].start()
	} else {
		s.plug(s.Webs[i], true)
	}
}

// plug connects a host's eth0 with the switch or pulls its cable.
func (s *site) plug(h *lab.Host, in bool) {
	s.t.Helper()
	if err := s.Plug(h, in); err != nil {
		s.t.Fatal(err)
	}
}

// behind returns the address of the server on h for a port of the VIP: on the VIP, or with nat on the host's own
// address.
func (s *site) behind(h *lab.Host, port uint16) string {
	if s.method == nat {
		return netip.AddrPortFrom(h.Addr, s.realPort(port)).String()
	}
	return s.at(port)
}

// realserverKeys returns the TOML keys of web server i as a realserver, for a service's port.
func (s *site) realserverKeys(i int, port string, more ...string) []string {
	keys := append([]string{fmt.Sprintf("address = %q", s.Webs[i].Addr)}, more...)
	if n, err := strconv.ParseUint(port, 10, 16); s.method == nat && !s.unmapped && err == nil {
		keys = append(keys, fmt.Sprintf("port = %d", s.realPort(uint16(n))))
	}
	return keys
}

// realserver is realserverKeys as a table.
func (s *site) realserver(i int, port string, more ...string) string {
	return "{ " + strings.Join(s.realserverKeys(i, port, more...), ", ") + " }"
}

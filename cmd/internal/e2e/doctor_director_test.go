package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestDoctorCountsNothing: the probes of the director's doctor do not change the director's counters.
func TestDoctorCountsNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.addIPv6()
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEchoAt(web, ":80")
	}
	text := ""
	for name, vip := range map[string]netip.Addr{"four": s.VIP, "six": s.VIP6} {
		text += tcpService(name, "[80, 81]", []netip.Addr{vip}, s.Webs[0].Addr, s.Webs[1].Addr6)
	}
	s.startDirectorWith(text)
	s.mustBeServedOnce()
	before := s.director.balance()
	for range 3 {
		s.director.examine()
	}
	s.mustBeServedOnce() // the kernel's earlier packets are counted by then
	after := s.director.balance()
	if !maps.Equal(before.Drops, after.Drops) || before.Overruns != after.Overruns {
		t.Errorf("dropped before %v, after %v", before.Drops, after.Drops)
	}
}

// TestDoctorOfRouter: the director's doctor names the destination of a VIP's packets if the router does not send them
// to the director.
func TestDoctorOfRouter(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	s := newSite(t, 1, nil)
	s.addIPv6()
	s.startAgents("")
	s.namedEchoAt(s.Webs[0], ":80")
	s.startDirectorWith(tcpService("four", "80", []netip.Addr{s.VIP}, s.Webs[0].Addr) +
		tcpService("six", "80", []netip.Addr{s.VIP6}, s.Webs[0].Addr6))
	// This comes first: once Linux has redirected a host, it limits the errors that it sends to it.
	s.shell(s.Router, "ip route del "+s.VIP.String()+"; ip -6 route del "+s.VIP6.String())
	s.director.mustName(
		symptom{"router", []string{"warning", "VIP " + s.VIP.String(), "10.0.2.1 does not send its packets here",
			"it has no route to it", "on 10.0.2.1: ip route replace 198.51.100.80 via 10.0.2.2"}},
		symptom{"router", []string{"warning", "VIP " + s.VIP6.String(), "it has no route to it"}})
	s.shell(s.Router, "ip route add "+s.VIP.String()+" via "+s.Webs[0].Addr.String())
	s.director.mustName(
		symptom{"router",
			[]string{"warning", "VIP " + s.VIP.String(), "another host gets them, and answers as the VIP"}},
		symptom{"router", []string{"VIP " + s.VIP6.String()}})
	s.shell(s.Router,
		fmt.Sprintf("ip route replace %s via %s; ip -6 route add %s via %s", s.VIP, s.Client.Addr, s.VIP6,
			s.Director.Addr6))
	s.director.mustName(symptom{"router", []string{"warning", "VIP " + s.VIP.String()}})
	s.shell(s.Router, "ip route replace "+s.VIP.String()+" via "+s.Director.Addr.String())
	s.director.mustFindNothing("routed again")
}

// tcpService returns the TOML of a service. port may have more keys in further lines.
func tcpService(name, port string, vips []netip.Addr, realservers ...netip.Addr) string {
	text := fmt.Sprintf("[[service]]\nname = %q\nvip = [%s]\nprotocol = \"tcp\"\nport = %s\n", name, quoted(vips), port)
	for _, r := range realservers {
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", r)
	}
	return text
}

// mustBeServedOnce sends a request, which must be answered.
func (s *site) mustBeServedOnce() {
	s.t.Helper()
	testkit.Within(s.t, "a client is served", 3*soon, func() bool {
		c, err := s.Client.Dial("tcp", netip.AddrPortFrom(s.VIP, 80).String())
		if err != nil {
			return false
		}
		defer c.Close()
		return true
	})
}

// heardOf returns a function that reports whether a Counted is of address a and has at least least packets.
func heardOf(a netip.Addr, least uint64) func(api.Counted) bool {
	return func(c api.Counted) bool { return c.Address == a.String() && c.Packets >= least }
}

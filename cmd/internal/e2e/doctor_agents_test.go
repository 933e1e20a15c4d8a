package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"vstun/testdata/testkit"
)

// TestDoctorAsksAgents: the director's doctor questions an agent through every tunnel, with both inner and outer
// families, and names the VIPs that the agent lacks.
func TestDoctorAsksAgents(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, nil)
	absent, absent6 := netip.MustParseAddr("198.51.100.81"), netip.MustParseAddr("2001:db8:100::81")
	s.addIPv6()
	s.startAgent(s.Webs[0], `encap = ["ipip", "gre", "gue"]`)
	s.startAgent(s.Webs[1], fmt.Sprintf("encap = [\"gre\", \"fou\"]\nencap_key = %d", gateKey))
	// The agent has more VIPs than an answer has room for, and another port of gue.
	vips, extra := s.vips, absent6
	for range 100 {
		extra = extra.Next()
		s.vips = append(s.vips, extra)
	}
	s.startAgent(s.Webs[2], "encap = [\"ipip\", \"gue\"]\nencap_port = 6081")
	s.vips = vips
	s.namedEchoAt(s.Webs[0], ":80")
	text, symptoms := "", []symptom(nil)
	for i, kinds := range [][]string{{"ipip", "gre", "gue"}, {"gre-key", "fou"}} {
		for n, kind := range kinds {
			encap := fmt.Sprintf("encap = %q", kind)
			if kind == "gre-key" {
				encap = fmt.Sprintf("encap = \"gre\"\nencap_key = %d", gateKey)
			}
			web := s.Webs[i]
			text += tcpService(kind, fmt.Sprintf("%d\n%s", 80+10*i+n, encap), []netip.Addr{absent, absent6}, web.Addr,
				web.Addr6)
			for _, address := range []netip.Addr{web.Addr, web.Addr6} {
				for _, vip := range []netip.Addr{absent, absent6} {
					symptoms = append(symptoms,
						symptom{"tunnels", []string{fmt.Sprintf("realserver %s (%s)", address, kind),
							fmt.Sprintf("its agent does not have the VIP %s", vip)}})
				}
			}
		}
	}
	for i, encap := range []string{"ipip", "gue"} {
		port := fmt.Sprintf("%d\nencap = %q", 100+i, encap)
		text += tcpService("third-"+encap, port, []netip.Addr{absent}, s.Webs[2].Addr)
	}
	symptoms = append(symptoms,
		symptom{"tunnels", []string{"(third-ipip)", "its agent does not have the VIP 198.51.100.81"}},
		symptom{"tunnels", []string{"(third-gue)", "its agent accepts gue at UDP port 6081, and not at 6080",
			"set the same encap_port there and here"}})
	s.addVIP(absent)
	if err := s.Router.Route(absent6, s.Director.Addr6); err != nil {
		t.Fatal(err)
	}
	s.startDirectorWith(text)
	s.director.mustName(symptoms...)
	for _, a := range s.agents[:2] {
		if st := a.intake(); st.Questions < 4 || !slices.ContainsFunc(st.RefusedDestinations, heardOf(absent, 1)) {
			t.Errorf("%s: %d questions, refused %+v", a, st.Questions, st.RefusedDestinations)
		}
	}
}

// TestDoctorOfWhatWasRefused: the agent's doctor always names the sources and destinations that it has refused since
// its start. It is an error if all packets were refused.
func TestDoctorOfWhatWasRefused(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	s := newSite(t, 3, nil)
	other, wrong := netip.MustParseAddr("198.51.100.81"), netip.MustParseAddr("10.0.2.9")
	right, vips := s.sources, s.vips
	s.sources = []netip.Addr{wrong}
	s.startAgent(s.Webs[0], "")
	s.sources, s.vips = right, []netip.Addr{other}
	s.startAgent(s.Webs[1], "")
	s.vips = vips
	s.startAgent(s.Webs[2], `encap = ["gre"]`)
	for _, web := range s.Webs {
		s.namedEchoAt(web, ":80")
	}
	s.startDirector("", service{"udp", "5353", "rr", []int{1, 1, 1}})
	asks := s.repeatUDP(s.Client, netip.AddrPortFrom(s.Client.Addr, 4711), netip.AddrPortFrom(s.VIP, 5353))
	more := s.repeatUDP(s.Client, netip.AddrPortFrom(s.Client.Addr, 4712), netip.AddrPortFrom(s.VIP, 5353))
	third := s.repeatUDP(s.Client, netip.AddrPortFrom(s.Client.Addr, 4713), netip.AddrPortFrom(s.VIP, 5353))
	testkit.Within(t, "both agents refuse packets", 3*soon, func() bool {
		return s.agents[0].intake().Drops["not_director"] > 2 && s.agents[1].intake().Drops["inner_destination"] > 2
	})
	s.agents[2].mustName(symptom{"encap", []string{"error", "protocol 4 comes from 10.0.2.2, and encap has no ipip",
		`add "ipip" to encap`}})
	asks()
	more()
	third()
	s.agents[0].mustName(symptom{"drops", []string{"error", "not_director", "10.0.2.2 is not in directors",
		`add "10.0.2.2" to directors in ` + s.agents[0].config, "refused since the start"}})
	s.agents[1].mustName(symptom{"drops", []string{"error", "inner_destination", "VIP 198.51.100.80 is not in vips",
		`add "198.51.100.80" to vips in ` + s.agents[1].config}})
	s.agents[2].mustFindNothing("without packets")
}

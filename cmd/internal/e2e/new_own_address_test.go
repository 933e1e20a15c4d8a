package e2e

import (
	"net/netip"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestNewOwnAddress: when a realserver gets an address while its agent runs, the agent refuses packets with that inner
// source within a moment, before the next look at all addresses.
func TestNewOwnAddress(t *testing.T) {
	s := newSite(t, 3, nil)
	s.startTunnelEnds()
	evil := s.newInjector(s.Webs[2])
	g := s.tunnelEnds()[0]
	for _, own := range []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd00:77::1")} {
		vip, version := s.VIP, 4
		if own.Is6() {
			vip, version = s.VIP6, 6
		}
		liar := &badPacket{end: g, packet: g.wrap(g.director, version, udpPacket(t, own, vip, 1234, trapPort, plea)),
			reason: "inner_source"}
		refused := func() uint64 { return g.agent.intake().Drops[liar.reason] }
		before := refused()
		evil.injectAll([]*badPacket{liar})
		if refused() != before {
			t.Errorf("a packet from %s was refused before that was the host's own", own)
		}
		if err := s.Webs[0].Own(own); err != nil {
			t.Fatal(err)
		}
		testkit.Within(t, own.String()+" is the host's own", 4*time.Second, func() bool {
			evil.injectAll([]*badPacket{liar})
			return refused() > before
		})
	}
}

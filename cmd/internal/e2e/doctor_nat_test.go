package e2e

import (
	"net/netip"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestDoctorOfNAT: the director's doctor finds a realserver of nat whose gateway is another host, a rule that leads
// replies past the director, and a firewall that drops what comes out of its device. It finds nothing on hosts without
// a fault.
func TestDoctorOfNAT(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	s := newNATSite(t, false, 2, nil, `
[[service]]
name = "dns"
vip = "VIP"
protocol = "udp"
port = 53
forward = "nat"
realserver = [ { address = "RS1" }, { address = "10.0.2.2" } ]

[connections]
keep = ""
`)
	for _, web := range s.Webs {
		s.namedEchoAt(web, ":8080")
	}
	for range 2 {
		s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	}
	s.director.mustName()

	// Requests pass the firewall twice. No packet is invalid: connection tracking sees both directions.
	s.shell(s.Director, `nft add table inet fw
nft add chain inet fw forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet fw forward ct state vmap '{ established : accept, invalid : drop }'
nft add rule inet fw forward oifname vs0 accept`)
	s.mend(s.director, s.director.mustName(symptom{"firewall", []string{"nftables chain inet fw forward",
		"replies and large requests of nat that come out of vs0", "nft insert rule inet fw forward iifname"}}))
	s.shell(s.Director, "nft add chain inet fw output '{ type filter hook output priority 0; policy drop; }'")
	s.mend(s.director, s.director.mustName(symptom{"firewall", []string{"nftables chain inet fw output",
		"requests to realservers of nat", `nft insert rule inet fw output oifname`}}))
	s.director.mustName()
	s.shell(s.Director, "nft delete table inet fw")

	rule := "ip rule add pref 5 from 10.0.3.11 ipproto tcp sport 8080 lookup main"
	s.shell(s.Director, rule)
	s.director.mustName(symptom{"replies", []string{"error", "realserver 10.0.3.11:8080 (web)",
		"its replies go to eth0, not to vs0", "from 10.0.3.11 iif eth1 ipproto tcp sport 8080"}})
	s.shell(s.Director, "ip rule del pref 5")

	// The director starts anew, and so do its counts.
	s.director.stop()
	s.director.start()
	s.shell(s.Webs[0], "ip route replace default via 10.0.3.9") // the insider, which forwards nothing
	for range 8 {
		c, err := s.dialFrom(anyPort(s.Client.Addr), s.at(80))
		if err == nil {
			c.Close()
		}
		if st := s.director.balance().Services[0].Realservers[0]; st.Forwarded.Packets >= 10 {
			break
		}
	}
	s.director.mustName(symptom{"replies", []string{"error", "realserver 10.0.3.11:8080 (web)",
		"and no reply has passed the director", "its default route does not lead to this host",
		"on 10.0.3.11: ip route replace default via 10.0.3.1"}})
	s.shell(s.Webs[0], "ip route replace default via 10.0.3.1")
	for begin := time.Now(); time.Since(begin) < soon; {
		if s.director.balance().Services[0].Realservers[0].Replies.Packets > 0 {
			break
		}
		if c, err := s.dialFrom(netip.AddrPortFrom(s.Client.Addr, 0), s.at(80)); err == nil {
			c.Close()
		}
	}
	s.director.mustName()

	// The gateway changes after replies. The counts have both.
	silence := symptom{"replies", []string{"error", "realserver 10.0.3.11:8080 (web)",
		"since its last reply has passed the director", "on 10.0.3.11: ip route replace default via 10.0.3.1"}}
	s.shell(s.Webs[0], "ip route replace default via 10.0.3.9")
	for end := time.Now().Add(4 * soon); time.Now().Before(end); {
		if s.director.balance().Services[0].Realservers[0].Unanswered >= 10 {
			break
		}
		if c, err := s.dialFrom(netip.AddrPortFrom(s.Client.Addr, 0), s.at(80)); err == nil {
			c.Close()
		}
	}
	s.director.mustName(silence)
	s.shell(s.Webs[0], "ip route replace default via 10.0.3.1")
	testkit.Within(t, "replies pass again", soon, func() bool {
		if c, err := s.dialFrom(netip.AddrPortFrom(s.Client.Addr, 0), s.at(80)); err == nil {
			c.Close()
		}
		return s.director.balance().Services[0].Realservers[0].Unanswered == 0
	})
	s.director.mustName()
}

package e2e

import (
	"fmt"
	"net"
	"testing"

	"github.com/miekg/dns"

	"vstun/testdata/testkit"
)

// TestCheckTypes makes checks of each network type through each tunnel, with both inner and outer families. All pass
// while the agent runs. Without it only direct checks pass.
func TestCheckTypes(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.addIPv6()
	s.startAgents("encap = [\"ipip\", \"gre\", \"gue\"]\nencap_key = 7\n")
	s.nginx(s.Webs[0])
	for _, vip := range s.vips {
		s.nameServer(net.JoinHostPort(vip.String(), "53"))
	}
	const times = `interval = "500ms", timeout = "500ms", rise = 2, fall = 3`
	toml, n := "", 0
	add := func(protocol, encap, check string) {
		for _, vip := range s.vips {
			for _, to := range []string{s.Webs[0].Addr.String(), s.Webs[0].Addr6.String()} {
				n++
				toml += fmt.Sprintf("[[service]]\nname = \"s%d\"\nvip = %q\nprotocol = %q\nport = %d\n%s\ncheck = { "+
					"%s, %s }\nrealserver = [ { address = %q } ]\n",
					n, vip, protocol, 10_000+n, encap, check, times, to)
			}
		}
	}
	for _, encap := range []string{`encap = "ipip"`, "encap = \"gre\"\nencap_key = 7", `encap = "gue"`} {
		add("tcp", encap, `type = "http", port = 80, body = "web1"`)
		add("tcp", encap, `type = "tcp", port = 80`)
		add("udp", encap, `type = "dns", port = 53, query = "www.example.com"`)
		add("udp", encap, `type = "ping"`)
	}
	through := n
	add("udp", `encap = "gue"`, `type = "ping", via = "direct"`)
	add("tcp", `encap = "gue"`, `type = "tcp", via = "direct", port = 80`)
	s.startDirectorWith(toml)
	all := func(what string, want func(service int) string) {
		t.Helper()
		said := ""
		defer func() {
			if said != "" {
				t.Logf("%s: but\n%s", what, said)
			}
		}()
		testkit.Within(t, what, 3*soon, func() bool {
			said = ""
			for i, svc := range s.director.balance().Services {
				if r := svc.Realservers[0]; r.Health != want(i) {
					said += fmt.Sprintf("%s %v %s over %s to %s is %s: %s\n", svc.Name, svc.VIPs, r.Check.Type, r.Encap,
						r.Address, r.Health, r.Check.Reason)
				}
			}
			return said == ""
		})
	}
	all("all are up", func(int) string { return "up" })
	s.agents[0].stop()
	all("only direct checks pass", func(i int) string {
		if i < through {
			return "down"
		}
		return "up"
	})
	s.agents[0].start()
	all("all are up again", func(int) string { return "up" })
}

// nameServer is a DNS server on the first web server that answers every query for an address.
func (s *site) nameServer(address string) {
	s.t.Helper()
	srv := &dns.Server{PacketConn: s.listenUDP(s.Webs[0], address), Handler: dns.HandlerFunc(func(w dns.ResponseWriter,
		q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if rr, err := dns.NewRR(q.Question[0].Name + " A 192.0.2.1"); err == nil {
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m) // the client notices
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ActivateAndServe() }() // ends with the socket
	s.t.Cleanup(func() { _ = srv.Shutdown(); <-done })
}

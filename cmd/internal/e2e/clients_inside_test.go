package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestNATClientsInside: a client in the realservers' subnet is answered by the realserver itself, from an address that
// it has not asked, and resets the connection. So is a realserver at another one. A realserver that gets its own
// request drops it, since its source is its own address. All as with IPVS (cmd/director/methods.md). They can use the
// realservers' own addresses.
func TestNATClientsInside(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newMethodSite(t, nat, ipv6, 2, nil)
		text := ""
		for i, web := range s.Webs {
			s.namedEchoAt(web, ":8080")
			text += fmt.Sprintf("[[service]]\nname = %q\nvip = %q\nprotocol = \"tcp\"\nport = %d\nforward = \"nat\"\n"+
				"realserver = [ { address = %q, port = 8080 } ]\n", web.Name, s.VIP, 80+i, web.Addr)
		}
		s.startDirectorWith(text)
		for _, c := range []struct{ client, server *lab.Host }{
			{s.Insider, s.Webs[0]}, {s.Webs[0], s.Webs[1]}, {s.Webs[0], s.Webs[0]},
		} {
			name := fmt.Sprintf("%s at %s", c.client.Name, c.server.Name)
			port := uint16(80)
			if c.server == s.Webs[1] {
				port = 81
			}
			packets := func(at *lab.Host, from, to netip.Addr) func() uint64 {
				return s.counter(t, at, lab.Filter{Source: from, Destination: to, Protocol: 6, Direction: lab.In})
			}
			asked, answered := packets(c.server, c.client.Addr, c.server.Addr),
				packets(c.client, c.server.Addr, c.client.Addr)
			replied := packets(c.client, s.VIP, c.client.Addr)
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() {
				conn, err := c.client.DialContext(ctx, "tcp", s.at(port))
				if err == nil {
					conn.Close()
				}
				result <- err
			}()
			testkit.Within(t, name+": the request arrives", soon, func() bool { return asked() > 0 })
			if c.client != c.server {
				testkit.Within(t, name+": the answer comes straight, and is reset", soon,
					func() bool { return answered() > 0 && asked() > 1 })
			}
			cancel()
			if err := testkit.Receive(t, name, result); err == nil {
				t.Errorf("%s: the connection is open", name)
			}
			if n := replied(); n > 0 {
				t.Errorf("%s: %d packets come from the VIP", name, n)
			}
			direct := s.dialAt(c.client, anyPort(c.client.Addr), netip.AddrPortFrom(c.server.Addr, 8080))
			if got := mustAnswer(t, direct); got != c.server.Name {
				t.Errorf("%s: at its own address %s answers", name, got)
			}
		}
		if n := len(s.connections("--state", "SYN_RECV")); n != 3 {
			t.Errorf("%d connections are half-open, want 3", n)
		}
		if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
			t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
		}
	})
}

// TestOwnVIP: a realserver of VS/TUN or VS/DR has the VIP. As a client of the VIP it is answered by its own server, and
// the director sees nothing of it, as with IPVS (cmd/director/methods.md).
func TestOwnVIP(t *testing.T) {
	t.Parallel()
	for _, m := range []method{tun, dr} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			testkit.Families(t, func(t *testing.T, ipv6 bool) {
				s := newMethodSite(t, m, ipv6, 2, nil)
				s.startAgents("")
				for _, web := range s.Webs {
					s.namedEcho(web, 80)
				}
				s.startDirectorWith(fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\n"+
					"port = 80\nscheduler = \"rr\"\n%srealserver = [ %s, %s ]\n", s.VIP, m.keys(),
					s.realserver(0, "80"), s.realserver(1, "80")))
				for _, web := range s.Webs {
					for range 2 {
						c, err := web.Dial("tcp", s.at(80))
						if err != nil {
							t.Fatal(err)
						}
						if got := mustAnswer(t, c); got != web.Name {
							t.Errorf("%s is answered by %s", web.Name, got)
						}
						c.Close()
					}
				}
				if all := s.connections(); len(all) != 0 {
					t.Errorf("the director has %v", all)
				}
				s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
				if n := len(s.connections()); n != 1 {
					t.Errorf("the director has %d connections of a client, want 1", n)
				}
			})
		})
	}
}

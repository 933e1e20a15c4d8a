package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestTAPAnswers: clients in the network and behind its router get the director's own answers, though its host has no
// route to them: echo replies, whole and in fragments, resets and ICMP errors.
func TestTAPAnswers(t *testing.T) {
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 1, false, nil)
		s.startTAP("", "")
		for _, h := range []*lab.Host{s.Insider, s.Client} {
			for _, size := range []int{56, 5000} {
				s.mustPing(h, size)
			}
			if c, err := h.Dial("tcp", s.at(81)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: a port without a service: %v, %v", h.Name, c, err)
			}
			c, err := h.Dial("udp", s.at(53))
			if err == nil {
				_, err = c.Write([]byte("hello"))
			}
			if err == nil {
				err = c.SetDeadline(time.Now().Add(soon))
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: a UDP port without a service: %v", h.Name, err)
			}
			c.Close()
		}
		if st := s.director.balance(); st.SendError != "" {
			t.Errorf("send error %q", st.SendError)
		}
	})
}

// mustPing pings the VIP from a host with this number of bytes.
func (s *site) mustPing(h *lab.Host, size int) {
	s.t.Helper()
	network, proto := "ip4:icmp", 1
	var echo, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	var there []byte
	if s.VIP.Is6() {
		network, proto, echo, reply = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
		there = icmp.IPv6PseudoHeader(h.Addr.AsSlice(), s.VIP.AsSlice())
	}
	c, err := h.ListenPacket(network, h.Addr.String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	body := &icmp.Echo{ID: 4711, Seq: size, Data: payload(size)}
	request, err := (&icmp.Message{Type: echo, Body: body}).Marshal(there)
	if err == nil {
		_, err = c.WriteTo(request, &net.IPAddr{IP: s.VIP.AsSlice()})
	}
	if err == nil {
		err = c.SetReadDeadline(time.Now().Add(soon))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	for buf := make([]byte, 1<<16); ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			s.t.Errorf("%s: a ping of %d bytes has no answer: %v", h.Name, size, err)
			return
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		if back := m.Body.(*icmp.Echo); from.String() != s.VIP.String() || back.Seq != size ||
			string(back.Data) != string(body.Data) {
			s.t.Errorf("%s: a ping of %d bytes is answered by %v", h.Name, size, from)
		}
		return
	}
}

// TestTAPTTL: the director lowers the TTL by one, as the kernel does for a TUN device, and answers a packet whose TTL
// is used up with time exceeded, from the VIP.
func TestTAPTTL(t *testing.T) {
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 1, false, nil)
		s.startAgents("")
		web := s.Webs[0]
		seen := s.hops(web)
		s.director = s.prepare(s.Director, "director")
		s.director.configure(strings.Replace(s.tapTOML("", "", s.VIP), "protocol = \"tcp\"\nport = 80",
			"protocol = \"udp\"\nport = 53", 1))
		s.director.start()
		for _, c := range []struct {
			from      *lab.Host
			ttl, left int
		}{{s.Insider, 64, 63}, {s.Insider, 2, 1}, {s.Client, 64, 62}, {s.Client, 3, 1}} {
			s.sendWithTTL(c.from, c.ttl)
			what := fmt.Sprintf("a datagram with TTL %d from %s", c.ttl, c.from.Name)
			if got := testkit.Receive(t, what, seen); got != c.left {
				t.Errorf("from %s with TTL %d: %d at the realserver, want %d", c.from.Name, c.ttl, got, c.left)
			}
		}
		for _, c := range []struct {
			from *lab.Host
			ttl  int
		}{{s.Insider, 1}, {s.Client, 2}} {
			if from := s.timeExceeded(c.from, c.ttl); from != s.VIP.String() {
				t.Errorf("%s with TTL %d: time exceeded from %q, want the VIP", c.from.Name, c.ttl, from)
			}
		}
		testkit.Within(t, "both are counted", soon, func() bool { return s.director.balance().Drops["ttl"] == 2 })
	})
}

// hops returns the TTLs of the datagrams that come to port 53 of the VIP at h.
func (s *site) hops(h *lab.Host) <-chan int {
	s.t.Helper()
	seen := make(chan int, 16)
	conn := s.listenUDP(h, s.at(53))
	four := ipv4.NewPacketConn(conn)
	read := func(buf []byte) (int, error) {
		_, cm, _, err := four.ReadFrom(buf)
		if err != nil || cm == nil {
			return 0, err
		}
		return cm.TTL, nil
	}
	var err error
	if s.VIP.Is4() {
		err = four.SetControlMessage(ipv4.FlagTTL, true)
	} else {
		p := ipv6.NewPacketConn(conn)
		err = p.SetControlMessage(ipv6.FlagHopLimit, true)
		read = func(buf []byte) (int, error) {
			_, cm, _, err := p.ReadFrom(buf)
			if err != nil || cm == nil {
				return 0, err
			}
			return cm.HopLimit, nil
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { // ends with the socket
		for {
			ttl, err := read(make([]byte, 100))
			if err != nil {
				return
			}
			seen <- ttl
		}
	}()
	return seen
}

// sendWithTTL sends a datagram to port 53 of the VIP, and returns its socket.
func (s *site) sendWithTTL(h *lab.Host, ttl int) net.Conn {
	s.t.Helper()
	c, err := h.Dial("udp", s.at(53))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	if s.VIP.Is6() {
		err = ipv6.NewConn(c).SetHopLimit(ttl)
	} else {
		err = ipv4.NewConn(c).SetTTL(ttl)
	}
	if err == nil {
		_, err = c.Write([]byte("hello"))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// timeExceeded sends a datagram with a TTL and returns the sender of the ICMP error about it.
func (s *site) timeExceeded(h *lab.Host, ttl int) string {
	s.t.Helper()
	network, proto, want := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeTimeExceeded)
	if s.VIP.Is6() {
		network, proto, want = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeTimeExceeded
	}
	c, err := h.ListenPacket(network, h.Addr.String())
	if err == nil {
		err = c.SetReadDeadline(time.Now().Add(soon))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	s.sendWithTTL(h, ttl)
	for buf := make([]byte, 2048); ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err.Error()
		}
		if m, err := icmp.ParseMessage(proto, buf[:n]); err == nil && m.Type == want {
			return from.String()
		}
	}
}

// TestTAPTunnels: tunnels leave by the host's routes. Answers about them reach the clients by the TAP device.
func TestTAPTunnels(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 2, true, nil)
		s.startAgent(s.Webs[0], "")
		s.startAgent(s.Webs[1], "encap = []")
		s.namedEchoAt(s.Webs[0], ":80")
		s.namedEchoAt(s.Webs[1], ":80")
		s.director = s.prepare(s.Director, "director")
		s.director.configure(fmt.Sprintf("[director]\ncontrol = %q\n%s[[service]]\nname = \"web\"\nvip = %q\n"+
			"protocol = \"tcp\"\nport = 80\nscheduler = \"rr\"\nrealserver = [ { address = %q }, { address = %q, "+
			"forward = \"dr\" } ]\n", s.director.socket, tapKeys, s.VIP, s.Webs[0].Addr, s.Webs[1].Addr))
		s.director.start()
		tunnelled := s.count(s.Director, "br0", lab.Filter{Destination: s.Webs[0].Addr, Direction: lab.Out})
		seen := map[string]int{}
		for _, h := range []*lab.Host{s.Client, s.Insider, s.Client, s.Insider} {
			c, err := h.Dial("tcp", s.at(80))
			if err != nil {
				t.Fatal(err)
			}
			server, err := askName(c, "hello")
			if err != nil {
				t.Error(err)
			}
			seen[server]++
			c.Close()
		}
		if seen["web1"] != 2 || seen["web2"] != 2 || tunnelled() == 0 {
			t.Errorf("answers are from %v, %d packets in tunnels", seen, tunnelled())
		}
	})
}

// TestTAPRelay: an ICMP error about a tunnel packet, which comes to the host, reaches the client by the TAP device.
func TestTAPRelay(t *testing.T) {
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 1, true, nil) // without an agent: its port of gue is closed
		s.director = s.prepare(s.Director, "director")
		s.director.configure(fmt.Sprintf("[director]\ncontrol = %q\n%s[[service]]\nname = \"dns\"\nvip = %q\n"+
			"protocol = \"udp\"\nport = 53\nencap = \"gue\"\nencap_checksum = true\n"+
			"realserver = [ { address = %q } ]\n", s.director.socket, tapKeys, s.VIP, s.Webs[0].Addr))
		s.director.start()
		for _, h := range []*lab.Host{s.Insider, s.Client} {
			c := s.sendWithTTL(h, 64)
			if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %v, want port unreachable", h.Name, err)
			}
		}
	})
}

// TestTAPChecks: with an address of the host in the network, checks find out whether realservers of VS/DR work, also
// behind a strict reverse-path filter. The host gets a rule and a table for them, and no route of the VIP in the main
// table.
func TestTAPChecks(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 2, true, nil)
		if err := s.Director.Sysctl("net.ipv4.conf.br0.rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
		before := observe(t, s.Director)
		s.startAgents("")
		servers := []*lab.Process{s.nginxProcess(s.Webs[0]), s.nginxProcess(s.Webs[1])}
		s.startTAP("", "check = { type = \"http\", "+quick+" }")
		s.awaitHealth("up up")
		for _, fact := range observe(t, s.Director) {
			if strings.HasPrefix(fact, "route table 254") && strings.Contains(fact, s.VIP.String()) {
				t.Errorf("the main table has %s", fact)
			}
		}
		begin := time.Now()
		if err := servers[0].Stop(); err != nil {
			t.Log(err)
		}
		s.awaitOut("a web server that ends", "down up", begin)
		for range 4 {
			resp, err := s.browser().Get("http://" + s.at(80))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		s.nginxProcess(s.Webs[0])
		s.awaitHealth("up up")
		s.director.stop()
		s.mustBeAsBefore("after the end", before)
	})
}

// TestTAPNeighbours: a realserver that does not answer ARP or neighbour discovery gets no clients until it answers
// again, and a realserver with another MAC address is found. A TAP device that is taken out of its bridge is put back.
func TestTAPNeighbours(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 2, false, nil)
		s.startTAPServers()
		s.startTAP("", "")
		serves := func(names ...string) bool {
			seen := map[string]bool{}
			for range 4 {
				c, err := s.Insider.Dial("tcp", s.at(80))
				if err != nil {
					return false
				}
				name, err := askName(c, "hello")
				c.Close()
				if err != nil {
					return false
				}
				seen[name] = true
			}
			all := len(seen) == len(names)
			for _, name := range names {
				all = all && seen[name]
			}
			return all
		}
		testkit.Within(t, "both serve", soon, func() bool { return serves("web1", "web2") })
		s.plug(s.Webs[0], false)
		const silentWithin = 15 * time.Second
		testkit.Within(t, "web1 is unreachable", silentWithin, func() bool {
			return strings.Contains(s.director.Output(), "on vs0") && serves("web2")
		})
		s.onLink(s.Webs[0], func(l netlink.Link) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0x77, 1})
		})
		s.plug(s.Webs[0], true)
		testkit.Within(t, "web1 serves again", silentWithin, func() bool { return serves("web1", "web2") })

		if err := s.Director.Do(func() error {
			vs0, err := netlink.LinkByName("vs0")
			if err != nil {
				return err
			}
			return netlink.LinkSetNoMaster(vs0)
		}); err != nil {
			t.Fatal(err)
		}
		testkit.Within(t, "vs0 is a port of br0 again", soon, func() bool { return serves("web1", "web2") })
	})
}

// TestTAPReload: a reload adds a VIP and removes one. Another host that has a VIP is an error.
func TestTAPReload(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 1, false, nil)
		first := s.VIP
		second, third := first.Next(), first.Next().Next()
		s.vips = append(s.vips, second)
		s.startTAPServers()
		s.give(s.Insider, third, unix.IFA_F_NODAD)
		s.director = s.prepare(s.Director, "director")
		s.director.configure(s.tapTOML("", "", first, third))
		got := run(t, s.Director, exec.Command(programPath("director"), "run", "-c", s.director.config))
		want := fmt.Sprintf("VIP %v: another host, with MAC address %s, answers for it on br0", third,
			s.mac(s.Insider, "eth0"))
		if got.code == 0 || !strings.Contains(got.stderr, want) {
			t.Errorf("exit status %d, %q; want %q", got.code, got.stderr, want)
		}
		s.director.configure(s.tapTOML("", "", first))
		s.director.start()
		s.mustServe(s.Client)
		s.director.configure(s.tapTOML("", "", second))
		s.mustReload()
		s.VIP = second
		s.mustServe(s.Client)
		if owners := s.owners(s.Insider, first); owners != nil {
			t.Errorf("a probe for the former VIP is answered by %v", owners)
		}
		s.director.configure(s.tapTOML("", "", second, third))
		if got := s.ask("reload"); got.code == 0 || !strings.Contains(got.stderr, want) {
			t.Errorf("reload: exit status %d, %q; want %q", got.code, got.stderr, want)
		}
		s.director.configure(s.tapTOML("announce = \"none\"\n", "", second))
		s.mustReload()
		if owners := s.owners(s.Insider, second); owners != nil {
			t.Errorf("with announce = \"none\" a probe is answered by %v", owners)
		}
		s.director.configure(strings.Replace(s.tapTOML("", "", second), "bridge = \"br0\"", "bridge = \"br1\"", 1))
		if got := s.ask("reload"); got.code == 0 || !strings.Contains(got.stderr, "bridge") {
			t.Errorf("reload of another bridge: exit status %d, %q", got.code, got.stderr)
		}
	})
}

// TestTAPBadBridge: a bridge that does not exist, or is none, is an error of one line, and nothing changes.
func TestTAPBadBridge(t *testing.T) {
	s := newTAPSite(t, false, 1, false, nil)
	s.director = s.prepare(s.Director, "director")
	before := observe(t, s.Director)
	for name, want := range map[string]string{"br1": "bridge br1: there is no such device", "eth0": "is no bridge"} {
		s.director.configure(strings.Replace(s.tapTOML("", "", s.VIP), "bridge = \"br0\"", "bridge = \""+name+"\"", 1))
		got := run(t, s.Director, exec.Command(programPath("director"), "run", "-c", s.director.config))
		if got.code == 0 || !strings.Contains(got.stderr, want) || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("exit status %d, %q; want %q", got.code, got.stderr, want)
		}
	}
	s.mustBeAsBefore("after refused starts", before)
}

// TestTAPSnooping: with a querier, switches and bridges that snoop on MLD pass solicitations only to members of their
// groups. The director is a member.
func TestTAPSnooping(t *testing.T) {
	t.Parallel()
	s := newTAPSite(t, true, 1, false, nil)
	// The querier counts after an interval, so the interval comes first.
	for _, setting := range [][]string{{"mcast_query_response_interval", "100"}, {"mcast_querier", "1"}} {
		s.command(s.Director, "", "ip", append([]string{"link", "set", "br0", "type", "bridge"}, setting...)...)
	}
	s.startTAPServers()
	s.startTAP("", "")
	s.awaitSnooping()
	s.forget(s.Insider)
	s.mustServe(s.Insider)
}

// awaitSnooping waits until br0 passes no datagram to vs0 whose group has no member.
func (s *site) awaitSnooping() {
	s.t.Helper()
	toGroup := func(group string) (send func(), passed func() uint64) {
		addr := netip.MustParseAddr(group)
		var c net.Conn
		testkit.Within(s.t, "a route to the group", soon, func() bool {
			err := s.Insider.Do(func() error {
				dev, err := net.InterfaceByName("eth0")
				if err != nil {
					return err
				}
				// By number: Go remembers the numbers of names, and in another namespace eth0 has another one.
				to := &net.UDPAddr{IP: addr.AsSlice(), Port: 9, Zone: strconv.Itoa(dev.Index)}
				c, err = net.DialUDP("udp", nil, to)
				return err
			})
			return err == nil
		})
		s.t.Cleanup(func() { c.Close() })
		return func() {
			if _, err := c.Write([]byte("hello")); err != nil {
				s.t.Fatal(err)
			}
		}, s.count(s.Director, "vs0", lab.Filter{Destination: addr, Direction: lab.Out})
	}
	// A bridge floods the group of all nodes. The solicited-node group is of no address.
	sendToMembers, members := toGroup("ff02::1:ffde:ad01")
	sendToAll, all := toGroup("ff02::1")
	testkit.Within(s.t, "br0 snoops", soon, func() bool {
		toMembers, toAll := members(), all()
		sendToMembers()
		sendToAll()
		testkit.Within(s.t, "the later datagram passes", soon, func() bool { return all() > toAll })
		return members() == toMembers
	})
}

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	protocol6 "golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// newNATSite starts a director whose service, on port 80 of the VIP, is at port 8080 of the web servers. more is TOML
// with further services; VIP stands for the VIP, and RS1 for the first web server's address.
func newNATSite(t *testing.T, ipv6 bool, webs int, links map[string]lab.Link, more string) *site {
	t.Helper()
	s := newMethodSite(t, nat, ipv6, webs, links)
	var servers []string
	for _, web := range s.Webs {
		servers = append(servers, fmt.Sprintf("{ address = %q, port = 8080 }", web.Addr))
	}
	s.startDirectorWith(strings.NewReplacer("VIP", s.VIP.String(), "RS1", s.Webs[0].Addr.String()).Replace(
		fmt.Sprintf(`
[[service]]
name = "web"
vip = "VIP"
protocol = "tcp"
port = 80
scheduler = "rr"
forward = "nat"
realserver = [ %s ]
%s`, strings.Join(servers, ", "), more)))
	return s
}

// TestNATOtherTraffic: what a realserver sends beside its replies arrives as it was sent, also if it looks like a
// reply; and so do packets that other hosts send to its own address.
func TestNATOtherTraffic(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newNATSite(t, ipv6, 1, nil, `
[[service]]
name = "dns"
vip = "VIP"
protocol = "udp"
port = 53
forward = "nat"
realserver = [ { address = "RS1", port = 5353 } ]
`)
		web := s.Webs[0]
		s.namedEchoAt(web, ":8080")
		s.namedEchoAt(s.Client, ":9000")
		client := netip.AddrPortFrom(s.Client.Addr, 9000)
		for _, port := range []uint16{0, 8081} {
			c := s.dialAt(web, netip.AddrPortFrom(web.Addr, port), client)
			if got := mustAnswer(t, c); got != "client" {
				t.Errorf("from port %d: %s answers", port, got)
			}
			if from := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); from != web.Addr {
				t.Errorf("from %v", from)
			}
		}
		// A connection from outside to the realserver's own address. Its answers are like replies, of no connection.
		direct := s.dialAt(s.Client, anyPort(s.Client.Addr), netip.AddrPortFrom(web.Addr, 8080))
		if got := mustAnswer(t, direct); got != "web1" {
			t.Errorf("%s answers at the realserver's own address", got)
		}
		// Datagrams, small and in fragments, from the port of replies and from another.
		echo := s.listenUDP(s.Client, netip.AddrPortFrom(s.Client.Addr, 9001).String())
		for _, port := range []uint16{5353, 5354} {
			own := s.listenUDP(web, netip.AddrPortFrom(web.Addr, port).String())
			for _, size := range []int{20, 4000} {
				sent := bytes.Repeat([]byte{byte(size), byte(port)}, size/2)
				if _, err := own.WriteTo(sent, echo.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				got, from := mustReceive(t, echo)
				if !bytes.Equal(got, sent) || from != netip.AddrPortFrom(web.Addr, port) {
					t.Errorf("%d bytes from %v arrive, want %d from port %d", len(got), from, size, port)
				}
			}
		}
		// The TTL of a ping is lowered once.
		const routers = 2
		if !s.pings(web, s.Client.Addr, routers+1) {
			t.Error("a ping needs a larger TTL than without the director")
		}
		if s.pings(web, s.Client.Addr, routers) {
			t.Error("a ping needs a smaller TTL than without the director")
		}
		if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
			t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
		}
	})
}

// pings reports whether a ping of h with this TTL is answered, and not reported as expired.
func (s *site) pings(h *lab.Host, to netip.Addr, ttl int) bool {
	s.t.Helper()
	network, setTTL := "ip4:icmp", func(c net.PacketConn) error { return ipv4.NewPacketConn(c).SetTTL(ttl) }
	var echo, reply, expired icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, ipv4.ICMPTypeTimeExceeded
	protocol := unix.IPPROTO_ICMP
	if to.Is6() {
		network = "ip6:ipv6-icmp"
		setTTL = func(c net.PacketConn) error { return protocol6.NewPacketConn(c).SetHopLimit(ttl) }
		echo, reply = protocol6.ICMPTypeEchoRequest, protocol6.ICMPTypeEchoReply
		expired, protocol = protocol6.ICMPTypeTimeExceeded, unix.IPPROTO_ICMPV6
	}
	c, err := h.ListenPacket(network, h.Addr.String())
	if err == nil {
		defer c.Close()
		err = errors.Join(setTTL(c), c.SetReadDeadline(time.Now().Add(soon)))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := (&icmp.Message{Type: echo, Body: &icmp.Echo{ID: 4711, Data: payload(56)}}).Marshal(nil)
	if err == nil {
		_, err = c.WriteTo(request, &net.IPAddr{IP: to.AsSlice()})
	}
	b := make([]byte, 2048)
	for err == nil {
		var n int
		if n, _, err = c.ReadFrom(b); err != nil {
			break
		}
		m, wrong := icmp.ParseMessage(protocol, b[:n])
		if wrong == nil && (m.Type == reply || m.Type == expired) {
			return m.Type == reply
		}
	}
	s.t.Fatalf("ping from %s to %v with a TTL of %d: %v", h.Name, to, ttl, err)
	return false
}

// dialAt connects from an address of h until the end of the test.
func (s *site) dialAt(h *lab.Host, from, to netip.AddrPort) net.Conn {
	s.t.Helper()
	var c net.Conn
	if err := h.Do(func() (err error) {
		c, err = (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: soon}).Dial("tcp", to.String())
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// mustReceive returns the next datagram, and its source.
func mustReceive(t *testing.T, c net.PacketConn) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 65536)
	if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	n, from, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	at := from.(*net.UDPAddr).AddrPort()
	return b[:n], netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// TestNATDatagrams: questions and answers, small and in fragments, are translated; an unreachable port is reported to
// the client, from the VIP.
func TestNATDatagrams(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newNATSite(t, ipv6, 1, nil, `
[[service]]
name = "dns"
vip = "VIP"
protocol = "udp"
port = [53, 54]
forward = "nat"
realserver = [ { address = "RS1" } ]
`)
		answers := s.listenUDP(s.Webs[0], netip.AddrPortFrom(s.Webs[0].Addr, 53).String())
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := answers.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = answers.WriteTo(b[:n], from) // the client notices
			}
		}()
		for _, size := range []int{0, 1, 1000, 1472, 1473, 4001, 20000} {
			c := s.dial("udp", 53)
			sent := bytes.Repeat([]byte{1, 2, 3, 5, 7, 11, 13}, size/7+1)[:size]
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 65536)
			if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
				t.Errorf("of %d bytes %d come back, %v", size, n, err)
			}
		}
		refused := s.dial("udp", 54)
		if _, err := refused.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := refused.SetReadDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		if _, err := refused.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a port without a server: %v, want connection refused", err)
		}
		if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
			t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
		}
	})
}

// TestNATPathMTU: uploads and downloads find the smaller MTU of either side by ICMP errors, which are translated.
func TestNATPathMTU(t *testing.T) {
	t.Parallel()
	for _, narrow := range []string{"client", "director", "lan", "web1"} {
		for _, offload := range []string{"auto", "off"} {
			t.Run(narrow+"-"+offload, func(t *testing.T) {
				t.Parallel()
				testkit.Families(t, func(t *testing.T, ipv6 bool) {
					links := map[string]lab.Link{}
					for _, name := range []string{"client", "director", "lan", "web1"} {
						links[name] = lab.Link{MTU: 9000, Segmented: true}
					}
					links[narrow] = lab.Link{MTU: 1400, Segmented: true}
					s := newMethodSite(t, nat, ipv6, 1, links)
					s.acceptUploadsAt(s.Webs[0], ":8080")
					s.startDirectorWith(fmt.Sprintf("director.offload = %q\n[[service]]\nname = \"web\"\n"+
						"vip = %q\nprotocol = \"tcp\"\nport = 80\nforward = \"nat\"\n"+
						"realserver = [ { address = %q, port = 8080 } ]\n", offload, s.VIP, s.Webs[0].Addr))
					size := short(2_000_000, 1_000_000)
					for _, up := range []bool{true, false} {
						c := s.dial("tcp", 80)
						if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
							t.Fatal(err)
						}
						if up {
							want := fmt.Sprintf("%d bytes, all as they should be", size)
							if answer, err := put(c, size); answer != want || err != nil {
								t.Errorf("upload: %q, %v", answer, err)
							}
						} else if err := pull(c, size); err != nil {
							t.Errorf("download: %v", err)
						}
					}
				})
			})
		}
	}
}

// TestLocalNode: the director's own host is a realserver, by its address and by 127.0.0.1. Clients may also use the
// server's own address.
func TestLocalNode(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newMethodSite(t, nat, ipv6, 1, nil)
		s.acceptUploadsAt(s.Director, netip.AddrPortFrom(s.Director.Addr, 8080).String())
		text := fmt.Sprintf(`
[[service]]
name = "own"
vip = %[1]q
protocol = "tcp"
port = 80
forward = "nat"
realserver = [ { address = %[2]q, port = 8080, check = { type = "tcp", interval = "100ms" } } ]
[[service]]
name = "udp"
vip = %[1]q
protocol = "udp"
port = [53, 54]
forward = "nat"
realserver = [ { address = %[2]q } ]
`, s.VIP, s.Director.Addr)
		ports := []uint16{80}
		if !ipv6 {
			ports = append(ports, 81)
			s.acceptUploadsAt(s.Director, "127.0.0.1:8081")
			text += fmt.Sprintf(`
[[service]]
name = "loopback"
vip = %q
protocol = "tcp"
port = 81
forward = "nat"
realserver = [ { address = "127.0.0.1", port = 8081 } ]
`, s.VIP)
		}
		before := s.observeAll()
		s.startDirectorWith(text)
		up := func() bool { return s.director.balance().Services[0].Realservers[0].Health == "up" }
		testkit.Within(t, "the check of the own server succeeds", soon, up)
		for _, port := range ports {
			for range 2 {
				c := s.dial("tcp", port)
				answer, err := put(c, 1_000_000)
				if answer != "1000000 bytes, all as they should be" || err != nil {
					t.Errorf("port %d: upload: %q, %v", port, answer, err)
				}
				if err := pull(s.dial("tcp", port), 1_000_000); err != nil {
					t.Errorf("port %d: download: %v", port, err)
				}
			}
		}
		own := s.dialAt(s.Client, anyPort(s.Client.Addr), netip.AddrPortFrom(s.Director.Addr, 8080))
		if err := pull(own, 100_000); err != nil {
			t.Errorf("at the server's own address: %v", err)
		}
		answers := s.listenUDP(s.Director, netip.AddrPortFrom(s.Director.Addr, 53).String())
		question := s.dial("udp", 53)
		for _, size := range []int{10, 3000} {
			if _, err := question.Write(bytes.Repeat([]byte("x"), size)); err != nil {
				t.Fatal(err)
			}
			b, from := mustReceive(t, answers)
			if _, err := answers.WriteTo(b, net.UDPAddrFromAddrPort(from)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 65536)
			if err := question.SetReadDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			if n, err := question.Read(got); n != size || err != nil || from.Addr() != s.Client.Addr {
				t.Errorf("UDP, from %v: %d bytes, %v; want %d", from, n, err, size)
			}
		}
		refused := s.dial("udp", 54)
		if _, err := refused.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := refused.SetReadDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		if _, err := refused.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a port without a server: %v, want connection refused", err)
		}
		if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
			t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
		}
		s.director.kill()
		s.director.start()
		testkit.Within(t, "the check of the own server succeeds", soon, up)
		if err := pull(s.dial("tcp", 80), 100_000); err != nil {
			t.Errorf("after a kill and a start: %v", err)
		}
		s.director.stop()
		mustBe(t, "after the end", before, s.observeAll())
	})
}

// TestNATFragments: requests and replies in fragments are translated, of TCP and of UDP. A reply's fragments have no
// port by which a rule could lead them to the director.
func TestNATFragments(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newStage(t, nat, ipv6)
		s.startOurs("")
		tcp := func(src, dst netip.AddrPort, l layers.TCP, n int) []byte {
			l.SrcPort, l.DstPort, l.Window = layers.TCPPort(src.Port()), layers.TCPPort(dst.Port()), 1000
			return build(t, s.ip(src.Addr(), dst.Addr(), layers.IPProtocolTCP), &l, gopacket.Payload(payload(n)))
		}
		udp := func(src, dst netip.AddrPort) []byte {
			return udpPacket(t, src.Addr(), dst.Addr(), src.Port(), dst.Port(), string(payload(600)))
		}
		web, dns := netip.AddrPortFrom(s.VIP, 80), netip.AddrPortFrom(s.VIP, 53)
		web1, dns1 := netip.AddrPortFrom(s.realserver, s.ports[0]), netip.AddrPortFrom(s.realserver, s.ports[1])
		client := netip.AddrPortFrom(s.client, 40000)
		for _, c := range []struct {
			name         string
			server       bool
			sent, wanted []byte
		}{
			{"a SYN", false, tcp(client, web, layers.TCP{SYN: true, Seq: 1}, 0),
				tcp(client, web1, layers.TCP{SYN: true, Seq: 1}, 0)},
			{"a SYN-ACK with data", true, tcp(web1, client, layers.TCP{SYN: true, ACK: true, Seq: 5, Ack: 2}, 600),
				tcp(web, client, layers.TCP{SYN: true, ACK: true, Seq: 5, Ack: 2}, 600)},
			{"a request", false, tcp(client, web, layers.TCP{ACK: true, Seq: 2, Ack: 606}, 600),
				tcp(client, web1, layers.TCP{ACK: true, Seq: 2, Ack: 606}, 600)},
			{"a datagram", false, udp(client, dns), udp(client, dns1)},
			{"its answer", true, udp(dns1, client), udp(dns, client)},
		} {
			from, to := s.clientEnd, s.webEnd
			if c.server {
				from, to = to, from
			}
			for _, f := range fragments(c.sent, 200) {
				from.send(f)
			}
			mustArrive(t, to, c.name, c.wanted)
		}
		if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
			t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
		}
	})
}

// mustArrive waits for a packet, which may come in fragments. Its TTL and ID may differ from the wanted packet's.
func mustArrive(t *testing.T, at *wireEnd, name string, wanted []byte) {
	t.Helper()
	var got []byte
	whole := reassembler{}
	testkit.Within(t, name+" arrives", soon, func() bool {
		for _, b := range at.received() {
			if b := whole.add(b); b != nil {
				got = b
			}
		}
		return got != nil
	})
	header := parseIP(wanted).header
	if !bytes.Equal(got[header:], wanted[header:]) || parseIP(got).src != parseIP(wanted).src ||
		destination(got) != destination(wanted) {
		t.Errorf("%s: %x arrives, want %x", name, got, wanted)
	}
}

// fragments returns the packet b, without options, in fragments with n bytes each, a multiple of 8.
func fragments(b []byte, n int) (all [][]byte) {
	header := 20
	if b[0]>>4 == 6 {
		header = 40
	}
	body := b[header:]
	for at := 0; at == 0 || at < len(body); at += n {
		part, more := body[at:min(at+n, len(body))], uint16(0)
		if at+n < len(body) {
			more = 1
		}
		f := slices.Clone(b[:header])
		if header == 20 {
			binary.BigEndian.PutUint16(f[2:], uint16(20+len(part)))
			binary.BigEndian.PutUint16(f[4:], 4711)
			binary.BigEndian.PutUint16(f[6:], more<<13|uint16(at/8))
			f = append(f, part...)
			fixChecksum(f)
		} else {
			f[6] = 44 // fragment header (RFC 8200, section 4.5)
			binary.BigEndian.PutUint16(f[4:], uint16(8+len(part)))
			f = append(f, b[6], 0)
			f = binary.BigEndian.AppendUint16(f, uint16(at)|more)
			f = append(binary.BigEndian.AppendUint32(f, 4711), part...)
		}
		all = append(all, f)
	}
	return all
}

// reassembler puts one packet together, whose fragments come in order.
type reassembler struct{ b []byte }

// add returns the packet if p is one or completes it, else nil.
func (r *reassembler) add(p []byte) []byte {
	if p[0]>>4 == 4 {
		offset := binary.BigEndian.Uint16(p[6:])
		if offset&0x3fff == 0 {
			return p
		}
		if offset&0x1fff == 0 {
			r.b = slices.Clone(p[:20])
		}
		if r.b = append(r.b, p[20:]...); offset&0x2000 == 0 {
			return r.b
		}
		return nil
	}
	if p[6] != 44 {
		return p
	}
	offset := binary.BigEndian.Uint16(p[42:])
	if offset&^7 == 0 {
		r.b = slices.Clone(p[:40])
	}
	if r.b = append(r.b, p[48:]...); offset&1 == 0 {
		return r.b
	}
	return nil
}

// TestNATMasquerade: the director's host masquerades its realservers' own traffic, which passes by, and drops what
// connection tracking takes for invalid: connections that it has seen in parts, or whose timeout is over. They stay out
// of the fast path, also if they begin before the director has seen that its host tracks connections.
func TestNATMasquerade(t *testing.T) {
	t.Parallel()
	needTool(t, "nft", "nftables")
	for _, seen := range []bool{true, false} {
		t.Run(map[bool]string{true: "seen", false: "at once"}[seen], func(t *testing.T) {
			t.Parallel()
			testMasquerade(t, seen)
		})
	}
}

func testMasquerade(t *testing.T, seen bool) {
	s := newNATSite(t, false, 1, nil, `
[[service]]
name = "dns"
vip = "VIP"
protocol = "udp"
port = 53
forward = "nat"
realserver = [ { address = "RS1", port = 5353 } ]
`)
	web := s.Webs[0]
	// The client knows no route to the realservers, as on the Internet.
	s.shell(s.Client, "ip route add blackhole 10.0.3.0/24")
	s.acceptUploadsAt(web, ":8080")
	s.namedEchoAt(s.Client, ":9000")
	s.shell(s.Director, "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1 "+
		"net.netfilter.nf_conntrack_tcp_timeout_unacknowledged=2 net.netfilter.nf_conntrack_tcp_timeout_established=5")
	s.shell(s.Director, "nft add table ip nat && "+
		"nft 'add chain ip nat post { type nat hook postrouting priority 100; }' && "+
		"nft add rule ip nat post oifname eth0 ip saddr 10.0.3.0/24 masquerade && nft add table inet f && "+
		"nft 'add chain inet f forward { type filter hook forward priority 0; }' && "+
		"nft add rule inet f forward ct state invalid drop")
	fast := s.director.balance().FastPath.On
	if fast && seen {
		s.seesTracking()
	}
	own := s.dialAt(web, anyPort(web.Addr), netip.AddrPortFrom(s.Client.Addr, 9000))
	if got := mustAnswer(t, own); got != "client" {
		t.Errorf("%s answers", got)
	}
	for range 3 {
		answer, err := put(s.dial("tcp", 80), 1_000_000)
		if answer != "1000000 bytes, all as they should be" || err != nil {
			t.Errorf("upload: %q, %v", answer, err)
		}
		if err := pull(s.dial("tcp", 80), 50_000_000); err != nil {
			t.Errorf("download: %v", err)
		}
	}
	if err := pull(slowConn{s.dial("tcp", 80)}, 50_000_000); err != nil {
		t.Errorf("download for longer than a timeout of connection tracking: %v", err)
	}
	if n := s.director.balance().FastPath.Taken.Packets; n > 0 {
		t.Errorf("%d packets took the fast path", n)
	}
	if fast {
		s.seesTracking()
	}
	// The manual's remedy for pings: the kernel would track them on their way to the director's device.
	s.shell(s.Director, "nft add table ip vstun && "+
		"nft 'add chain ip vstun pre { type filter hook prerouting priority raw; }' && nft add rule ip vstun pre "+
		"iifname eth1 icmp type echo-request fib daddr type != local notrack")
	if !s.pings(web, s.Client.Addr, 9) {
		t.Error("a ping of a realserver expires")
	}
}

// slowConn is a connection whose reader gets 64 KB at most in 5 ms.
type slowConn struct{ net.Conn }

func (c slowConn) Read(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return c.Conn.Read(p[:min(len(p), 1<<16)])
}

// seesTracking waits until the director has seen that its host tracks connections.
func (s *site) seesTracking() {
	s.t.Helper()
	const reason = "this host tracks connections"
	testkit.Eventually(s.t, "the director has seen that connections are tracked", func() bool {
		return strings.Contains(s.director.balance().FastPath.Reason, reason)
	})
	if text := s.ask("doctor").stdout; !strings.Contains(text, reason) {
		s.t.Errorf("doctor: %s", text)
	}
}

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/encap/wireguard"
	"vstun/testdata/testkit"
)

// peerTunnel is a point-to-point tunnel between the director's host and web1.
type peerTunnel struct {
	name   string
	device string // tun or tap
	encap  string
	more   string // further keys
	six    bool   // it goes over IPv6
	number int    // of its addresses: 10.8.N.1/30 and fd08:N::1/64, and .2 and ::2
}

// peerTunnels returns every kind of tunnel, over IPv4 and over IPv6. Those of WireGuard have one peer, over IPv6 if six
// is set.
func peerTunnels(six bool) (all []peerTunnel) {
	add := func(name, device, encap, more string, families ...bool) {
		for _, six := range families {
			family := 4
			if six {
				family = 6
			}
			all = append(all, peerTunnel{fmt.Sprintf("%s-%s-%d", device, name, family), device, encap, more, six,
				len(all) + 1})
		}
	}
	add("ipip", "tun", "ipip", "", false, true)
	add("gre", "tun", "gre", "", false, true)
	add("key", "tun", "gre", "key = 4711", false, true)
	add("gue", "tun", "gue", "", false, true)
	add("fou", "tun", "fou", "encap_port = 5555", false, true)
	add("gre", "tap", "gre", "", false, true)
	add("key", "tap", "gre", "key = 4712", false, true)
	add("gue", "tap", "gue", "", false, true)
	add("fou", "tap", "fou", "encap_port = 4754", false, true)
	add("wg", "tun", "wireguard", "", six)
	add("wg", "tap", "wireguard", "", six)
	return all
}

// overhead returns the bytes that p adds to an IP packet, WireGuard's and an Ethernet header included.
func (p *peerTunnel) overhead() int {
	n := map[string]int{"ipip": 0, "gre": 4, "gue": 12, "fou": 8, "wireguard": 60}[p.encap] + 20
	if p.six {
		n += 20
		if p.encap == "wireguard" {
			n += 20 // of WireGuard's own header
		}
	}
	if strings.HasPrefix(p.more, "key") {
		n += 4
	}
	if p.device == "tap" {
		n += 14
		if p.encap != "gre" {
			n += 4
		}
	}
	return n
}

// mtu returns the MTU of p's device over a link of an MTU. IPv6 needs 1,280 bytes.
func (p *peerTunnel) mtu(link int) int { return max(link-p.overhead(), 1280) }

// inner returns the addresses of end 1 or 2 in p.
func (p *peerTunnel) inner(end int) (four, six netip.Addr) {
	return netip.MustParseAddr(fmt.Sprintf("10.8.%d.%d", p.number, end)),
		netip.MustParseAddr(fmt.Sprintf("fd08:%x::%d", p.number, end))
}

// peerSite is a site with tunnels between the director's host, end 1, and web1, end 2.
type peerSite struct {
	*sealedSite
	tunnels []peerTunnel
	six     bool // WireGuard goes over IPv6
	plain   bool // without offloads
}

// toml returns the tables of the tunnels at an end, with [wireguard].
func (s *peerSite) toml(end int) string {
	hosts := []*lab.Host{s.Director, s.Webs[0]}
	own, far := hosts[end-1], hosts[2-end]
	text := fmt.Sprintf("[wireguard]\nprivate_key = %q\n", s.keyFile(own))
	for i := range s.tunnels {
		p := &s.tunnels[i]
		local, remote := own.Addr, far.Addr
		if p.six {
			local, remote = own.Addr6, far.Addr6
		}
		more := p.more
		if p.encap == "wireguard" {
			local, remote = inPeerTunnel(s.six, end), inPeerTunnel(s.six, 3-end)
			at := netip.AddrPortFrom(far.Addr, 51820)
			if s.six {
				at = netip.AddrPortFrom(far.Addr6, 51820)
			}
			more += fmt.Sprintf("wireguard = { public_key = %q, endpoint = \"%v\" }", s.keys[far.Name].Public(), at)
		}
		four, six := p.inner(end)
		text += fmt.Sprintf("[[tunnel]]\nname = %q\ndevice = %q\nencap = %q\nlocal = \"%v\"\nremote = \"%v\"\n"+
			"addresses = [\"%v/30\", \"%v/64\"]\n%s\n", p.name, p.device, p.encap, local, remote, four, six, more)
	}
	return text
}

// inPeerTunnel is the address of an end inside WireGuard.
func inPeerTunnel(six bool, end int) netip.Addr {
	if six {
		return netip.MustParseAddr(fmt.Sprintf("fd99::%d", end))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", end))
}

// newPeerSite makes a site over links of an MTU, without programs.
func newPeerSite(t *testing.T, mtu int, six, plain bool) *peerSite {
	t.Helper()
	base := newSite(t, 1, map[string]lab.Link{"web1": {MTU: mtu}, "director": {MTU: mtu}})
	s := &peerSite{sealedSite: &sealedSite{base, map[string]wireguard.Key{}}, six: six, plain: plain,
		tunnels: peerTunnels(six)}
	s.addIPv6()
	s.newKey(s.Director)
	s.newKey(s.Webs[0])
	return s
}

// offload is a line of [director] and [realserver].
func (s *peerSite) offload() string {
	if s.plain {
		return "offload = \"off\"\n"
	}
	return ""
}

// siteTOML is the configuration of a realserver's agent that has tunnels alone.
func (s *peerSite) siteTOML(end int, socket string) string {
	return fmt.Sprintf("[realserver]\nencap = []\ncontrol = %q\n%s%s", socket, s.offload(), s.toml(end))
}

// start starts a director at end 1, and an agent at end 2.
func (s *peerSite) start() (director, agent *program) {
	s.t.Helper()
	agent = s.prepare(s.Webs[0], "realserver")
	agent.configure(s.siteTOML(2, agent.socket))
	agent.start()
	director = s.prepare(s.Director, "director")
	director.configure(fmt.Sprintf("[director]\ncontrol = %q\n%s[[service]]\nname = \"web\"\nvip = \"%v\"\nprotocol = "+
		"\"tcp\"\nport = 80\nrealserver = [{ address = \"%v\" }]\n%s", director.socket, s.offload(), s.VIP,
		s.Webs[0].Addr, s.toml(1)))
	director.start()
	return director, agent
}

// TestPeerTunnels sends uploads and downloads, byte-exact, through every kind of point-to-point tunnel over both
// families with both families inside, with and without offloads, over links of 1,500 and 1,400 bytes. A director is at
// one end, and an agent at the other. With VSTUN_FULL=1 (`make tunnels`) there is more to send, and every combination.
func TestPeerTunnels(t *testing.T) {
	for _, plain := range []bool{false, true} {
		for _, mtu := range []int{1500, 1400} {
			name := fmt.Sprintf("auto-%d", mtu)
			if plain {
				name = fmt.Sprintf("off-%d", mtu)
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if plain != (mtu == 1500) {
					needFull(t, "each MTU, and each kind of device, runs already")
				}
				testPeerTunnels(t, mtu, plain)
			})
		}
	}
}

func testPeerTunnels(t *testing.T, mtu int, plain bool) {
	s := newPeerSite(t, mtu, mtu == 1400, plain)
	director, agent := s.start()
	s.acceptUploadsAt(s.Webs[0], ":8001")
	size := long(100_000_000, 2_000_000, 500_000)
	for i := range s.tunnels {
		p := &s.tunnels[i]
		four, six := p.inner(2)
		s.mustTransferIn(t, p.name, four, size, p.mtu(mtu)-40)
		s.mustTransferIn(t, p.name, six, size, p.mtu(mtu)-60)
	}
	s.mustBeUp(t, mtu, "director", func() []api.Tunnel { return director.balance().Tunnels })
	s.mustBeUp(t, mtu, "agent", func() []api.Tunnel { return agent.intake().Tunnels })
}

// mustBeUp checks the status of all tunnels at an end, over a link of an MTU.
func (s *peerSite) mustBeUp(t *testing.T, mtu int, end string, status func() []api.Tunnel) {
	t.Helper()
	testkit.Eventually(t, "packets of all tunnels have been seen", func() bool {
		return !slices.ContainsFunc(status(), func(st api.Tunnel) bool { return st.Heard == nil })
	})
	all := status()
	if len(all) != len(s.tunnels) {
		t.Fatalf("%s: %d tunnels, want %d", end, len(all), len(s.tunnels))
	}
	for i, is := range all {
		p := &s.tunnels[i]
		if is.Name != p.name || is.State != "up" || is.MTU != p.mtu(mtu) || len(is.Drops) > 0 ||
			is.In.Packets == 0 || is.Out.Packets == 0 || is.SendError != "" {
			t.Errorf("%s: %+v, want %s with MTU %d, without drops", end, is, p.name, p.mtu(mtu))
		}
	}
}

// mustTransferIn sends n bytes from the director's host to an address inside a tunnel, and gets them back. mss is the
// connection's, without options.
func (s *peerSite) mustTransferIn(t *testing.T, name string, to netip.Addr, n, mss int) {
	t.Helper()
	for _, up := range []bool{true, false} {
		var begin time.Time
		testkit.Eventually(t, name+" carries connections", func() bool {
			conn, err := s.Director.Dial("tcp", netip.AddrPortFrom(to, 8001).String())
			if err != nil {
				return false
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Minute + time.Duration(n/500_000)*time.Second)); err != nil {
				t.Fatal(err)
			}
			const options = 12 // timestamps
			if got := sendMSS(t, conn); got != mss-options {
				t.Errorf("%s to %v: segments have %d bytes, want %d", name, to, got, mss-options)
			}
			begin = time.Now()
			if !up {
				if err := pull(conn, n); err != nil {
					t.Errorf("%s to %v: download: %v", name, to, err)
				}
				return true
			}
			answer, err := put(conn, n)
			if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
				t.Errorf("%s to %v: the server answers %q, %v; want %q", name, to, answer, err, want)
			}
			return true
		})
		t.Logf("%s to %v, up %v: %.0f Mbit/s", name, to, up, float64(n)*8/1e6/time.Since(begin).Seconds())
	}
}

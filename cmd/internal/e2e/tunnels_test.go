package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
)

// tunnel is a tunnel with its own service, on both VIPs, with one realserver.
type tunnel struct {
	name      string
	keys      string // of its service
	port      uint16
	web       *lab.Host
	address   netip.Addr // of the realserver, and with it the outer header's family
	protocols [2]uint8   // of the outer header, with IPv4 and with IPv6 inside
}

// tunnels returns every tunnel, with and without its options, over IPv4 and over IPv6. An agent takes either gue or
// fou, and gre with one key or without: so web1 has some of them, and web2 the others.
func (s *site) tunnels() (all []tunnel) {
	for _, kind := range []struct {
		name, keys string
		web        int
		protocols  [2]uint8
	}{
		{"ipip", `encap = "ipip"`, 0, [2]uint8{4, 41}},
		{"gre", `encap = "gre"`, 0, [2]uint8{47, 47}},
		{"gre-key", `encap = "gre"
encap_key = 4711
encap_checksum = true`, 1, [2]uint8{47, 47}},
		{"gue", `encap = "gue"`, 0, [2]uint8{17, 17}},
		{"gue-checksum", `encap = "gue"
encap_checksum = true`, 0, [2]uint8{17, 17}},
		{"fou", `encap = "fou"`, 1, [2]uint8{17, 17}},
	} {
		web := s.Webs[kind.web]
		for _, address := range []netip.Addr{web.Addr, web.Addr6} {
			name := kind.name + "-over-4"
			if address.Is6() {
				name = kind.name + "-over-6"
			}
			all = append(all, tunnel{name, kind.keys, uint16(8000 + len(all)), web, address, kind.protocols})
		}
	}
	return all
}

// startTunnels starts the programs for all tunnels, with further keys of [director] and [realserver], and a server for
// uploads behind each.
func (s *site) startTunnels(more string) {
	s.t.Helper()
	s.addIPv6()
	s.startAgent(s.Webs[0], more+"\nencap = [\"ipip\", \"gre\", \"gue\"]")
	s.startAgent(s.Webs[1], more+"\nencap = [\"gre\", \"fou\"]\nencap_key = 4711")
	text := "director." + more + "\n"
	for _, to := range s.tunnels() {
		text += fmt.Sprintf("[[service]]\nname = %q\nvip = [%s]\nprotocol = \"tcp\"\nport = %d\n%s\nrealserver = [ "+
			"{ address = %q } ]\n",
			to.name, quoted([]netip.Addr{s.VIP, s.VIP6}), to.port, to.keys, to.address)
		s.acceptUploadsAt(to.web, fmt.Sprintf(":%d", to.port))
	}
	s.startDirectorWith(text)
}

// TestTunnels sends uploads, byte-exact, through every tunnel over IPv4 and IPv6 with IPv4 and IPv6 inside, with and
// without offloads at both ends, over links of 1,500, 1,400 and 9,000 bytes to the realservers. With VSTUN_FULL=1
// (`make uploads`) each has 100 MB. That takes minutes, and needs a longer -timeout.
func TestTunnels(t *testing.T) {
	for _, offload := range []string{"auto", "off"} {
		for _, mtu := range []int{1500, 1400, 9000} {
			t.Run(fmt.Sprintf("%s-%d", offload, mtu), func(t *testing.T) {
				t.Parallel()
				size := long(100_000_000, 2_000_000, 1_000_000)
				s := newSite(t, 2, map[string]lab.Link{"web1": {MTU: mtu}, "web2": {MTU: mtu}})
				s.startTunnels(fmt.Sprintf("offload = %q", offload))
				t.Run("upload", func(t *testing.T) { // returns when all of its parts have
					for _, to := range s.tunnels() {
						for i, vip := range []netip.Addr{s.VIP, s.VIP6} {
							t.Run(fmt.Sprintf("%s-inner-%d", to.name, 4+2*i), func(t *testing.T) {
								t.Parallel()
								s.mustTakeUpload(t, to, vip, to.protocols[i], size)
							})
						}
					}
				})
				st := s.director.balance()
				if delete(st.Drops, "too_big"); len(st.Drops) != 0 {
					t.Errorf("the director dropped %v", st.Drops)
				}
				for _, agent := range s.agents {
					if in := agent.intake(); len(in.Drops) != 0 {
						t.Errorf("%s refused %v", agent, in.Drops)
					}
				}
			})
		}
	}
}

// mustTakeUpload sends n bytes through a VIP and a tunnel, in packets with this outer protocol.
func (s *site) mustTakeUpload(t *testing.T, to tunnel, vip netip.Addr, protocol uint8, n int) {
	t.Helper()
	source := s.Director.Addr
	if to.address.Is6() {
		source = s.Director.Addr6
	}
	wrapped, err := to.web.Count("eth0", lab.Filter{Source: source, Destination: to.address, Protocol: protocol,
		Direction: lab.In})
	if err != nil {
		t.Fatal(err)
	}
	defer wrapped.Close()
	conn, err := s.Client.Dial("tcp", netip.AddrPortFrom(vip, to.port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute + time.Duration(n/1_000_000)*time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := put(conn, n)
	if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
		t.Errorf("the server answers %q, %v; want %q", answer, err, want)
	}
	if packets, err := wrapped.Packets(); err != nil || packets == 0 {
		t.Errorf("%d packets came with protocol %d in the outer header, %v", packets, protocol, err)
	}
}

// TestMixedTunnels reaches the realservers of one service by different tunnels; an agent takes several.
func TestMixedTunnels(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents(`encap = ["ipip", "gre", "gue"]
encap_port = 7000`)
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	s.startDirectorWith(`
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "rr"
encap = "gue"
encap_port = 7000
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2", encap = "gre" } ]
`)
	seen := map[string]int{}
	for range 10 {
		_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		seen[server]++
	}
	if seen["web1"] != 5 || seen["web2"] != 5 {
		t.Errorf("answers are from %v", seen)
	}
}

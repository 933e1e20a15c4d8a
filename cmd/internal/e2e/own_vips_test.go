package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/doctor"
	"vstun/cmd/internal/lab"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// node is a realserver whose VIPs another program takes: a Kubernetes node, with a pod behind a device of its own and
// the rules of kube-proxy for a Service with externalTrafficPolicy Local, which translate only the destination.
//
//	client ── router ─┬─ director
//	                  └─ node ── veth ── pod 10.244.1.5
type node struct {
	*site
	host, pod *lab.Host
	podAddr   netip.Addr
	family    string // of nft: "ip" or "ip6"
}

// podPort is the pod's port for a port of the VIP.
func podPort(port uint16) uint16 { return 8000 + port }

// newNode builds a site with one node. Its services are TCP ports 80 and 81 and UDP port 53.
func newNode(t *testing.T, ipv6 bool) *node {
	t.Helper()
	needDoctorsTools(t)
	n := &node{site: newSite(t, 2, nil), podAddr: netip.MustParseAddr("10.244.1.5"), family: "ip"}
	n.host, n.pod = n.Webs[0], n.Webs[1]
	n.Webs = n.Webs[:1]
	n.needFirewall()
	gateway, forwarding := "10.244.1.1/24", "net.ipv4.ip_forward"
	if n.speak(ipv6); ipv6 {
		n.podAddr, n.family = netip.MustParseAddr("fd00:244::5"), "ip6"
		gateway, forwarding = "fd00:244::1/64", "net.ipv6.conf.all.forwarding"
	}
	prefix := netip.MustParsePrefix(gateway)
	n.shell(n.pod, "ip link del eth0")
	n.shell(n.host, fmt.Sprintf("ip link add pod type veth peer name eth0 netns %s; ip address add %s dev pod; "+
		"ip link set pod up; sysctl -qw %s=1", n.pod.Namespace, gateway, forwarding))
	n.shell(n.pod, fmt.Sprintf("ip address add %s/%d dev eth0; ip link set eth0 up; ip route add default via %s",
		n.podAddr, prefix.Bits(), prefix.Addr()))
	n.pod.Addr = n.podAddr
	testkit.Within(t, "the pod's address is settled", soon, func() bool {
		return settled(t, n.pod) && settled(t, n.host)
	})
	return n
}

// translate adds kube-proxy's rules for the services, and the masquerading of a pod network for what pods begin.
func (n *node) translate() {
	n.t.Helper()
	rules := "table inet kube {\nchain prerouting { type nat hook prerouting priority dstnat;\n"
	for _, s := range []struct {
		protocol string
		port     uint16
	}{{"tcp", 80}, {"tcp", 81}, {"udp", 53}} {
		rules += fmt.Sprintf("%s daddr %s %s dport %d dnat %s to %s\n", n.family, n.VIP, s.protocol, s.port, n.family,
			netip.AddrPortFrom(n.podAddr, podPort(s.port)))
	}
	rules += fmt.Sprintf("}\nchain postrouting { type nat hook postrouting priority srcnat;\n%s saddr %s ct state new "+
		"masquerade\n}\nchain forward { type filter hook forward priority filter;\nct state invalid drop\n}\n}\n",
		n.family, n.podAddr)
	n.nft(n.host, rules)
}

// nft loads rules on h.
func (s *site) nft(h *lab.Host, rules string) {
	s.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if got := run(s.t, h, cmd); got.code != 0 {
		s.t.Fatalf("nft: %s\n%s", got.stderr, rules)
	}
}

// serveInPod serves the site out of the pod: port 80 tells the client's address, 81 is for uploads and downloads, and
// 53 echoes.
func (n *node) serveInPod() {
	n.t.Helper()
	n.serveClientAddress(n.pod, fmt.Sprintf(":%d", podPort(80)))
	n.acceptUploadsAt(n.pod, fmt.Sprintf(":%d", podPort(81)))
	c := n.listenUDP(n.pod, netip.AddrPortFrom(n.podAddr, podPort(53)).String())
	go func() {
		buf := make([]byte, 65536)
		for {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:size], from)
		}
	}()
}

// serveClientAddress serves the name of the host and the client's address to each connection.
func (n *node) serveClientAddress(h *lab.Host, address string) {
	n.t.Helper()
	n.serveTCP(h, address, func(c net.Conn) {
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		_, _ = fmt.Fprintf(c, "%s %s", h.Name, from)
	})
}

// mustServe fails the test unless the named host serves the client, and knows its address.
func (n *node) mustServe(by string) {
	n.t.Helper()
	got, err := io.ReadAll(n.dial("tcp", 80))
	if want := by + " " + n.Client.Addr.String(); err != nil || string(got) != want {
		n.t.Errorf("port 80: %q, %v, want %q", got, err, want)
	}
}

// TestForeignVIPs: an agent does not own the VIPs. Their packets are translated for a pod, as kube-proxy does, and its
// answers go straight to the client, with the VIP as source.
func TestForeignVIPs(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		n := newNode(t, ipv6)
		n.serveInPod()
		before := observe(t, n.host)
		n.startAgent(n.host, "own_vips = false")
		n.startDirector("", service{"tcp", "[80, 81]", "rr", []int{1}}, service{"udp", "53", "rr", []int{1}})
		n.mustRefuse()
		n.translate()
		n.mustServe(n.pod.Name)
		n.mustEcho()
		answers := n.count(n.Director, "eth0", lab.Filter{Source: n.VIP, Destination: n.Client.Addr,
			Protocol: packet.ProtoTCP})
		const size = 3_000_000
		headers, fits := segmentSizes(ipv6)
		c := n.dial("tcp", 81)
		if mss := sendMSS(t, c); mss != 1500-headers {
			t.Errorf("the client sends segments of %d bytes, want the pod's MSS", mss)
		}
		n.mustTransfer(c, size)
		testkit.Within(t, "the client knows the path by the director's ICMP error", soon, func() bool {
			c := n.dial("tcp", 81)
			_, err := put(c, size/10)
			return err == nil && sendMSS(t, c) == fits
		})
		if k := answers(); k > 0 {
			t.Errorf("%d answers have passed the director", k)
		}
		n.shell(n.Client, "ip route flush cache; ip -6 route flush cache")
		var more []string
		if ipv6 {
			more = []string{"ip daddr", "ip6 daddr", "1440", "1400"}
		}
		n.nft(n.host, n.manualRules("cmd/realserver/README.md", more...))
		if mss := sendMSS(t, n.dial("tcp", 81)); mss != fits {
			t.Errorf("with the manual's rule the client sends segments of %d bytes, want %d", mss, fits)
		}
		st := n.agents[0].intake()
		if st.OwnVIPs || sum(st.Drops) > 0 {
			t.Errorf("own_vips %v, drops %v", st.OwnVIPs, st.Drops)
		}
		if st.FastPath.On && st.FastPath.Taken.Packets == 0 {
			t.Error("the fast path took no packet")
		}
		n.mustTellForeign()
		n.agents[0].stop()
		n.shell(n.host, "nft delete table inet kube; nft delete table inet vstun")
		mustBecome(t, "after the agent", before, n.host)
	})
}

// segmentSizes returns the length of the headers of a client's TCP segment, with timestamps, and the bytes of data in
// the largest segment that fits the tunnel.
func segmentSizes(ipv6 bool) (headers, fits int) {
	if headers = 20 + 20 + 12; ipv6 {
		return headers + 20, 1500 - 40 - headers - 20
	}
	return headers, 1500 - 20 - headers
}

// mustTransfer uploads and downloads bytes by port 81.
func (n *node) mustTransfer(c net.Conn, size int) {
	n.t.Helper()
	if body, err := put(c, size); err != nil || !strings.HasPrefix(body, fmt.Sprint(size)) {
		n.t.Errorf("upload: %q, %v", body, err)
	}
	if err := pull(n.dial("tcp", 81), size); err != nil {
		n.t.Errorf("download: %v", err)
	}
}

// manualRules returns the nftables rules of a page of the manual, for the site's VIP. more are further replacements.
func (s *site) manualRules(page string, more ...string) string {
	s.t.Helper()
	for _, p := range testkit.Manual(s.t) {
		_, rest, there := strings.Cut(p.Text, "nft -f - <<'END'\n")
		if rules, _, _ := strings.Cut(rest, "\nEND"); p.Name == page && there {
			return strings.NewReplacer(append(more, "198.51.100.80", s.VIP.String())...).Replace(rules)
		}
	}
	s.t.Fatalf("%s has no rules", page)
	return ""
}

// mustTellForeign fails the test unless status and doctor say that the VIPs are not the agent's, and doctor finds a
// node that does not forward.
func (n *node) mustTellForeign() {
	n.t.Helper()
	agent := n.agents[0]
	want := fmt.Sprintf("VIPs %s (not owned) from directors", n.VIP)
	if got := agent.command("status"); !strings.Contains(got.stdout, want) {
		n.t.Errorf("status has no %q:\n%s", want, got.stdout)
	}
	agent.mustFindNothing("a pod serves")
	n.director.mustFindNothing("a pod serves")
	r := agent.examine()
	if !slices.ContainsFunc(r.Fine, func(f doctor.Note) bool {
		return f.Check == "vips" && strings.Contains(f.Text, "no device has it; other programs translate its packets")
	}) || !slices.ContainsFunc(r.Hints, func(f doctor.Finding) bool { return f.Check == "answers" }) {
		n.t.Errorf("fine: %v, hints: %v", r.Fine, r.Hints)
	}
	key := map[string]string{"ip": "net.ipv4.ip_forward", "ip6": "net.ipv6.conf.all.forwarding"}[n.family]
	n.shell(n.host, "sysctl -qw "+key+"=0")
	agent.mustName(symptom{"vips", []string{"error", key + " is 0", "sysctl -w " + key + "=1"}})
	n.shell(n.host, "sysctl -qw "+key+"=1")
}

// TestForeignVIPsOnDevice: another program on the realserver has the VIP on a device of its own, as kube-proxy has on
// kube-ipvs0. The agent leaves it alone, and the realserver's servers answer by it.
func TestForeignVIPsOnDevice(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		needDoctorsTools(t)
		n := &node{site: newSite(t, 1, nil)}
		n.speak(ipv6)
		n.host = n.Webs[0]
		n.shell(n.host, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
		add := fmt.Sprintf("ip link add kube-ipvs0 type dummy 2>/dev/null || ip tuntap add kube-ipvs0 mode tun; "+
			"ip address add %s dev kube-ipvs0", single(n.VIP)) // some kernels have no dummy
		n.shell(n.host, add)
		agent := n.prepare(n.host, "realserver")
		agent.configure(n.agentTOML(agent.socket, ""))
		got := run(t, n.host, exec.Command(programPath("realserver"), "run", "-c", agent.config))
		if got.code != 1 || !strings.Contains(got.stderr, "on kube-ipvs0: ") ||
			!strings.Contains(got.stderr, "own_vips = false") {
			t.Errorf("own_vips = true: exit status %d\n%s", got.code, got.stderr)
		}
		n.startAgent(n.host, "own_vips = false")
		agent = n.agents[0]
		n.serveClientAddress(n.host, n.at(80))
		n.acceptUploadsAt(n.host, n.at(81))
		n.startDirector("", service{"tcp", "[80, 81]", "rr", []int{1}})
		n.mustServe(n.host.Name)
		_, fits := segmentSizes(ipv6)
		c := n.dial("tcp", 81)
		if mss := sendMSS(t, c); mss != fits {
			t.Errorf("the client sends segments of %d bytes, want %d: the server is on this host", mss, fits)
		}
		n.mustTransfer(c, 3_000_000)
		agent.mustFindNothing("the VIP is on a dummy")

		reload := func(own bool) result {
			agent.configure(n.agentTOML(agent.socket, fmt.Sprintf("own_vips = %v", own)))
			return agent.command("reload")
		}
		if got := reload(true); got.code != 1 || !strings.Contains(got.stderr, "on kube-ipvs0: ") {
			t.Errorf("a reload to own_vips = true: %+v", got)
		}
		n.mustServe(n.host.Name)
		n.shell(n.host, "ip link del kube-ipvs0")
		before := observe(t, n.host)
		if got := reload(true); got.stdout != "own_vips false -> true\n" {
			t.Errorf("a reload to own_vips = true: %+v", got)
		}
		n.mustServe(n.host.Name)
		agent.mustFindNothing("the agent has the VIP")
		if got := reload(false); got.stdout != "own_vips true -> false\n" {
			t.Errorf("a reload to own_vips = false: %+v", got)
		}
		n.mustRefuse()
		mustBecome(t, "after the reload back", before, n.host)
		n.shell(n.host, add)
		testkit.Within(t, "the new address is served", soon, func() bool {
			c, err := n.Client.Dial("tcp", n.at(80))
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		n.mustServe(n.host.Name)
		n.shell(n.host, "ip link del kube-ipvs0; ip address add "+single(n.VIP).String()+" dev eth0")
		agent.mustName(symptom{"vips", []string{"warning", "it is on eth0, which has neighbours", "ip addr del"}})
	})
}

// mustEcho fails the test unless a datagram to port 53 is answered.
func (n *node) mustEcho() {
	n.t.Helper()
	c := n.dial("udp", 53)
	testkit.Within(n.t, "a datagram is answered", soon, func() bool {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, err := c.Write([]byte("hello"))
		if err == nil {
			_, err = c.Read(make([]byte, 100))
		}
		return err == nil
	})
}

// mustRefuse fails the test unless a connection to the VIP, which no program takes, is refused at once, and its packets
// do not go round between node and director.
func (n *node) mustRefuse() {
	n.t.Helper()
	tunnelled := n.count(n.Director, "eth0", lab.Filter{Source: n.Director.Addr, Destination: n.host.Addr,
		Direction: lab.Out})
	_, err := n.Client.Dial("tcp", n.at(80))
	if err == nil || os.IsTimeout(err) {
		n.t.Errorf("a connection that no program takes: %v", err)
	}
	if k := tunnelled(); k > 8 { // the TTL ends a loop behind 20
		n.t.Errorf("its packets have passed the director %d times: %v", k, err)
	}
}

// TestDirectorBesideKubeProxy: kube-proxy's rules on a director's host translate clients' packets, and the director's
// checks, before the director gets them. The manual's rules prevent that.
func TestDirectorBesideKubeProxy(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		needDoctorsTools(t)
		s := newSite(t, 1, nil)
		s.needFirewall()
		family, pod, more := "ip", "10.244.9.9", []string(nil)
		if s.speak(ipv6); ipv6 {
			family, pod, more = "ip6", "fd00:244::9", []string{"ip daddr", "ip6 daddr"}
		}
		chain := fmt.Sprintf("priority dstnat;\n%s daddr %s tcp dport 80 dnat %s to %s\n}\n", family, s.VIP, family,
			netip.AddrPortFrom(netip.MustParseAddr(pod), 8080))
		s.nft(s.Director, "table inet kube {\nchain prerouting { type nat hook prerouting "+chain+
			"chain output { type nat hook output "+strings.Replace(chain, "dstnat", "-100", 1)+
			"chain forward { type filter hook forward priority filter;\nct state invalid drop\n}\n}\n")
		s.startAgents("")
		s.namedEchoAt(s.Webs[0], ":80")
		s.startDirectorWith(fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\n"+
			"check = { type = \"tcp\", interval = \"200ms\", timeout = \"150ms\" }\nrealserver = [ %s ]\n", s.VIP,
			s.realserver(0, "80")))
		health := func() string { return s.director.balance().Services[0].Realservers[0].Health }
		testkit.Within(t, "the checks are translated, and fail", soon, func() bool { return health() == "down" })
		s.nft(s.Director, s.manualRules("cmd/director/containers.md", more...))
		testkit.Within(t, "the checks get through", soon, func() bool { return health() == "up" })
		for range 3 {
			s.mustBeServedBy(80, s.Webs[0].Name)
		}
		s.director.mustFindNothing("beside kube-proxy, with the manual's rules")
	})
}

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// interopBulk is the bytes of an upload: enough for TCP windows to open, few enough for a slow guest.
const interopBulk = 2_000_000

// interopPorts is the ports of the services of the tests below.
var interopPorts = map[uint16]string{53: "udp", 80: "tcp", 81: "tcp"}

// wired makes the links to these hosts carry packets of 1,500 bytes instead of GSO packets. GRO merges them on
// arrival.
func wired(names ...string) map[string]lab.Link {
	links := map[string]lab.Link{}
	for _, name := range names {
		links[name] = lab.Link{Segmented: true, GRO: 50 * time.Microsecond}
	}
	return links
}

// TestInteropKernelDirector: the kernel's IPVS sends to an agent. Uploads and datagrams arrive byte-exact.
func TestInteropKernelDirector(t *testing.T) {
	needKernel(t)
	for _, c := range []struct {
		name   string
		tunnel kernelTunnel
	}{
		{"ipip", kernelTunnel{"ipip", ""}},
		{"gre", kernelTunnel{"gre", "--tun-nocsum"}},
		{"gre-checksum", kernelTunnel{"gre", "--tun-csum"}},
		{"gue", kernelTunnel{"gue", "--tun-nocsum"}},
		{"gue-checksum", kernelTunnel{"gue", "--tun-csum"}},
	} {
		for name, links := range map[string]map[string]lab.Link{"": nil, "-wire": wired("client", "director", "web1")} {
			t.Run(c.name+name, func(t *testing.T) {
				s := newSite(t, 1, links)
				s.startAgents(fmt.Sprintf("encap = [%q]", c.tunnel.kind))
				s.quietGRE(s.Webs[0])
				s.startIPVS(interopPorts, c.tunnel)
				s.acceptUploads(s.Webs[0], 80)
				s.echoUDP(s.Webs[0], 53)
				s.mustUpload(80, interopBulk)
				s.mustEcho(0, 1, 1440, 1444, 1448, 1452, 1453, 1472, 4000)
				s.agents[0].mustLetIn(interopBulk)
			})
		}
	}
}

// mustUpload sends n bytes to a port of the VIP by HTTP. All must arrive.
func (s *site) mustUpload(port uint16, n int) {
	s.t.Helper()
	conn := s.dial("tcp", port)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	begin := time.Now()
	answer, err := put(conn, n)
	if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
		s.t.Fatalf("the server answers %q, %v; want %q", answer, err, want)
	}
	s.t.Logf("%.0f Mbit/s", float64(n)*8/1e6/time.Since(begin).Seconds())
}

// mustEcho sends datagrams of these sizes, without DF, to port 53 of the VIP, each from another port of the client.
// They must come back.
func (s *site) mustEcho(sizes ...int) {
	s.t.Helper()
	for _, size := range sizes {
		conn := s.dial("udp4", 53)
		discover(s.t, conn, unix.IP_PMTUDISC_DONT)
		if err := exchange(conn, payload(size)); err != nil {
			s.t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestInteropKernelRealserver: our director sends to the kernel's own tunnel devices.
func TestInteropKernelRealserver(t *testing.T) {
	needKernel(t)
	for _, tunnel := range []kernelTunnel{{kind: "ipip"}, {kind: "gre"}, {kind: "gue"}, {kind: "fou"}} {
		for name, links := range map[string]map[string]lab.Link{"": nil, "-wire": wired("client", "director", "web1")} {
			t.Run(tunnel.kind+name, func(t *testing.T) {
				s := newSite(t, 1, links)
				device := s.kernelDevice(s.Webs[0], tunnel)
				s.startDirectorWith(interopServices(tunnel.kind, "{ address = \"10.0.11.2\" }"))
				s.acceptUploads(s.Webs[0], 80)
				s.echoUDP(s.Webs[0], 53)
				s.mustUpload(80, interopBulk)
				s.mustEcho(0, 1, 1440, 1444, 1448, 1452, 1453, 1472)
				if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
					t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
				}
				if n, err := s.Webs[0].Received(device); n == 0 || err != nil {
					t.Errorf("%d packets came in by %s, %v", n, device, err)
				}
			})
		}
	}
}

// interopServices returns a director's TOML: interopPorts, round robin, with these realservers.
func interopServices(encap string, realservers ...string) string {
	var text strings.Builder
	for port, protocol := range interopPorts {
		fmt.Fprintf(&text, "[[service]]\nname = \"port-%d\"\nvip = \"198.51.100.80\"\nprotocol = %q\nport = "+
			"%d\nscheduler = \"rr\"\nencap = %q\nrealserver = [ %s ]\n",
			port, protocol, port, encap, strings.Join(realservers, ", "))
	}
	return text.String()
}

// TestInteropRemoteChecksum: IPVS leaves the inner checksums to the other end of the tunnel (GUE's remote checksum
// offload). The agent does not support this, and refuses the packets.
func TestInteropRemoteChecksum(t *testing.T) {
	needKernel(t)
	s := newSite(t, 1, nil)
	s.startAgents(`encap = ["gue"]`)
	s.startIPVS(interopPorts, kernelTunnel{"gue", "--tun-remcsum"})
	conn := s.dial("udp4", 53)
	if _, err := conn.Write(payload(100)); err != nil {
		t.Fatal(err)
	}
	agent := s.agents[0]
	testkit.Within(t, "the agent has the packet", soon, func() bool { return agent.intake().In.Packets > 0 })
	if in := agent.intake(); in.Drops["tunnel_header"] != in.In.Packets || in.Out.Packets != 0 {
		t.Errorf("of %d packets the agent refused %v and let %d in, want all as tunnel_header", in.In.Packets, in.Drops,
			in.Out.Packets)
	}
}

// TestInteropMixed: a kernel and an agent are realservers of the same services, by different tunnels, behind the
// kernel's director and ours. Both get their share, byte-exact.
func TestInteropMixed(t *testing.T) {
	needKernel(t)
	for _, tunnels := range [][2]kernelTunnel{{{kind: "ipip"}, {kind: "gue"}}, {{kind: "gue"}, {kind: "gre"}},
		{{kind: "gre"}, {kind: "ipip"}}} {
		for _, director := range []string{"kernel", "ours"} {
			t.Run(fmt.Sprintf("%s-%s-%s", director, tunnels[0].kind, tunnels[1].kind), func(t *testing.T) {
				s := newSite(t, 2, nil)
				device := s.kernelDevice(s.Webs[0], tunnels[0])
				s.startAgent(s.Webs[1], fmt.Sprintf("encap = [%q]", tunnels[1].kind))
				if director == "kernel" {
					// our director ignores the kernel's ICMP error that the host does not take GRE
					s.quietGRE(s.Webs[1])
					s.startIPVS(interopPorts, tunnels[:]...)
				} else {
					var realservers []string
					for i, k := range tunnels {
						realservers = append(realservers, fmt.Sprintf("{ address = %q, encap = %q }", s.Webs[i].Addr,
							k.kind))
					}
					s.startDirectorWith(interopServices("ipip", realservers...))
				}
				for _, web := range s.Webs {
					s.acceptUploads(web, 80)
					s.namedEcho(web, 81)
					s.echoUDP(web, 53)
				}
				s.mustUpload(80, interopBulk)
				s.mustUpload(80, interopBulk)
				s.mustEcho(0, 1400, 1460, 1472)
				seen := map[string]int{}
				for range 6 {
					_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(81))
					seen[server]++
				}
				if seen["web1"] != 3 || seen["web2"] != 3 {
					t.Errorf("answers are from %v, want 3 from each", seen)
				}
				s.agents[0].mustLetIn(interopBulk)
				if n, err := s.Webs[0].Received(device); n == 0 || err != nil {
					t.Errorf("%d packets came in by %s, %v", n, device, err)
				}
			})
		}
	}
}

// TestInteropQuiet: an agent keeps the kernel's IPIP driver from answering, and restores it at its end, also after
// SIGKILL.
func TestInteropQuiet(t *testing.T) {
	needKernel(t)
	s := newSite(t, 1, nil)
	web := s.Webs[0]
	now := func() map[string]hostState {
		t.Helper()
		testkit.Within(t, "the IPv6 addresses are settled", soon, func() bool { return settled(t, web) })
		return map[string]hostState{web.Name: observe(t, web)}
	}
	before := now()
	s.startAgents("")
	agent := s.agents[0]
	if _, err := web.Received("vstun-quiet"); err != nil {
		t.Error(err)
	}
	agent.stop()
	mustBe(t, "an agent has ended", before, now())
	agent.start()
	agent.kill()
	agent.start()
	agent.stop()
	mustBe(t, "an agent was killed, and the next has ended", before, now())
	agent.start()
	agent.kill()
	agent.configure(s.agentTOML(agent.socket, `encap = ["gue"]`))
	agent.start()
	if n, err := web.Received("vstun-quiet"); err == nil {
		t.Errorf("an agent without ipip leaves the device of one that was killed: %d packets", n)
	}
	agent.stop()
	mustBe(t, "an agent was killed, and the next, without ipip, has ended", before, now())
}

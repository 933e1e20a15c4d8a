package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// kernelEnd is a point-to-point tunnel of the kernel, and the keys of the same tunnel of vstun.
type kernelEnd struct {
	name   string
	before string // a command before the device's
	link   string // the device's type, and further arguments
	keys   string
	six    bool // it carries IPv6, too
}

var kernelEnds = []kernelEnd{
	{"ipip", "", "type ipip LOCAL", `encap = "ipip"`, false},
	{"gre", "", "type gre LOCAL", `encap = "gre"`, true},
	{"gre-key", "", "type gre LOCAL key 4711", "encap = \"gre\"\nkey = 4711", true},
	{"gre-checksum", "", "type gre LOCAL ocsum", `encap = "gre"`, true},
	{"gue", "fou add port 6080 gue", "type ipip LOCAL encap gue encap-sport auto encap-dport 6080", `encap = "gue"`,
		false},
	{"fou", "fou add port 6080 ipproto 4", "type ipip LOCAL encap fou encap-sport auto encap-dport 6080",
		`encap = "fou"`, false},
	{"gretap", "", "type gretap LOCAL", "device = \"tap\"\nencap = \"gre\"", true},
	{"gretap-key", "", "type gretap LOCAL key 7", "device = \"tap\"\nencap = \"gre\"\nkey = 7", true},
	{"gretap-gue", "fou add port 6080 gue", "type gretap LOCAL encap gue encap-sport auto encap-dport 6080",
		"device = \"tap\"\nencap = \"gue\"", true},
	{"gretap-fou", "fou add port 6080 ipproto 47", "type gretap LOCAL encap fou encap-sport auto encap-dport 6080",
		"device = \"tap\"\nencap = \"fou\"", true},
}

// kernelTunnelTo gives h the device site of the kernel, whose peer is far, with the addresses 10.8.0.END and fd08::END.
// It skips the test if the kernel only receives gue and fou (CONFIG_NET_FOU_IP_TUNNELS is not set).
func (s *site) kernelTunnelTo(h, far *lab.Host, k kernelEnd, end int) {
	s.t.Helper()
	if k.before != "" {
		try := strings.Fields("ip link add try0 " +
			strings.ReplaceAll(k.link, "LOCAL", "local 192.0.2.1 remote 192.0.2.2"))
		cmd := exec.Command(try[0], try[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Skipf("SKIPPED: the kernel sends no %s: %s", k.name, strings.TrimSpace(string(out)))
		}
	}
	link := strings.ReplaceAll(k.link, "LOCAL", fmt.Sprintf("local %v remote %v ttl 64", h.Addr, far.Addr))
	s.command(h, fmt.Sprintf("%s\nlink add site %s\nlink set site up\naddr add 10.8.0.%d/24 dev site\n"+
		"addr add fd08::%d/64 dev site nodad\n", k.before, link, end, end), "ip", "-batch", "-")
}

// TestInteropTunnels: the kernel's tunnel devices are the peers of point-to-point tunnels. Transfers in both directions
// and datagrams are byte-exact, over links with GSO packets, and with packets of 1,500 bytes that GRO merges.
func TestInteropTunnels(t *testing.T) {
	needKernel(t)
	for _, k := range kernelEnds {
		for name, links := range map[string]map[string]lab.Link{"": nil, "-wire": wired("director", "web1")} {
			t.Run(k.name+name, func(t *testing.T) {
				s := newSite(t, 1, links)
				s.addIPv6()
				web := s.Webs[0]
				s.kernelTunnelTo(s.Director, web, k, 1)
				agent := s.prepare(web, "realserver")
				agent.configure(fmt.Sprintf("[realserver]\nencap = []\ncontrol = %q\n[[tunnel]]\nname = \"site\"\n"+
					"local = \"%v\"\nremote = \"%v\"\naddresses = [\"10.8.0.2/24\", \"fd08::2/64\"]\n%s\n",
					agent.socket, web.Addr, s.Director.Addr, k.keys))
				agent.start()
				s.acceptUploadsAt(web, ":8001")
				families := []string{"10.8.0.2"}
				if k.six {
					families = append(families, "fd08::2")
				}
				for _, to := range families {
					s.mustExchange(s.Director, netip.MustParseAddr(to), interopBulk)
				}
				if st := agent.intake().Tunnels[0]; len(st.Drops) > 0 || st.SendError != "" {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// mustExchange uploads n bytes from h to port 8001 of an address, and downloads them.
func (s *site) mustExchange(h *lab.Host, to netip.Addr, n int) {
	s.t.Helper()
	for _, up := range []bool{true, false} {
		conn, err := h.Dial("tcp", netip.AddrPortFrom(to, 8001).String())
		if err != nil {
			s.t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			s.t.Fatal(err)
		}
		begin := time.Now()
		if !up {
			err = pull(conn, n)
		} else if answer, e := put(conn, n); !strings.HasSuffix(answer, " as they should be") {
			err = fmt.Errorf("%q, %w", answer, e)
		}
		if err != nil {
			s.t.Errorf("%v, upload %t: %v", to, up, err)
		}
		s.t.Logf("%v, upload %t: %.0f Mbit/s", to, up, float64(n)*8/1e6/time.Since(begin).Seconds())
	}
}

// TestInteropGRESpeed reports the speed of gre between two kernels, between a kernel and vstun, and between two of
// vstun, on the same path.
func TestInteropGRESpeed(t *testing.T) {
	needKernel(t)
	gre := kernelEnds[1]
	for _, ours := range []int{0, 1, 2} {
		t.Run(fmt.Sprintf("%d-of-vstun", ours), func(t *testing.T) {
			s := newSite(t, 1, nil)
			s.addIPv6()
			hosts := []*lab.Host{s.Webs[0], s.Director}
			for i, h := range hosts {
				if i >= ours {
					s.kernelTunnelTo(h, hosts[1-i], gre, 2-i)
					continue
				}
				p := s.prepare(h, "realserver")
				p.configure(fmt.Sprintf("[realserver]\nencap = []\ncontrol = %q\n[[tunnel]]\nname = \"site\"\n"+
					"local = \"%v\"\nremote = \"%v\"\naddresses = [\"10.8.0.%d/24\"]\n%s\n", p.socket, h.Addr,
					hosts[1-i].Addr, 2-i, gre.keys))
				p.start()
			}
			s.acceptUploadsAt(s.Webs[0], ":8001")
			s.mustExchange(s.Director, netip.MustParseAddr("10.8.0.2"), 10*interopBulk)
		})
	}
}

// TestInteropTunnelsToKernel: the kernel receives gue and fou of vstun. Datagrams of each size arrive.
func TestInteropTunnelsToKernel(t *testing.T) {
	needKernel(t)
	for kind, port := range map[string]string{"gue": "fou add port 6080 gue", "fou": "fou add port 6080 ipproto 4"} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t, 1, nil)
			web := s.Webs[0]
			s.kernelTunnelTo(s.Director, web, kernelEnds[0], 1)
			s.command(s.Director, port+"\n", "ip", "-batch", "-")
			agent := s.prepare(web, "realserver")
			agent.configure(fmt.Sprintf("[realserver]\nencap = []\ncontrol = %q\n[[tunnel]]\nname = \"site\"\n"+
				"local = \"%v\"\nremote = \"%v\"\naddresses = [\"10.8.0.2/24\"]\nencap = %q\n", agent.socket, web.Addr,
				s.Director.Addr, kind))
			agent.start()
			received, err := s.Director.ListenPacket("udp4", "10.8.0.1:53")
			if err != nil {
				t.Fatal(err)
			}
			defer received.Close()
			conn, err := web.Dial("udp4", "10.8.0.1:53")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			b := make([]byte, 1<<16)
			for _, size := range []int{1, 1000, 1440, 1480, 4000} {
				if _, err := conn.Write(payload(size)); err != nil {
					t.Fatal(err)
				}
				if err := received.SetReadDeadline(time.Now().Add(testkit.Patience)); err != nil {
					t.Fatal(err)
				}
				n, _, err := received.ReadFrom(b)
				if err != nil || string(b[:n]) != string(payload(size)) {
					t.Errorf("%d bytes: %d came, %v", size, n, err)
				}
			}
		})
	}
}

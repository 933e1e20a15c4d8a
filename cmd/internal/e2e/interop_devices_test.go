package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// TestInteropDevices: VS/DR to realservers by a device, a VLAN of it, a bond, and a VLAN of the bond. Transfers and
// datagrams are byte-exact.
func TestInteropDevices(t *testing.T) {
	needDevices(t)
	for _, device := range []string{"eth0", "bond0"} {
		for _, offload := range []string{"auto", "off"} {
			t.Run(device+"-"+offload, func(t *testing.T) { testDevices(t, device, offload) })
		}
	}
}

func testDevices(t *testing.T, device, offload string) {
	s := newSiteBy(t, dr, 2, nil)
	s.addIPv6()
	if device == "bond0" {
		s.bond()
	}
	s.vlan(s.Director, device, 2)
	s.vlan(s.Webs[1], "eth0", 12)
	s.startAgents("")
	text := fmt.Sprintf("director.offload = %q\n", offload)
	realservers := [][2]string{{s.Webs[0].Addr.String(), s.Webs[0].Addr6.String()}, {"10.0.5.12", "fd00:0:5::12"}}
	for i, web := range s.Webs {
		for family, vip := range []netip.Addr{s.VIP, s.VIP6} {
			for protocol, port := range map[string]int{"tcp": 80, "udp": 53} {
				text += fmt.Sprintf("[[service]]\nname = \"%s-%d-%d\"\nvip = %q\nprotocol = %q\nport = %d\n"+
					"forward = \"dr\"\nrealserver = [ { address = %q } ]\n",
					protocol, port+i, family, vip, protocol, port+i, realservers[i][family])
			}
			s.VIP, vip = vip, s.VIP
			s.echoUDP(web, uint16(53+i))
			s.VIP = vip
		}
		s.acceptUploadsAt(web, fmt.Sprintf(":%d", 80+i))
	}
	s.startDirectorWith(text)
	for i, link := range []string{"eth0", "vlan5"} {
		for _, vip := range []netip.Addr{s.VIP, s.VIP6} {
			came := s.count(s.Webs[i], link, lab.Filter{Destination: vip, Direction: lab.In})
			s.mustPass(vip, i)
			if n := came(); n < 10 {
				t.Errorf("%d packets to %s reached %s by %s", n, vip, s.Webs[i].Name, link)
			}
		}
	}
	if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
		t.Errorf("the director dropped %v, send error %q", st.Drops, st.SendError)
	}
}

// mustPass transfers and echoes through the services of web server i on a VIP.
func (s *site) mustPass(vip netip.Addr, i int) {
	s.t.Helper()
	for _, up := range []bool{true, false} {
		conn, err := s.Client.Dial("tcp", netip.AddrPortFrom(vip, uint16(80+i)).String())
		if err != nil {
			s.t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(3 * soon)); err != nil {
			s.t.Fatal(err)
		}
		if !up {
			err = pull(conn, interopBulk)
		} else if answer, e := put(conn, interopBulk); !strings.HasSuffix(answer, " as they should be") {
			err = fmt.Errorf("%q, %w", answer, e)
		}
		if err != nil {
			s.t.Errorf("%s of %s, upload %t: %v", vip, s.Webs[i].Name, up, err)
		}
	}
	conn, err := s.Client.Dial("udp", netip.AddrPortFrom(vip, uint16(53+i)).String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	for _, size := range []int{0, 1, 1400, 1452, 4000} {
		if err := exchange(conn, payload(size)); err != nil {
			s.t.Errorf("%s of %s: %d bytes: %v", vip, s.Webs[i].Name, size, err)
		}
	}
}

// bond makes the director's eth0 a port of bond0, which takes over its addresses and routes.
func (s *site) bond() {
	s.t.Helper()
	s.command(s.Director, fmt.Sprintf(`link add bond0 type bond mode active-backup miimon 100
link set eth0 down
addr flush dev eth0
link set eth0 master bond0
addr add %s/24 dev bond0
link set bond0 up
addr add %s/64 dev bond0 nodad
route add default via 10.0.2.1
route add ::/0 via fd00:0:2::1
`, s.Director.Addr, s.Director.Addr6), "ip", "-batch", "-")
}

// vlan gives a host the device vlan5, a VLAN of a link, with addresses of the subnet 5.
func (s *site) vlan(h *lab.Host, link string, last int) {
	s.t.Helper()
	s.command(h, fmt.Sprintf(`link add link %s name vlan5 type vlan id 5
addr add 10.0.5.%[2]d/24 dev vlan5
addr add fd00:0:5::%[2]d/64 dev vlan5 nodad
link set vlan5 up
`, link, last), "ip", "-batch", "-")
	// Requests come by the VLAN, and the route to the client leads elsewhere.
	for _, key := range []string{"all", "vlan5"} {
		if err := h.Sysctl("net.ipv4.conf."+key+".rp_filter", "0"); err != nil {
			s.t.Fatal(err)
		}
	}
}

// needDevices skips a test if the kernel lacks VLANs or bonds.
func needDevices(t *testing.T) {
	t.Helper()
	needMachine(t)
	cmd := exec.Command("sh", "-c", "ip link add bond7 type bond && ip link add link bond7 name bond7.5 type vlan id 5")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
	case os.Getenv(kernelEnv) == "must":
		t.Fatalf("%s: %v: %s", cmd, err, bytes.TrimSpace(out))
	default:
		t.Skip("SKIPPED: needs the kernel's bonds and VLANs: modprobe -a bonding 8021q (make interop runs this in a " +
			"guest that has them)")
	}
}

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// The autonomous systems of the directors and of the router.
const directorAS, routerAS = 65010, 65000

// bird runs BIRD on the site's router, with a session with each of these directors.
func (s *site) bird(directors ...*lab.Host) {
	s.t.Helper()
	var all []netip.Addr
	for _, d := range directors {
		all = append(all, d.Addr)
	}
	s.birdOn(s.Router, all...)
}

// birdOn runs BIRD on a router, with a session with each of these directors. The router has no other routes to the
// VIPs.
func (s *site) birdOn(router *lab.Host, directors ...netip.Addr) {
	s.t.Helper()
	config := fmt.Sprintf(`log stderr all;
router id 192.0.2.1;
protocol device { scan time 1; }
protocol bfd { interface "*" { interval 100 ms; multiplier 3; }; }
protocol kernel { merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { merge paths on; ipv6 { import none; export where source = RTS_BGP; }; }
template bgp directors {
	local as %d;
	hold time 9;
	error wait time 1, 2;
	bfd on;
	ipv4 { import all; export none; };
	ipv6 { import all; export none; };
}
`, routerAS)
	for i, d := range directors {
		config += fmt.Sprintf("protocol bgp director%d from directors { neighbor %v as %d; }\n", i+1, d,
			directorAS)
	}
	s.removeRoutes()
	s.runBird(router, config)
}

// runBird runs BIRD on a host.
func (s *site) runBird(h *lab.Host, config string) *lab.Process {
	s.t.Helper()
	if _, err := exec.LookPath("bird"); err != nil {
		s.t.Skip("SKIPPED: needs BIRD 2")
	}
	file := filepath.Join(s.dir, h.Name+"-bird.")
	if err := os.WriteFile(file+"conf", []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	p, err := h.Start(exec.Command("bird", "-f", "-c", file+"conf", "-s", file+"ctl", "-P", file+"pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("BIRD on %s:\n%s\n%s", h.Name, birdc(file+"ctl", "show route all"), p.Output())
		}
	})
	testkit.Eventually(s.t, "BIRD answers", func() bool {
		return strings.Contains(birdc(file+"ctl", "show status"), "up and")
	})
	return p
}

// birdc returns the answer of the router's BIRD to a command.
func (s *site) birdc(command string) string {
	return birdc(filepath.Join(s.dir, "router-bird.ctl"), command)
}

// birdc returns the answer to a command of birdc.
func birdc(socket, command string) string {
	args := append([]string{"-r", "-s", socket}, strings.Fields(command)...)
	out, _ := exec.Command("birdc", args...).CombinedOutput()
	return string(out)
}

// removeRoutes removes the routes to the VIPs that the lab's router has.
func (s *site) removeRoutes() {
	s.t.Helper()
	err := s.Router.Do(func() error {
		for _, vip := range []netip.Addr{s.VIP, s.VIP6} {
			err := netlink.RouteDel(&netlink.Route{Dst: hostNet(vip)})
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// hostNet returns the prefix of one address.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// nextHops returns the next hops of the site's router to a VIP, in ascending order.
func (s *site) nextHops(vip netip.Addr) []string {
	s.t.Helper()
	return s.hopsAt(s.Router, vip)
}

// hopsAt is nextHops of a router.
func (s *site) hopsAt(router *lab.Host, vip netip.Addr) (hops []string) {
	s.t.Helper()
	err := router.Do(func() error {
		family := unix.AF_INET
		if vip.Is6() {
			family = unix.AF_INET6
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: hostNet(vip)},
			netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Gw != nil {
				hops = append(hops, r.Gw.String())
			}
			for _, n := range r.MultiPath {
				hops = append(hops, n.Gw.String())
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(hops)
	return hops
}

// awaitHops waits until the router sends the packets for a VIP to these directors, in any order.
func (s *site) awaitHops(vip netip.Addr, directors ...*lab.Host) {
	s.t.Helper()
	var want []string
	for _, d := range directors {
		want = append(want, d.Addr.String())
	}
	slices.Sort(want)
	testkit.Eventually(s.t, fmt.Sprintf("the router sends %v to %v", vip, want), func() bool {
		return slices.Equal(s.nextHops(vip), want)
	})
}

// bgpTOML returns [bgp] of a director. more is further keys of the peer.
func (s *site) bgpTOML(h *lab.Host, more string) string {
	return fmt.Sprintf("[bgp]\nas = %d\nrouter_id = %q\ngraceful_shutdown = \"300ms\"\nlinger = \"1s\"\n",
		directorAS, h.Addr) + peerTOML(s.routerOf(h), more)
}

// peerTOML returns [[bgp.peer]] of a router. more is further keys.
func peerTOML(router netip.Addr, more string) string {
	return fmt.Sprintf("[[bgp.peer]]\naddress = %q\nas = %d\n%s\n", router, routerAS, more)
}

// connect connects a second router with the hosts of directors, by a link each, and returns their addresses there.
func (s *site) connect(router *lab.Host, directors ...*lab.Host) (all []netip.Addr) {
	s.t.Helper()
	needTool(s.t, "ip", "iproute2")
	for i, d := range directors {
		s.shell(d, fmt.Sprintf("ip link add second type veth peer name director%d netns %s; "+
			"ip address add %v/24 dev second; ip link set second up", i, router.Namespace, atSecond(i, 2)))
		s.shell(router, fmt.Sprintf("ip address add %v/24 dev director%d; ip link set director%d up",
			atSecond(i, 1), i, i))
		all = append(all, atSecond(i, 2))
	}
	return all
}

// atSecond returns an address at the i-th director's link to the second router: of the router, 1, or the director, 2.
func atSecond(i, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i), byte(host)}) }

// cut drops all packets from and to a host at the router, until mend is called: BFD alone finds it.
func (s *site) cut(h *lab.Host) (mend func()) {
	s.t.Helper()
	needTool(s.t, "nft", "nftables")
	chain := "add chain inet cut %s { type filter hook %s priority -300; }; add rule inet cut %[1]s %[3]s %[4]s drop; "
	s.shell(s.Router, "nft 'add table inet cut; "+fmt.Sprintf(chain, "in", "prerouting", "iifname", h.Name)+
		fmt.Sprintf(chain, "out", "postrouting", "oifname", h.Name)+"'")
	return func() {
		s.t.Helper()
		s.shell(s.Router, "nft delete table inet cut")
	}
}

// routerOf returns the router's address on the link of a host.
func (s *site) routerOf(h *lab.Host) netip.Addr {
	b := h.Addr.AsSlice()
	b[len(b)-1] = 1
	a, _ := netip.AddrFromSlice(b)
	return a
}

// awaitBFD waits until these directors have sessions that last, with BFD.
func (s *site) awaitBFD(directors ...*program) {
	s.t.Helper()
	for _, d := range directors {
		testkit.Eventually(s.t, "sessions of "+d.String()+" with BFD", func() bool {
			return !slices.ContainsFunc(d.balance().BGP.Peers, func(p api.BGPPeer) bool {
				return p.State != "established" || p.BFD != "up" || p.Since < 1
			})
		})
	}
}

// sessionOf returns the session of a director with the site's router.
func sessionOf(t *testing.T, d *program) api.BGPPeer {
	t.Helper()
	st := d.balance()
	if st.BGP == nil || len(st.BGP.Peers) == 0 {
		t.Fatalf("no session: %+v", st.BGP)
	}
	return st.BGP.Peers[0]
}

// frrOn runs FRR on a router, as birdOn does BIRD.
func (s *site) frrOn(router *lab.Host, directors ...netip.Addr) {
	s.t.Helper()
	config := fmt.Sprintf("router bgp %d\n bgp router-id 192.0.2.1\n no bgp ebgp-requires-policy\n", routerAS)
	for _, d := range directors {
		config += fmt.Sprintf(" neighbor %v remote-as %d\n neighbor %v bfd 3 100 100\n", d, directorAS, d)
	}
	s.removeRoutes()
	s.runFRR(router, config+" address-family ipv4 unicast\n  maximum-paths 16\n")
}

// runFRR runs FRR's bgpd, bfdd and zebra on a host.
func (s *site) runFRR(h *lab.Host, config string) {
	s.t.Helper()
	const programs = "/usr/lib/frr/"
	if _, err := os.Stat(programs + "bgpd"); err != nil {
		s.t.Skip("SKIPPED: needs FRR")
	}
	account, err := user.Lookup("frr") // the daemons' user, which makes their sockets
	if err != nil {
		s.t.Fatal(err)
	}
	uid, _ := strconv.Atoi(account.Uid)
	dir, err := os.MkdirTemp("", "frr") // it cannot pass the folder above t.TempDir
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chown(dir, uid, 0), os.WriteFile(dir+"/bgpd.conf", []byte(config), 0o644),
		os.WriteFile(dir+"/none.conf", nil, 0o644)); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		file := dir + "/none.conf"
		if name == "bgpd" {
			file = dir + "/bgpd.conf"
		}
		args := []string{"-f", file, "-i", dir + "/" + name + ".pid", "-z", dir + "/zserv.api", "--vty_socket", dir,
			"-A", "127.0.0.1", "-P", "0", "--log", "stdout"}
		if name == "bfdd" {
			args = append(args, "--bfdctl", dir+"/bfdd.sock")
		}
		p, err := h.Start(exec.Command(programs+name, args...))
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() {
			if s.t.Failed() {
				s.t.Logf("%s on %s:\n%s", name, h.Name, p.Output())
			}
		})
		testkit.Eventually(s.t, name+" runs", func() bool {
			_, err := os.Stat(dir + "/" + name + ".vty")
			return err == nil
		})
	}
}

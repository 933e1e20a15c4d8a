package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// bird runs BIRD on the site's router, with a session with each of these directors. The router has no other routes to
// the VIPs.
func (s *site) bird(directors ...*lab.Host) *lab.Process {
	s.t.Helper()
	if _, err := exec.LookPath("bird"); err != nil {
		s.t.Skip("SKIPPED: needs BIRD 2")
	}
	config := fmt.Sprintf(`log %q all;
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
`, s.birdFile("log"), routerAS)
	for i, d := range directors {
		config += fmt.Sprintf("protocol bgp director%d from directors { neighbor %v as %d; }\n", i+1, d.Addr,
			directorAS)
	}
	if err := os.WriteFile(s.birdFile("conf"), []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.removeRoutes()
	p, err := s.Router.Start(exec.Command("bird", "-f", "-c", s.birdFile("conf"), "-s", s.birdFile("ctl"), "-P",
		s.birdFile("pid")))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			text, _ := os.ReadFile(s.birdFile("log"))
			s.t.Logf("BIRD:\n%s\n%s", s.birdc("show route all"), text)
		}
	})
	testkit.Eventually(s.t, "BIRD answers", func() bool { return strings.Contains(s.birdc("show status"), "up and") })
	return p
}

func (s *site) birdFile(name string) string { return filepath.Join(s.dir, "bird."+name) }

// birdc returns the answer to a command of birdc.
func (s *site) birdc(command string) string {
	out, _ := exec.Command("birdc", append([]string{"-r", "-s", s.birdFile("ctl")}, strings.Fields(command)...)...).
		CombinedOutput()
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

// nextHops returns the next hops of the router to a VIP, in ascending order.
func (s *site) nextHops(vip netip.Addr) (hops []string) {
	s.t.Helper()
	err := s.Router.Do(func() error {
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
	return fmt.Sprintf("[bgp]\nas = %d\nrouter_id = %q\ngraceful_shutdown = \"300ms\"\nlinger = \"1s\"\n"+
		"[[bgp.peer]]\naddress = %q\nas = %d\n%s\n", directorAS, h.Addr, s.routerOf(h), routerAS, more)
}

// routerOf returns the router's address on the link of a host.
func (s *site) routerOf(h *lab.Host) netip.Addr {
	b := h.Addr.AsSlice()
	b[len(b)-1] = 1
	a, _ := netip.AddrFromSlice(b)
	return a
}

// sessionOf returns the session of a director with its only router.
func sessionOf(t *testing.T, d *program) api.BGPPeer {
	t.Helper()
	st := d.balance()
	if st.BGP == nil || len(st.BGP.Peers) == 0 {
		t.Fatalf("no session: %+v", st.BGP)
	}
	return st.BGP.Peers[0]
}

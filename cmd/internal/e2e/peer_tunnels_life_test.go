package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// lifeSite is a site whose director's host, end 1, and web1, end 2, may have a tunnel.
type lifeSite struct {
	*site
	director, agent *program
}

func newLifeSite(t *testing.T, links map[string]lab.Link) *lifeSite {
	t.Helper()
	s := &lifeSite{site: newSite(t, 1, links)}
	s.addIPv6()
	s.director, s.agent = s.prepare(s.Director, "director"), s.prepare(s.Webs[0], "realserver")
	return s
}

// configure writes the file of an end, with a tunnel that has further keys; "none": without one.
func (s *lifeSite) configure(end int, keys string) {
	s.t.Helper()
	p, local, remote := s.director, s.Director.Addr, s.Webs[0].Addr
	text := fmt.Sprintf("[director]\ncontrol = %q\n[[service]]\nname = \"web\"\nvip = \"%v\"\nprotocol = \"tcp\"\n"+
		"port = 80\nrealserver = [{ address = \"%v\" }]\n", p.socket, s.VIP, s.Webs[0].Addr)
	if end == 2 {
		p, local, remote = s.agent, s.Webs[0].Addr, s.Director.Addr
		text = fmt.Sprintf("[realserver]\nvips = \"%v\"\ndirectors = \"%v\"\ncontrol = %q\n", s.VIP, s.Director.Addr,
			p.socket)
	}
	if keys != "none" {
		text += fmt.Sprintf("[[tunnel]]\nname = \"site\"\nencap = \"gue\"\nlocal = \"%v\"\nremote = \"%v\"\n"+
			"addresses = [\"10.8.0.%d/30\", \"fd08::%d/64\"]\nprobe = { address = \"10.8.0.%d\", interval = "+
			"\"1s\" }\n%s\n", local, remote, end, end, 3-end, keys)
	}
	p.configure(text)
}

// reload reloads both ends with the keys of the tunnel. It must print want.
func (s *lifeSite) reload(keys, want string) {
	s.t.Helper()
	for i, p := range []*program{s.director, s.agent} {
		s.configure(1+i, keys)
		if got := p.command("reload", "-c", p.config); got.code != 0 || !strings.Contains(got.stdout, want) {
			s.t.Fatalf("%s: exit status %d: %s%s, want %q", p, got.code, got.stdout, got.stderr, want)
		}
	}
}

// tunnels returns the tunnels of each end.
func (s *lifeSite) tunnels() [2][]api.Tunnel {
	s.t.Helper()
	return [2][]api.Tunnel{s.director.balance().Tunnels, s.agent.intake().Tunnels}
}

// mustBeUp waits until both ends have the tunnel, and its probes are answered.
func (s *lifeSite) mustBeUp(when string) {
	s.t.Helper()
	testkit.Eventually(s.t, when+": the tunnel is up at both ends", func() bool {
		for _, all := range s.tunnels() {
			if len(all) != 1 || all[0].State != "up" {
				return false
			}
		}
		return true
	})
	for _, to := range []string{"10.8.0.2", "fd08::2"} {
		s.mustExchange(s.Director, netip.MustParseAddr(to), 100_000)
	}
}

// device returns the index of the tunnel's device at the director's host.
func (s *lifeSite) device() (index int) {
	s.t.Helper()
	err := s.Director.Do(func() error {
		link, err := net.InterfaceByName("site")
		if err == nil {
			index = link.Index
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return index
}

// TestPeerTunnelLife: a reload brings the first tunnel, changes it in place and takes it away, long after the programs
// have given up their capabilities. A peer that is gone makes the tunnel down, and up when it is back. A device that
// another program removes is made anew. After a kill and at the end nothing is left.
func TestPeerTunnelLife(t *testing.T) {
	t.Parallel()
	s := newLifeSite(t, nil)
	before := map[string]hostState{}
	for _, h := range []*lab.Host{s.Director, s.Webs[0]} {
		before[h.Name] = observe(t, h)
	}
	s.acceptUploadsAt(s.Webs[0], ":8001")
	s.configure(1, "none")
	s.configure(2, "none")
	s.agent.start()
	s.director.start()
	s.reload("", "tunnel site to")
	s.mustBeUp("after a reload")
	was := s.device()
	s.reload("mtu = 1300\nencap_port = 6083", "tunnel site: encap_port 6080 -> 6083")
	s.mustBeUp("with another port")
	if now := s.device(); now != was {
		t.Errorf("the device has the index %d, had %d", now, was)
	}
	if st := s.tunnels()[0][0]; st.MTU != 1300 || st.EncapPort != 6083 {
		t.Errorf("%+v", st)
	}
	s.reload("encap_port = 6083", "tunnel site: mtu 1300 -> 0")
	s.mustBeUp("with another MTU")
	s.loop()

	s.agent.stop()
	testkit.Eventually(t, "without a peer the tunnel is down", func() bool {
		st := s.director.balance().Tunnels[0]
		return st.State == "down" && strings.HasPrefix(st.Reason, "probe: ")
	})
	s.agent.start()
	s.mustBeUp("with a restarted peer")
	s.agent.kill()
	s.agent.start()
	s.mustBeUp("after a kill")

	was = s.device()
	s.command(s.Director, "link del site\n", "ip", "-batch", "-")
	testkit.Eventually(t, "the device is made anew", func() bool {
		return s.director.balance().Tunnels[0].State == "up" && !s.deviceIs(was)
	})
	s.mustBeUp("with a new device")
	s.stranger(6083)

	s.reload("none", "tunnel site to")
	for i, all := range s.tunnels() {
		if len(all) > 0 {
			t.Errorf("end %d: %+v", i+1, all)
		}
	}
	s.reload("", "tunnel site to")
	s.mustBeUp("after another reload")
	s.director.kill()
	s.director.start()
	s.mustBeUp("after a kill of the director")
	s.director.stop()
	s.agent.stop()
	for _, h := range []*lab.Host{s.Director, s.Webs[0]} {
		mustBecome(t, "both programs have ended", before[h.Name], h)
	}
}

// loop gives the director's end a route to its own peer by the tunnel's device. The tunnel is down, and its packets do
// not go round, until the route is gone.
func (s *lifeSite) loop() {
	s.t.Helper()
	over := netip.PrefixFrom(s.Webs[0].Addr, 31).Masked()
	reload := func(keys string) {
		s.t.Helper()
		s.configure(1, "encap_port = 6083\n"+keys)
		if got := s.director.command("reload", "-c", s.director.config); got.code != 0 {
			s.t.Fatalf("exit status %d: %s%s", got.code, got.stdout, got.stderr)
		}
	}
	reload(fmt.Sprintf("routes = [\"%v\"]", over))
	var before uint64
	testkit.Eventually(s.t, "a tunnel over itself is down, and drops its probes", func() bool {
		st := s.director.balance().Tunnels[0]
		before = st.Out.Packets
		return st.State == "down" && strings.Contains(st.Reason, "leads into tunnel site") &&
			st.Drops["unreachable"] > 0
	})
	if st := s.director.balance().Tunnels[0]; st.Out.Packets != before {
		s.t.Errorf("%d packets have left meanwhile", st.Out.Packets-before)
	}
	reload("")
	s.mustBeUp("without that route")
}

// deviceIs reports whether the tunnel's device at the director's host is there, with an index.
func (s *lifeSite) deviceIs(index int) bool {
	is := false
	_ = s.Director.Do(func() error {
		link, err := net.InterfaceByName("site")
		is = err == nil && link.Index == index
		return nil
	})
	return is
}

// stranger sends a datagram from the client to the tunnel's port at both ends. It is counted, and gets no further.
func (s *lifeSite) stranger(port uint16) {
	s.t.Helper()
	for _, p := range []*program{s.director, s.agent} {
		conn, err := s.Client.Dial("udp", netip.AddrPortFrom(p.host.Addr, port).String())
		if err != nil {
			s.t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{0, 4, 0, 0, 0x45}); err != nil {
			s.t.Fatal(err)
		}
	}
	testkit.Eventually(s.t, "strangers are counted", func() bool {
		return s.director.balance().Drops["not_peer"] == 1 && s.agent.intake().Drops["not_peer"] == 1
	})
}

// TestPeerTunnelPath: the MTU of the device follows a narrower path, which only ICMP errors tell.
func TestPeerTunnelPath(t *testing.T) {
	t.Parallel()
	s := newLifeSite(t, map[string]lab.Link{"web1": {MTU: 1400}})
	s.acceptUploadsAt(s.Webs[0], ":8001")
	s.configure(1, "")
	s.configure(2, "")
	s.agent.start()
	s.director.start()
	s.mustBeUp("over a narrow link")
	conn, err := s.Director.Dial("udp4", "10.8.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	discover(t, conn, unix.IP_PMTUDISC_PROBE) // DF, whatever the kernel knows of the path
	testkit.Eventually(t, "the director's MTU is that of the path", func() bool {
		_, _ = conn.Write(make([]byte, 1400)) // fails once the device is narrower
		return s.tunnels()[0][0].MTU == 1400-32
	})
	s.mustExchange(s.Director, netip.MustParseAddr("10.8.0.2"), 1_000_000)
	if st := s.tunnels()[1][0]; st.MTU != 1400-32 {
		t.Errorf("the agent's MTU is %d", st.MTU)
	}
}

// TestPeerTunnelOverRestart: a director that systemd starts again, also after a kill, leaves the devices of its tunnels
// in place: a route that another program has made by one stays. A device that the next configuration does not have is
// removed, and at the end all are.
func TestPeerTunnelOverRestart(t *testing.T) {
	t.Parallel()
	s := newLifeSite(t, nil)
	store := newDescriptorStore(t)
	before := observe(t, s.Director)
	s.acceptUploadsAt(s.Webs[0], ":8001")
	s.configure(1, "")
	s.configure(2, "")
	s.agent.start()
	store.start(s.director)
	s.mustBeUp("at first")
	was := s.device()
	s.command(s.Director, "route add 10.77.0.0/24 dev site\n", "ip", "-batch", "-")
	for how, end := range map[string]func(){"stop": s.director.stop, "kill": s.director.kill} {
		end()
		s.mustHaveRoute(how, true)
		store.start(s.director)
		s.mustBeUp("after a " + how)
		s.mustHaveRoute("after the start", true)
		if now := s.device(); now != was {
			t.Errorf("%s: the device has the index %d, had %d", how, now, was)
		}
	}
	s.configure(1, "encap_port = 6083") // the device stays
	s.director.stop()
	store.start(s.director)
	s.mustHaveRoute("with another port", true)
	s.configure(1, "none")
	s.director.stop()
	s.mustHaveRoute("before a start without the tunnel", true)
	store.start(s.director)
	s.mustHaveRoute("without the tunnel", false)
	testkit.Eventually(t, "its device is stored no more", func() bool {
		return !slices.Contains(store.names(), "tunnel-site")
	})
	for _, keys := range []string{"", "none", ""} { // reloads store and forget
		s.configure(1, keys)
		if got := s.director.command("reload", "-c", s.director.config); got.code != 0 {
			t.Fatalf("exit status %d: %s%s", got.code, got.stdout, got.stderr)
		}
		testkit.Eventually(t, fmt.Sprintf("with the keys %q: stored: %v", keys, keys == ""), func() bool {
			return slices.Contains(store.names(), "tunnel-site") == (keys == "")
		})
	}
	s.mustBeUp("after reloads")
	s.director.kill()
	store.release() // the devices are gone, and the journal is not
	store.start(s.director)
	s.mustBeUp("after a kill without stored devices")
	if err := os.Remove(s.director.config); err != nil { // no start would succeed
		t.Fatal(err)
	}
	s.director.stop()
	mustBecome(t, "the director has ended for good", before, s.Director)
}

// mustHaveRoute waits until the director's host has the route by the tunnel's device, or has it no more.
func (s *lifeSite) mustHaveRoute(when string, want bool) {
	s.t.Helper()
	testkit.Eventually(s.t, fmt.Sprintf("%s: a route by the device: %v", when, want), func() bool {
		has := false
		err := s.Director.Do(func() error {
			routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
			has = slices.ContainsFunc(routes, func(r netlink.Route) bool {
				return r.Dst != nil && r.Dst.String() == "10.77.0.0/24"
			})
			return err
		})
		return err == nil && has == want
	})
}

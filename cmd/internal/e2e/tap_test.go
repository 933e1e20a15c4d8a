package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/routing/neigh"
	"vstun/testdata/testkit"
)

// The tests of TAP devices have the network LAN, with a bridge at the director's host:
//
//	client ── router ── switch ─┬─ director's host: eth0 ── br0 ── vs0, the TAP device
//	                            ├─ insider
//	                            └─ web1, web2, … with the VIP, for VS/DR
//
// The host forwards nothing. Its bridge has an address only in tests that need it.

// newTAPSite returns a site in which the director has a TAP device.
func newTAPSite(t *testing.T, ipv6 bool, webs int, hostAddress bool, links map[string]lab.Link) *site {
	t.Helper()
	s := newSiteBy(t, dr, webs, links)
	s.bridgeDirector(hostAddress)
	if ipv6 {
		s.speak(true)
	}
	return s
}

// bridgeDirector makes eth0 of the director's host a port of br0. With address, br0 gets its addresses and default
// routes, else nothing has them.
func (s *site) bridgeDirector(address bool) {
	s.t.Helper()
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		must(s.Director.Sysctl(key, "0"))
	}
	must(s.Director.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: eth0.Attrs().MTU,
			HardwareAddr: eth0.Attrs().HardwareAddr}}); err != nil {
			return err
		}
		br0, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(eth0, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrDel(eth0, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
			if address && a.IP.IsGlobalUnicast() {
				if err := netlink.AddrAdd(br0, &netlink.Addr{IPNet: a.IPNet, Flags: unix.IFA_F_NODAD}); err != nil {
					return err
				}
			}
		}
		if err := s.Director.Sysctl("net.ipv6.conf.eth0.disable_ipv6", "1"); err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(eth0, br0); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(br0); err != nil || !address {
			return err
		}
		for _, gateway := range []string{"10.0.2.1", "fd00:0:2::1"} {
			err := netlink.RouteAdd(&netlink.Route{LinkIndex: br0.Attrs().Index, Gw: net.ParseIP(gateway)})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	testkit.Within(s.t, "br0 is up", soon, func() (up bool) {
		must(s.Director.Do(func() error {
			br0, err := netlink.LinkByName("br0")
			up = err == nil && br0.Attrs().OperState == netlink.OperUp
			return err
		}))
		return up && settled(s.t, s.Director)
	})
}

// tapKeys are the keys of a TAP device in br0.
const tapKeys = "device = \"tap\"\nbridge = \"br0\"\n"

// tapTOML returns a director's configuration with a service of VS/DR on port 80 of some VIPs. more is further keys of
// [director], keys of the service.
func (s *site) tapTOML(more, keys string, vips ...netip.Addr) string {
	text := tapKeys + more + fmt.Sprintf("\n[[service]]\nname = \"web\"\nvip = [%s]\nprotocol = \"tcp\"\nport = 80\n"+
		"scheduler = \"rr\"\nforward = \"dr\"\n%s\n", quoted(vips), keys)
	for _, web := range s.Webs {
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", web.Addr)
	}
	return "[director]\ncontrol = \"" + s.socketOf() + "\"\n" + text
}

// socketOf returns the path of the director's control socket.
func (s *site) socketOf() string { return s.prepare(s.Director, "director").socket }

// startTAP starts a director with the configuration of tapTOML.
func (s *site) startTAP(more, keys string) {
	s.t.Helper()
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.tapTOML(more, keys, s.VIP))
	s.director.start()
}

// startTAPServers starts agents of VS/DR and named echo servers.
func (s *site) startTAPServers() {
	s.t.Helper()
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEchoAt(web, ":80")
	}
}

// TestTAPTransfers sends uploads and downloads, byte-exact, from a client behind the network's router and from one in
// the network, with and without offloads, over links of 1,500 and 9,000 bytes. The host has no address and no route.
func TestTAPTransfers(t *testing.T) {
	for _, c := range []struct {
		offload string
		mtu     int
	}{{"auto", 1500}, {"auto", 9000}, {"off", 1500}, {"off", 9000}} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-%d-%s", c.offload, c.mtu, ipVersion(ipv6)), func(t *testing.T) {
				t.Parallel()
				links := map[string]lab.Link{}
				for _, name := range []string{"client", "director", "web1", "lan", "insider"} {
					links[name] = lab.Link{MTU: c.mtu}
				}
				s := newTAPSite(t, ipv6, 1, false, links)
				s.startAgents("")
				s.acceptUploadsAt(s.Webs[0], ":80")
				s.startTAP("offload = \""+c.offload+"\"\n", "")
				for _, from := range []*lab.Host{s.Client, s.Insider} {
					for _, up := range []bool{true, false} {
						s.transferBy(from, up, c.offload == "auto", short(10_000_000, 1_000_000))
					}
				}
				st := s.director.balance()
				if delete(st.Drops, "frame"); len(st.Drops) != 0 || st.SendError != "" {
					t.Errorf("the director dropped %v, send error %q", st.Drops, st.SendError)
				}
				if st.Device != "tap" || st.TUN != "vs0" || (st.Offloads == "") != (c.offload == "off") {
					t.Errorf("device %q, tun %q, offloads %q", st.Device, st.TUN, st.Offloads)
				}
			})
		}
	}
}

// transferBy uploads or downloads n bytes from a host. All requests must pass the TAP device, and no reply. With whole,
// the packets of an upload are GSO packets, also on their way to the realserver.
func (s *site) transferBy(from *lab.Host, up, whole bool, n int) {
	s.t.Helper()
	in, out := s.count(s.Director, "vs0", lab.Filter{Destination: s.VIP}), s.count(s.Director, "vs0",
		lab.Filter{Source: s.VIP, Protocol: unix.IPPROTO_TCP})
	arrived := s.count(s.Webs[0], "eth0", lab.Filter{Destination: s.VIP, Direction: lab.In})
	c, err := from.Dial("tcp", s.at(80))
	if err != nil {
		s.t.Fatalf("%s: %v", from.Name, err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	if up {
		answer, err := put(c, n)
		if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
			s.t.Errorf("%s: the server answers %q, %v; want %q", from.Name, answer, err, want)
		}
	} else if err := pull(c, n); err != nil {
		s.t.Errorf("%s: %v", from.Name, err)
	}
	if in() == 0 || out() != 0 {
		s.t.Errorf("%s: %d packets to the VIP and %d from it on vs0", from.Name, in(), out())
	}
	if k := arrived(); up && whole != (int(k) < n/10_000) {
		s.t.Errorf("%s: an upload of %d bytes has %d packets at the realserver", from.Name, n, k)
	}
}

// TestTAP: hosts find the VIP by a MAC address that is neither the TAP device's nor the bridge's. The host's own state
// is as before, but for the device. A killed director leaves nothing, and its next start has the same MAC address.
func TestTAP(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newTAPSite(t, ipv6, 1, false, nil)
		s.startTAPServers()
		before := observe(t, s.Director)
		s.startTAP("", "")
		for _, h := range []*lab.Host{s.Insider, s.Client, s.Insider} {
			s.mustServe(h)
		}
		owners := s.owners(s.Insider, s.VIP)
		if len(owners) != 1 || owners[0].MAC[0]&3 != 2 || owners[0].MAC == s.linkMAC("vs0") ||
			owners[0].MAC == s.linkMAC("br0") {
			t.Fatalf("a probe for the VIP is answered by %v; vs0 has %v, br0 %v", owners, s.linkMAC("vs0"),
				s.linkMAC("br0"))
		}
		st := s.director.balance()
		if len(st.Announced) != 1 || st.Announced[0].VIP != s.VIP.String() ||
			fmt.Sprint(st.Announced[0].Devices) != "[vs0]" || st.Neighbours.Announcements < 5 {
			t.Errorf("status: %+v, %+v", st.Announced, st.Neighbours)
		}
		s.mustBeAsBefore("while the director runs", before, "vs0", "vs0-local")
		if got := s.ask("explain", s.Client.Addr.String(), s.at(80)); got.code != 0 ||
			!strings.Contains(got.stdout, s.Webs[0].Addr.String()) || !strings.Contains(got.stdout, "vs0") {
			t.Errorf("explain: exit status %d\n%s", got.code, got.stdout)
		}
		if got := s.ask("doctor"); got.code != 0 || !strings.Contains(got.stdout, "bridge") {
			t.Errorf("doctor: exit status %d\n%s", got.code, got.stdout)
		}

		s.director.kill()
		s.mustBeAsBefore("after a kill", before)
		if owners := s.owners(s.Insider, s.VIP); owners != nil {
			t.Errorf("after a kill a probe is answered by %v", owners)
		}
		s.director.start()
		s.mustServe(s.Insider)
		if again := s.owners(s.Insider, s.VIP); len(again) != 1 || again[0].MAC != owners[0].MAC {
			t.Errorf("after a restart a probe is answered by %v, before by %v", again, owners)
		}
		s.director.stop()
		s.mustBeAsBefore("after the end", before)
	})
}

// mustBeAsBefore compares the state of the director's host with an earlier one, without facts about some devices.
func (s *site) mustBeAsBefore(when string, before hostState, without ...string) {
	s.t.Helper()
	var now hostState
	for _, fact := range observe(s.t, s.Director) {
		about := false
		for _, name := range without {
			about = about || strings.Contains(fact, " "+name+" ") || strings.Contains(fact, "/"+name+"/")
		}
		if !about {
			now = append(now, fact)
		}
	}
	mustBe(s.t, when, map[string]hostState{"director": before}, map[string]hostState{"director": now})
}

// linkMAC returns the MAC address of a device of the director's host.
func (s *site) linkMAC(name string) neigh.MAC {
	s.t.Helper()
	mac, err := s.Director.MAC(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return neigh.MAC(mac)
}

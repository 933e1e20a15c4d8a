package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/routing/neigh"
	"vstun/testdata/testkit"
)

// The tests of VIPs on the LAN have the usual layout of LVS: the VIP, the director and the realservers are in one
// subnet. No host is told anything about the VIP by another command than the programs.

// newLAN returns a site in the network LAN, in which named echo servers run behind agents.
func newLAN(t *testing.T, ipv6 bool) *site {
	t.Helper()
	needMachine(t)
	prefix := fmt.Sprintf("e2e%d-%s", os.Getpid(), strings.NewReplacer("Test", "", "/", "-").Replace(t.Name()))
	l, err := lab.New(lab.Spec{Prefix: prefix[:min(len(prefix), 40)], Webs: 1, Network: lab.LAN})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{Lab: l, t: t, dir: t.TempDir(), vips: []netip.Addr{l.VIP}, sources: []netip.Addr{l.Director.Addr}}
	if ipv6 {
		s.Insider.Addr = s.Insider.Addr6
	}
	s.speak(ipv6)
	s.startAgents("")
	s.namedEchoAt(s.Webs[0], ":80")
	return s
}

// lanTOML returns a director's configuration with some VIPs.
func (s *site) lanTOML(more string, vips ...netip.Addr) string {
	return fmt.Sprintf("[director]\ncontrol = %q\n%s\n[[service]]\nname = \"web\"\nvip = [%s]\nprotocol = \"tcp\"\n"+
		"port = 80\nrealserver = [{ address = %q }]\n", s.director.socket, more, quoted(vips), s.Webs[0].Addr)
}

// startOnLAN starts a director for the VIP.
func (s *site) startOnLAN(more string) {
	s.t.Helper()
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.lanTOML(more, s.VIP))
	s.director.start()
}

// TestLANOfManual runs the configurations of the cluster in methods.md: by dr, and the neighbours announce the VIP.
func TestLANOfManual(t *testing.T) {
	t.Parallel()
	needTool(t, "nginx", "nginx-light")
	s := newMethodSite(t, dr, false, 3, nil)
	for _, web := range s.Webs {
		s.nginx(web)
		p := s.prepare(web, "realserver")
		p.configure(fmt.Sprintf("realserver.control = %q\n", p.socket) +
			manualBlock(t, "methods.md", "On each web server, `/etc/vstun/realserver.toml`"))
		p.start()
	}
	s.startDirectorWith(manualBlock(t, "methods.md", "On the director, `/etc/vstun/director.toml`"))
	s.awaitHealth("up up up")
	l := s.startLoad(2)
	l.more(t, 30)
	l.end(t)
	if text := s.ask("status").stdout; !strings.Contains(text, "announced on eth0") {
		t.Errorf("status:\n%s", text)
	}
	for _, r := range s.director.balance().Services[0].Realservers {
		if r.Connections == 0 {
			t.Errorf("%s has got nothing", r.Address)
		}
	}
}

// TestLAN: clients in the VIP's subnet and behind its router reach the VIP, without delay. A killed director answers no
// more and leaves nothing; its next start takes the VIP again.
func TestLAN(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newLAN(t, ipv6)
		s.startOnLAN("")
		request := func() time.Duration {
			begin := time.Now()
			s.mustServe(s.Insider)
			return time.Since(begin)
		}
		var waits []time.Duration // for the VIP's MAC address: how much longer the first request takes than the second
		for range 9 {
			s.forget(s.Insider)
			first := request()
			waits = append(waits, first-request())
		}
		slices.Sort(waits)
		t.Logf("a client that has to find the VIP waits for %v", waits)
		if median := waits[len(waits)/2]; median > 50*time.Millisecond {
			t.Errorf("a client that has to find the VIP waits for %v", median)
		}
		s.mustServe(s.Client)
		st := s.director.balance()
		if len(st.Announced) != 1 || st.Announced[0].VIP != s.VIP.String() ||
			fmt.Sprint(st.Announced[0].Devices) != "[eth0]" || st.Announced[0].Conflicts != nil ||
			st.Neighbours.Answers < 5 || st.Neighbours.Announcements < 5 || st.Neighbours.Conflicts != 0 {
			t.Errorf("status: %+v, %+v", st.Announced, st.Neighbours)
		}
		if text := s.ask("status").stdout; !strings.Contains(text, "(web), announced on eth0\n") {
			t.Errorf("status:\n%s", text)
		}
		owners := s.owners(s.Insider, s.VIP)
		if len(owners) != 1 || owners[0].MAC != neigh.MAC(s.mac(s.Director, "eth0")) {
			t.Errorf("a probe for the VIP is answered by %v, want the director", owners)
		}

		s.director.kill()
		if owners := s.owners(s.Insider, s.VIP); owners != nil {
			t.Errorf("after a kill a probe is answered by %v", owners)
		}
		s.mustHaveNoTrace()
		s.director.start()
		s.forget(s.Insider)
		s.mustServe(s.Insider)
		s.director.stop()
		if owners := s.owners(s.Insider, s.VIP); owners != nil {
			t.Errorf("after the end a probe is answered by %v", owners)
		}
		s.mustHaveNoTrace()
	})
}

// mustServe sends a request from a host.
func (s *site) mustServe(h *lab.Host) {
	s.t.Helper()
	c, err := h.Dial("tcp", s.at(80))
	if err != nil {
		s.t.Fatalf("%s does not reach the VIP: %v", h.Name, err)
	}
	defer c.Close()
	if got, err := askName(c, "hello"); err != nil || got != "web1" {
		s.t.Errorf("%s was answered by %q, %v", h.Name, got, err)
	}
}

// forget removes the VIP from the host's table of neighbours.
func (s *site) forget(h *lab.Host) {
	s.t.Helper()
	s.onLink(h, func(l netlink.Link) error {
		err := netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: s.VIP.AsSlice()})
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// TestLANKeepsNeighbour: a neighbour that checks whether it still reaches the VIP gets an answer (RFC 4861, section
// 7.3). The check is a packet to the VIP, which the kernel also forwards: the director counts it as what it is.
func TestLANKeepsNeighbour(t *testing.T) {
	t.Parallel()
	s := newLAN(t, true)
	s.startOnLAN("")
	s.mustServe(s.Insider)
	const solicitation, advertisement = 135, 136
	if err := s.Insider.Do(func() error {
		c, err := net.Dial("ip6:ipv6-icmp", s.VIP.String())
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.(*net.IPConn).SyscallConn()
		if err != nil {
			return err
		}
		control := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255)
		})
		if err := errors.Join(control, err, c.SetDeadline(time.Now().Add(soon))); err != nil {
			return err
		}
		if _, err := c.Write(append([]byte{solicitation, 7: 0}, s.VIP.AsSlice()...)); err != nil {
			return err
		}
		for in := make([]byte, 1500); ; {
			if n, err := c.Read(in); err != nil || n > 0 && in[0] == advertisement {
				return err
			}
		}
	}); err != nil {
		t.Errorf("the check of the VIP has no answer: %v", err)
	}
	testkit.Within(t, "the check is counted", soon, func() bool { return s.director.balance().Drops["neighbour"] > 0 })
	if drops := s.director.balance().Drops; drops["icmp"] > 0 {
		t.Errorf("dropped: %v", drops)
	}
}

// onLink calls fn in the host's namespace, with its eth0.
func (s *site) onLink(h *lab.Host, fn func(l netlink.Link) error) {
	s.t.Helper()
	if err := h.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return fn(l)
	}); err != nil {
		s.t.Fatalf("%s: %v", h.Name, err)
	}
}

// owners returns the hosts that answer a probe of h: RFC 5227, section 2.1.1; RFC 4862, section 5.4.
func (s *site) owners(h *lab.Host, a netip.Addr) (all []neigh.Owner) {
	s.t.Helper()
	s.onLink(h, func(l netlink.Link) error {
		p, err := neigh.OpenProber()
		if err != nil {
			return err
		}
		defer p.Close()
		all, err = p.Ask([]neigh.Device{{Name: "eth0", Index: l.Attrs().Index, MAC: neigh.MAC(l.Attrs().HardwareAddr),
			Addrs: []netip.Addr{a}}})
		return err
	})
	return all
}

// TestLANWithBGP: neighbours are answered until routers send no packets any more: a director that stops still forwards
// meanwhile.
func TestLANWithBGP(t *testing.T) {
	t.Parallel()
	s := newLAN(t, false)
	s.bird(s.Director)
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.lanTOML("", s.VIP) + strings.Replace(s.bgpTOML(s.Director, ""), `"1s"`, `"3s"`, 1))
	s.director.start()
	s.awaitHops(s.VIP, s.Director)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.director.stop()
	}()
	s.awaitHops(s.VIP)
	begin := time.Now()
	owners := s.owners(s.Insider, s.VIP)
	if took := time.Since(begin); took < 2*time.Second && len(owners) != 1 {
		t.Errorf("%d hosts answer for the VIP after the withdrawal", len(owners))
	}
	<-stopped
	s.mustHaveNoTrace()
}

// mustHaveNoTrace fails the test if the director's host still answers for the VIP, or is in its multicast group.
func (s *site) mustHaveNoTrace() {
	s.t.Helper()
	var groups []byte
	s.onLink(s.Director, func(l netlink.Link) error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			entries, err := netlink.NeighProxyList(0, family)
			if err != nil {
				return err
			}
			if len(entries) > 0 {
				s.t.Errorf("proxy entries are left: %v", entries)
			}
		}
		var err error
		groups, err = os.ReadFile("/proc/thread-self/net/igmp6")
		return err
	})
	if group := "ff0200000000000000000001ff000080"; bytes.Contains(groups, []byte(group)) {
		s.t.Errorf("the VIP's group is left:\n%s", groups)
	}
}

// give adds the VIP to the insider, or another address, as a host that has it.
func (s *site) give(h *lab.Host, a netip.Addr, flags int) {
	s.t.Helper()
	s.onLink(h, func(l netlink.Link) error {
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(),
			Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: flags})
	})
}

func (s *site) take(h *lab.Host, a netip.Addr) {
	s.t.Helper()
	s.onLink(h, func(l netlink.Link) error {
		return netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(),
			Mask: net.CIDRMask(a.BitLen(), a.BitLen())}})
	})
}

// TestLANConflictAtStart: a host that has the VIP keeps the director from starting, and a reload from adding the VIP,
// or is a warning.
func TestLANConflictAtStart(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newLAN(t, ipv6)
		s.give(s.Insider, s.VIP, unix.IFA_F_NODAD)
		s.director = s.prepare(s.Director, "director")
		s.director.configure(s.lanTOML("", s.VIP))
		before := s.observeAll()
		got := run(t, s.Director, exec.Command(programPath("director"), "run", "-c", s.director.config))
		mac := s.mac(s.Insider, "eth0").String()
		want := fmt.Sprintf("VIP %v: another host, with MAC address %s, answers for it on eth0", s.VIP, mac)
		if got.code == 0 || !strings.Contains(got.stderr, want) || !strings.Contains(got.stderr, "announce_conflict") {
			t.Errorf("exit status %d, %q; want %q", got.code, got.stderr, want)
		}
		mustBe(t, "after a refused start", before, s.observeAll())

		second := s.VIP.Next()
		s.director.configure(s.lanTOML("", second))
		s.director.start()
		s.director.configure(s.lanTOML("", second, s.VIP))
		if got := s.ask("reload"); got.code == 0 || !strings.Contains(got.stderr, want) {
			t.Errorf("reload: exit status %d, %q", got.code, got.stderr)
		}
		if st := s.director.balance(); len(st.Announced) != 1 || st.Announced[0].VIP != second.String() {
			t.Errorf("announced: %+v", st.Announced)
		}
		s.director.configure(s.lanTOML("announce_conflict = \"warn\"", second, s.VIP))
		s.mustReload()
		testkit.Within(t, "the log has the warning", soon, func() bool { // it is written aside
			log := s.director.Output()
			return strings.Contains(log, "another host answers for a VIP") && strings.Contains(log, mac)
		})
	})
}

// TestLANReload: a director that has given up CAP_NET_RAW announces a VIP of a reload, gives up one that a reload
// removes, and follows announce and announce_devices.
func TestLANReload(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newLAN(t, ipv6)
		s.startOnLAN("")
		second := s.VIP.Next()
		reload := func(more string, vips ...netip.Addr) {
			t.Helper()
			s.director.configure(s.lanTOML(more, vips...))
			s.mustReload()
		}
		mustAnswer := func(a netip.Addr, want bool) {
			t.Helper()
			if got := len(s.owners(s.Insider, a)) == 1; got != want {
				t.Errorf("the director answers for %v: %v", a, got)
			}
		}
		mustAnswer(second, false)
		reload("", s.VIP, second)
		mustAnswer(second, true)
		reload("", second)
		mustAnswer(s.VIP, false)
		mustAnswer(second, true)
		reload("announce_devices = [\"eth7\"]", second)
		mustAnswer(second, false)
		reload("announce_devices = [\"eth0\"]", second)
		mustAnswer(second, true)
		reload("announce = \"none\"", second)
		mustAnswer(second, false)
	})
}

// arpWatch counts ARP announcements of the VIP, until the end of the test.
func (s *site) arpWatch(h *lab.Host) *packet.Conn {
	s.t.Helper()
	var c *packet.Conn
	if err := h.Do(func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = packet.Listen(dev, packet.Datagram, unix.ETH_P_ARP, nil)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// announced waits for an ARP announcement of the VIP, for limit.
func (s *site) announced(c *packet.Conn, limit time.Duration) bool {
	s.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 128)
	for {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if vip := s.VIP.AsSlice(); n >= 28 && bytes.Equal(buf[14:18], vip) && bytes.Equal(buf[24:28], vip) {
			return true
		}
	}
}

// TestLANDevice: the VIP is announced when the device comes up again, has another MAC address, or gets its address.
func TestLANDevice(t *testing.T) {
	t.Parallel()
	s := newLAN(t, false)
	s.startOnLAN("")
	c := s.arpWatch(s.Insider)
	quiet := func() {
		t.Helper()
		for s.announced(c, 6*time.Second) { // the second round is after five seconds
		}
	}
	mustAnnounce := func(what string, change func(l netlink.Link) error) {
		t.Helper()
		quiet()
		s.onLink(s.Director, change)
		if !s.announced(c, soon) {
			t.Errorf("%s: the VIP is not announced", what)
		}
		owners := s.owners(s.Insider, s.VIP)
		if len(owners) != 1 || owners[0].MAC != neigh.MAC(s.mac(s.Director, "eth0")) {
			t.Errorf("%s: a probe is answered by %v, want %v", what, owners, neigh.MAC(s.mac(s.Director, "eth0")))
		}
	}
	mustAnnounce("down and up", func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetUp(l))
	})
	mustAnnounce("another MAC address", func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 77})
	})
	own := &net.IPNet{IP: s.Director.Addr.AsSlice(), Mask: net.CIDRMask(24, 32)}
	s.onLink(s.Director, func(l netlink.Link) error { return netlink.AddrDel(l, &netlink.Addr{IPNet: own}) })
	testkit.Within(t, "without the subnet the VIP is not announced", soon, func() bool {
		return len(s.director.balance().Announced) == 0
	})
	mustAnnounce("the subnet again", func(l netlink.Link) error {
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: own})
	})
}

// TestLANDuplicateAddress: the kernel of a host that gets the VIP sees by duplicate address detection that the director
// has it.
func TestLANDuplicateAddress(t *testing.T) {
	t.Parallel()
	s := newLAN(t, true)
	s.startOnLAN("")
	if err := s.Insider.Sysctl("net.ipv6.conf.eth0.accept_dad", "1"); err != nil {
		t.Fatal(err)
	}
	s.give(s.Insider, s.VIP, 0)
	testkit.Within(t, "the address is a duplicate", soon, func() (failed bool) {
		s.onLink(s.Insider, func(l netlink.Link) error {
			all, err := netlink.AddrList(l, unix.AF_INET6)
			for _, a := range all {
				failed = failed || a.IP.Equal(s.VIP.AsSlice()) && a.Flags&unix.IFA_F_DADFAILED != 0
			}
			return err
		})
		return failed
	})
	if st := s.director.balance(); st.Neighbours.Conflicts != 0 {
		t.Errorf("a probe counts as a conflict: %+v", st.Announced)
	}
}

// TestLANConflict: a host that takes the VIP while the director runs is logged once, and in the status. The director
// goes on.
func TestLANConflict(t *testing.T) {
	t.Parallel()
	s := newLAN(t, false)
	s.startOnLAN("")
	s.give(s.Insider, s.VIP, 0)
	s.onLink(s.Insider, func(l netlink.Link) error {
		c, err := packet.Listen(&net.Interface{Index: l.Attrs().Index}, packet.Datagram, unix.ETH_P_ARP, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		vip := s.VIP.AsSlice()
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, l.Attrs().HardwareAddr...)
		b = append(append(append(b, vip...), make([]byte, 6)...), vip...)
		for range 3 {
			if _, err := c.WriteTo(b, &packet.Addr{HardwareAddr: bytes.Repeat([]byte{0xff}, 6)}); err != nil {
				return err
			}
		}
		return nil
	})
	mac := s.mac(s.Insider, "eth0").String()
	testkit.Within(t, "the conflict is in the status", soon, func() bool {
		st := s.director.balance()
		return len(st.Announced) == 1 && len(st.Announced[0].Conflicts) == 1 &&
			st.Announced[0].Conflicts[0].MAC == mac && st.Announced[0].Conflicts[0].Packets >= 3
	})
	if text := s.ask("status").stdout; !strings.Contains(text, "CONFLICT") || !strings.Contains(text, "by "+mac) {
		t.Errorf("status:\n%s", text)
	}
	if n := strings.Count(s.director.Output(), "another host uses a VIP"); n != 1 {
		t.Errorf("%d lines in the log, want 1", n)
	}
	if !strings.Contains(s.ask("doctor").stdout, mac) {
		t.Error("the doctor does not name the other host")
	}
	s.take(s.Insider, s.VIP)
	s.mustServe(s.Insider)
}

// TestLANWithoutPacketSockets: where a service manager allows no packet sockets, the director does not start for a VIP
// on the LAN and says why. With announce = "none" it does.
func TestLANWithoutPacketSockets(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("SKIPPED: the race detector has needs of its own")
	}
	s := newLAN(t, false)
	box := &sandbox{Filter: assemble(t, []bpf.Instruction{
		bpf.LoadAbsolute{Off: callNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 3},
		bpf.LoadAbsolute{Off: argument0, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_PACKET, SkipTrue: 1},
		fail(unix.EAFNOSUPPORT), allow})}
	s.director = s.prepare(s.Director, "director")
	command := func() *exec.Cmd {
		return box.command(t, exec.Command(programPath("director"), "run", "-c", s.director.config))
	}
	s.director.configure(s.lanTOML("", s.VIP))
	got := run(t, s.Director, command())
	for _, part := range []string{s.VIP.String(), "subnet of eth0", "RestrictAddressFamilies", `announce = "none"`} {
		if got.code == 0 || !strings.Contains(got.stderr, part) {
			t.Errorf("exit status %d, without %q:\n%s", got.code, part, got.stderr)
		}
	}
	s.director.configure(s.lanTOML(`announce = "none"`, s.VIP))
	s.director.startAs(command())
}

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/encap/wireguard"
	"vstun/testdata/testkit"
)

// sealedSite is a site whose tunnels are WireGuard's: web1's over IPv4 between IPv4 addresses, web2's over IPv6 between
// IPv6 addresses. The tunnel addresses belong to no host.
type sealedSite struct {
	*site
	keys map[string]wireguard.Key // by host
}

func newSealedSite(t *testing.T, links map[string]lab.Link) *sealedSite {
	t.Helper()
	s := &sealedSite{newSite(t, 2, links), map[string]wireguard.Key{}}
	s.addIPv6()
	for _, h := range []*lab.Host{s.Director, s.Webs[0], s.Webs[1]} {
		s.newKey(h)
	}
	return s
}

// newKey makes a private key for h.
func (s *sealedSite) newKey(h *lab.Host) {
	s.t.Helper()
	s.keys[h.Name] = wireguard.NewPrivateKey()
	if err := os.WriteFile(s.keyFile(h), []byte(s.keys[h.Name].String()+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sealedSite) keyFile(h *lab.Host) string { return filepath.Join(s.dir, h.Name+".key") }

// inTunnel returns the addresses of web server i and of the director in their tunnel.
func inTunnel(i int) (web, director netip.Addr) {
	if i == 1 {
		return netip.MustParseAddr("fd99::3"), netip.MustParseAddr("fd99::1")
	}
	return netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("10.99.0.1")
}

// endpoint returns where h can be reached by web server i or from it.
func endpoint(h *lab.Host, i int) netip.AddrPort {
	if i == 1 {
		return netip.AddrPortFrom(h.Addr6, 51820)
	}
	return netip.AddrPortFrom(h.Addr, 51820)
}

// agentTOML returns the configuration of web server i's agent. public are the director's keys, more is keys of the
// peer.
func (s *sealedSite) agentTOML(i int, socket, more string, public ...string) string {
	_, director := inTunnel(i)
	return fmt.Sprintf(`[realserver]
vips = [%s]
directors = ["%v"]
control = %q
encap = ["wireguard", "ipip"]
[wireguard]
private_key = %q
[[wireguard.peer]]
address = "%v"
public_key = ["%s"]
%s
`, quoted(s.vips), director, socket, s.keyFile(s.Webs[i]), director, strings.Join(public, `", "`), more)
}

// directorPublic is the director's public key.
func (s *sealedSite) directorPublic() string { return s.keys[s.Director.Name].Public().String() }

// startSealedAgent starts the agent of web server i.
func (s *sealedSite) startSealedAgent(i int) {
	s.t.Helper()
	p := s.prepare(s.Webs[i], "realserver")
	p.configure(s.agentTOML(i, p.socket, fmt.Sprintf("endpoint = \"%v\"", endpoint(s.Director, i)), s.directorPublic()))
	p.start()
	s.agents = append(s.agents, p)
}

// realserverOf returns web server i in TOML. public are its keys.
func (s *sealedSite) realserverOf(i int, public ...string) string {
	web, _ := inTunnel(i)
	if len(public) == 0 {
		public = []string{s.keys[s.Webs[i].Name].Public().String()}
	}
	return fmt.Sprintf("{ address = \"%v\", wireguard = { public_key = [\"%s\"], endpoint = \"%v\" } }", web,
		strings.Join(public, `", "`), endpoint(s.Webs[i], i))
}

// wireguardTOML returns a director's configuration, with a service of each web server, at ports 8001 and 8002. more is
// keys of the services.
func (s *sealedSite) wireguardTOML(more string, public ...string) string {
	text := fmt.Sprintf("[wireguard]\nprivate_key = %q\naddress = [\"10.99.0.1\", \"fd99::1\"]\n",
		s.keyFile(s.Director))
	for i := range s.Webs {
		var keys []string
		if i == 0 {
			keys = public
		}
		text += fmt.Sprintf("[[service]]\nname = \"web%d\"\nvip = [%s]\nprotocol = \"tcp\"\nport = %d\nencap = "+
			"\"wireguard\"\n%s\nrealserver = [ %s ]\n", i+1, quoted([]netip.Addr{s.VIP, s.VIP6}), 8001+i, more,
			s.realserverOf(i, keys...))
	}
	return text
}

// TestWireGuard sends uploads and downloads, byte-exact, through WireGuard over both families with both families
// inside, and over links of 1,500 and 1,400 bytes. Nothing but WireGuard's datagrams and the answers is on the wire.
// No datagram is cut, also before the director knows that a link is narrow.
func TestWireGuard(t *testing.T) {
	for _, mtu := range []int{1500, 1400} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			t.Parallel()
			size := long(100_000_000, 5_000_000, 1_000_000)
			s := newSealedSite(t, map[string]lab.Link{"web1": {MTU: mtu}, "web2": {MTU: mtu}})
			for i, web := range s.Webs {
				s.startSealedAgent(i)
				s.acceptUploadsAt(web, fmt.Sprintf(":%d", 8001+i))
			}
			s.startDirectorWith(s.wireguardTOML("check = { type = \"tcp\" }"))
			testkit.Eventually(t, "checks through the tunnels succeed", func() bool {
				for _, svc := range s.director.balance().Services {
					if svc.Health != "up" {
						return false
					}
				}
				return true
			})
			clear4 := s.count(s.Director, "eth0", lab.Filter{Protocol: 4})
			mss := func(i, j int) int {
				return (mtu-[]int{60, 80}[i])/16*16 - []int{20, 40}[i] - []int{40, 60}[j]
			}
			cut := s.fragmentsAt(s.Director, s.Router)
			for i := range s.Webs {
				for j, vip := range []netip.Addr{s.VIP, s.VIP6} {
					s.mustTransfer(t, i, vip, size, mss(i, j))
				}
			}
			if is := s.fragmentsAt(s.Director, s.Router); is != cut {
				t.Errorf("datagrams were cut: %d fragments, %d before", is, cut)
			}
			if n := clear4(); n > 0 {
				t.Errorf("%d tunnel packets are not encrypted", n)
			}
			// Where both ends have begun at the same time, an answer is refused.
			drops := s.director.balance().Drops
			if delete(drops, "handshake"); len(drops) > 0 {
				t.Errorf("the director dropped %v", drops)
			}
			for _, agent := range s.agents {
				drops := agent.intake().Drops
				if delete(drops, "handshake"); len(drops) > 0 {
					t.Errorf("%s refused %v", agent, drops)
				}
			}
		})
	}
}

// fragmentsAt returns the number of fragments that the kernels of hosts have made.
func (s *sealedSite) fragmentsAt(hosts ...*lab.Host) (n uint64) {
	s.t.Helper()
	for _, h := range hosts {
		for name, made := range s.counters(h) {
			if strings.HasSuffix(name, "FragCreates") {
				n += made
			}
		}
	}
	return n
}

// mustTransfer sends n bytes to web server i through a VIP, and gets them back. mss is the client's, without options.
func (s *sealedSite) mustTransfer(t *testing.T, i int, vip netip.Addr, n, mss int) {
	t.Helper()
	for _, up := range []bool{true, false} {
		conn, err := s.Client.Dial("tcp", netip.AddrPortFrom(vip, uint16(8001+i)).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute + time.Duration(n/500_000)*time.Second)); err != nil {
			t.Fatal(err)
		}
		const options = 12 // timestamps
		if got := sendMSS(t, conn); got != mss-options {
			t.Errorf("web%d by %v: segments have %d bytes, want %d", i+1, vip, got, mss-options)
		}
		if !up {
			if err := pull(conn, n); err != nil {
				t.Errorf("web%d by %v: download: %v", i+1, vip, err)
			}
			continue
		}
		answer, err := put(conn, n)
		if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
			t.Errorf("web%d by %v: the server answers %q, %v; want %q", i+1, vip, answer, err, want)
		}
	}
}

// TestWireGuardGoesOn changes the keys of either end, restarts either end, and moves an endpoint, under downloads: none
// breaks, and none stalls for longer than 2 s.
func TestWireGuardGoesOn(t *testing.T) {
	slowWithRace(t)
	n := long(100, 20, 10) // of each web server
	if !full() {
		t.Parallel()
	}
	const paced = 100 * time.Millisecond
	s := newSealedSite(t, nil)
	for i, web := range s.Webs {
		s.startSealedAgent(i)
		s.pacedDownloads(web, uint16(8001+i), 512, paced)
	}
	s.startDirectorWith(s.wireguardTOML(""))
	all := []*downloads{s.download(8001, n), s.download(8002, n)}
	step := func(name string, change func()) {
		t.Helper()
		for _, d := range all {
			d.mustGoOn(t, "before: "+name, 2000)
			d.stall.Store(0)
		}
		change()
		st := s.director.balance()
		t.Logf("%s: %d connections, %d resets sent, dropped %v", name, st.Connections.Count, st.Resets, st.Drops)
		var stall time.Duration
		for _, d := range all {
			d.mustGoOn(t, "after: "+name, 4000)
			if broken, why := d.broken(); broken > 0 {
				t.Errorf("%s: %d downloads are broken: %v", name, broken, why)
			}
			stall = max(stall, time.Duration(d.stall.Load())-paced)
		}
		t.Logf("%s: the longest stall was %v", name, stall)
		if full() && stall > 2*time.Second {
			t.Errorf("%s: stalled for %v", name, stall)
		}
	}
	step("the director's key", func() {
		old := s.directorPublic()
		s.newKey(s.Director)
		for i := range s.agents {
			s.reloadAgent(i, 51820, s.directorPublic(), old)
		}
		s.mustReload()
		for i := range s.agents {
			testkit.Eventually(t, "the new key is in use", func() bool {
				return s.agents[i].usesKey(s.directorPublic())
			})
			s.reloadAgent(i, 51820, s.directorPublic())
		}
	})
	step("an agent's key", func() {
		old := s.keys["web1"].Public().String()
		s.newKey(s.Webs[0])
		next := s.keys["web1"].Public().String()
		s.reloadWith(s.wireguardTOML("", next, old))
		s.reloadAgent(0, 51820, s.directorPublic())
		testkit.Eventually(t, "the new key is in use", func() bool { return s.director.usesKey(next) })
		s.reloadWith(s.wireguardTOML(""))
	})
	step("restart of the director", func() {
		s.director.stop()
		s.director.start()
	})
	step("kill of the director", func() {
		s.director.kill()
		s.director.start()
	})
	step("restart of an agent", func() {
		s.agents[0].stop()
		s.agents[0].start()
	})
	step("another endpoint", func() {
		s.agents[0].stop()
		s.agents[0].configure(s.agentAt(0, 51821, s.directorPublic()))
		s.agents[0].start()
	})
}

// agentAt is agentTOML with the director's endpoint and another port of the agent.
func (s *sealedSite) agentAt(i, port int, public ...string) string {
	text := s.agentTOML(i, s.agents[i].socket, fmt.Sprintf("endpoint = \"%v\"", endpoint(s.Director, i)), public...)
	return strings.Replace(text, "[wireguard]\n", fmt.Sprintf("[wireguard]\nlisten = %d\n", port), 1)
}

// reloadAgent gives the agent of web server i the director's keys.
func (s *sealedSite) reloadAgent(i, port int, public ...string) {
	s.t.Helper()
	p := s.agents[i]
	p.configure(s.agentAt(i, port, public...))
	if got := p.command("reload", "--socket", p.socket); got.code != 0 {
		s.t.Fatalf("%s: reload: exit status %d\n%s%s", p, got.code, got.stdout, got.stderr)
	}
}

// usesKey reports whether the program has had a handshake with a peer of this public key.
func (p *program) usesKey(public string) bool {
	var st struct{ WireGuard api.WireGuard }
	if err := p.get(&st); err != nil {
		p.t.Fatal(err)
	}
	for _, peer := range st.WireGuard.Peers {
		if peer.PublicKey == public && peer.Handshake != nil {
			return true
		}
	}
	return false
}

// TestWireGuardKeys makes keys by the commands, and files by the lines that they print for the other end: it becomes a
// tunnel.
func TestWireGuardKeys(t *testing.T) {
	t.Parallel()
	s := newSealedSite(t, nil)
	for _, h := range []*lab.Host{s.Director, s.Webs[0]} {
		name := map[bool]string{true: "director", false: "realserver"}[h == s.Director]
		path := s.keyFile(h) + ".made"
		got := run(t, h, exec.Command(programPath(name), "keys", "--make", path))
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		key, err := wireguard.ParseKey(string(text))
		if err != nil || got.code != 0 || got.stdout != key.Public().String()+"\n" {
			t.Errorf("%s keys --make: %v, exit status %d, %s%s", name, err, got.code, got.stdout, got.stderr)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
		if got := run(t, h, exec.Command(programPath(name), "keys", "--make", path)); got.code != 1 ||
			!strings.Contains(got.stderr, "name another file") {
			t.Errorf("%s keys --make again: exit status %d, %s", name, got.code, got.stderr)
		}
	}
	s.startSealedAgent(0)
	s.startDirectorWith(s.wireguardTOML(""))
	lines := s.ask("keys").stdout
	for _, want := range []string{"# this end's public key: " + s.directorPublic(), "\n# for realserver 10.99.0.2\n",
		"[[wireguard.peer]]\naddress    = \"10.99.0.1\"\npublic_key = \"" + s.directorPublic() +
			"\"\nendpoint   = \"" + endpoint(s.Director, 0).String() + "\"\n",
		"address    = \"fd99::1\"", endpoint(s.Director, 1).String()} {
		if !strings.Contains(lines, want) {
			t.Errorf("director keys has no %q:\n%s", want, lines)
		}
	}
	p := s.agents[0]
	lines = p.command("keys", "-c", p.config).stdout
	for _, want := range []string{"# for director 10.99.0.1\n[[service.realserver]]\n",
		"wireguard = { public_key = \"" + s.keys["web1"].Public().String() + "\", endpoint = \"" +
			endpoint(s.Webs[0], 0).String() + "\" }"} {
		if !strings.Contains(lines, want) {
			t.Errorf("realserver keys has no %q:\n%s", want, lines)
		}
	}
}

// TestWireGuardDoctor: the doctors of both ends name a peer with another key. A capture shows the packets as they are
// before encryption, and explain the path of what carries the tunnel.
func TestWireGuardDoctor(t *testing.T) {
	t.Parallel()
	s := newSealedSite(t, nil)
	right := s.keys[s.Director.Name]
	s.keys[s.Director.Name] = wireguard.NewPrivateKey()
	s.startSealedAgent(0) // it knows another key of the director
	s.keys[s.Director.Name] = right
	s.startSealedAgent(1)
	s.acceptUploadsAt(s.Webs[1], ":8002")
	s.startDirectorWith(s.wireguardTOML(""))
	testkit.Eventually(t, "web2 has had a handshake", func() bool {
		return s.director.usesKey(s.keys["web2"].Public().String())
	})
	testkit.Eventually(t, "a handshake is refused", func() bool {
		return s.agents[0].intake().Drops["handshake"]+s.director.balance().Drops["handshake"] > 0
	})
	text := s.ask("doctor").stdout
	for _, want := range []string{"realserver 10.99.0.2 at " + endpoint(s.Webs[0], 0).String() + " there was no " +
		"handshake with it", "one end has another key of the other"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			t.Errorf("director doctor has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "fd99::3 at") {
		t.Errorf("director doctor finds a fault of web2:\n%s", text)
	}
	p := s.agents[0]
	text = p.command("doctor", "-c", p.config).stdout
	if !strings.Contains(text, "there was no handshake with it") {
		t.Errorf("realserver doctor finds no fault:\n%s", text)
	}
	capture, file := s.startCapture()
	conn := s.dial("tcp", 8002)
	port := netip.MustParseAddrPort(conn.LocalAddr().String()).Port()
	if _, err := put(conn, 50_000); err != nil {
		t.Fatal(err)
	}
	s.endCapture(capture)
	bytes := map[string]uint32{}
	for face, all := range sentBytes(t, file, 8002) {
		for _, part := range all {
			bytes[face] += part.to - part.from
		}
	}
	if bytes["before"] < 50_000 || bytes["after"] < 50_000 {
		t.Errorf("the capture has %v bytes", bytes)
	}
	got := s.ask("explain", fmt.Sprintf("%v:%d", s.Client.Addr, port), s.at(8002))
	const want = "eth0    <= 1380" // 1500 less WireGuard's 80 and an IPv6 header
	if got.code != 0 || !strings.Contains(got.stdout, want) || !strings.Contains(got.stdout, "wireguard") {
		t.Errorf("director explain: exit status %d, want %q:\n%s%s", got.code, want, got.stdout, got.stderr)
	}
}

// TestWireGuardBehindNAT: a realserver whose endpoint the director does not know comes by itself.
func TestWireGuardBehindNAT(t *testing.T) {
	t.Parallel()
	s := newSealedSite(t, nil)
	s.acceptUploadsAt(s.Webs[0], ":8001")
	text := strings.ReplaceAll(s.wireguardTOML(""), fmt.Sprintf(", endpoint = \"%v\"", endpoint(s.Webs[0], 0)), "")
	s.startDirectorWith(text)
	const want = "it has no endpoint here, and has not come by itself"
	if doctor := s.ask("doctor").stdout; !strings.Contains(doctor, want) {
		t.Errorf("director doctor has no %q:\n%s", want, doctor)
	}
	s.startSealedAgent(0)
	testkit.Eventually(t, "the realserver has come", func() bool {
		return s.director.usesKey(s.keys["web1"].Public().String())
	})
	s.mustTransfer(t, 0, s.VIP, 1_000_000, 1500-60-20-40)
}

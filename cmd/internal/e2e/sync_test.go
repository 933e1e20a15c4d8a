package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/doctor"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// syncPair is a site with two directors that exchange their connections:
//
//	client -- router -- director, web1, web2 (realservers), web3 (the second director)
//
// With nat, the second director is in the subnet of the others. The router sends the VIP's packets to one of them, and
// the realservers of nat send their replies to the same.
type syncPair struct {
	*site
	directors [2]*program
}

// newSyncPair starts both directors, with TCP port 80 and UDP port 53. sync is the keys of [sync], without the key.
func newSyncPair(t *testing.T, m method, ipv6 bool, sync func(s *site) string) *syncPair {
	t.Helper()
	var p *syncPair
	if m == nat {
		p = newNATSyncPair(t)
	} else {
		p = &syncPair{site: newSiteBy(t, m, 3, nil)}
		p.speak(ipv6)
		p.place(p.Webs[2])
	}
	more := ""
	if m == dr {
		more = "encap = []"
	}
	for _, web := range p.Webs[:2] {
		if m != nat {
			p.startAgent(web, more)
		}
		p.namedEcho(web, 80)
		p.echoUDP(web, 53)
		p.acceptUploads(web, 81)
	}
	p.start(sync(p.site), "", service{"tcp", "80", "rr", []int{1, 1, -1}}, service{"udp", "53", "rr", []int{1, 1, -1}},
		service{"tcp", "81", "rr", []int{1, 1, -1}})
	return p
}

// newNATSyncPair builds the hosts for nat, and starts nothing.
func newNATSyncPair(t *testing.T) *syncPair {
	t.Helper()
	p := &syncPair{site: newLANFor(t, nat)}
	p.place(p.Backup)
	return p
}

// place gives the second director its host.
func (p *syncPair) place(second *lab.Host) {
	p.t.Helper()
	p.directors = [2]*program{p.prepare(p.Director, "director"), p.prepare(second, "director")}
	p.sources = []netip.Addr{p.Director.Addr, second.Addr}
}

// start starts both directors, and returns when each has the table of the other one. sync is the keys of [sync],
// without the key; more is further TOML.
func (p *syncPair) start(sync, more string, services ...service) {
	p.t.Helper()
	if !strings.Contains(sync, "ipvs") {
		path := filepath.Join(p.dir, "sync.key")
		p.command(p.Director, "", "sh", "-c", "head -c 32 /dev/urandom >"+path)
		sync += fmt.Sprintf("\nkey = %q", path)
	}
	for _, d := range p.directors {
		d.configure(p.directorTOML(d.socket, "announce = \"none\"\n[connections]\nmax = 10_000\n[sync]\n"+sync+"\n"+
			more, services...))
		d.start()
	}
	p.switchTo(0)
	for i := range p.directors {
		p.awaitPeer(i)
	}
}

// unicast is the keys of [sync] for unicast.
func unicast(s *site) string { return fmt.Sprintf("peers = [%s]", quoted(s.sources)) }

// switchTo lets the router send the VIP's packets to a director, and the realservers of nat their replies.
func (p *syncPair) switchTo(i int) {
	p.t.Helper()
	to := p.directors[i].host.Addr
	p.command(p.Router, fmt.Sprintf("route replace %s via %s\n", p.VIP, to), "ip", "-batch", "-")
	if p.method != nat {
		return
	}
	for _, web := range p.Webs {
		p.command(web, fmt.Sprintf("route replace default via %s\n", to), "ip", "-batch", "-")
	}
}

// peers returns what `director peers --json` prints.
func (p *program) peers() api.Sync {
	p.t.Helper()
	var all api.Peers
	got := p.command("peers", "--json", "--socket", p.socket)
	if err := json.Unmarshal([]byte(got.stdout), &all); err != nil || all.Sync == nil {
		p.t.Fatalf("peers: %v: %s%s", err, got.stdout, got.stderr)
	}
	return *all.Sync
}

// awaitPeer waits until a director is ready, and has heard the other one and got its table.
func (p *syncPair) awaitPeer(i int) {
	p.t.Helper()
	d := p.directors[i]
	testkit.Within(p.t, d.String()+" has the connections of its peer", soon, func() bool {
		s := d.peers()
		return s.Ready && (s.Mode == "ipvs" || slices.ContainsFunc(s.Peers, func(p api.SyncPeer) bool {
			return p.State == "alive" && p.Bulk != nil
		}))
	})
}

// rows returns the connections of a director, without what differs between directors.
func (p *program) rows() (all []string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if err := api.EachLine(ctx, p.socket, "/connections", func(line []byte) error {
		var c api.Connection
		if err := json.Unmarshal(line, &c); err != nil {
			return err
		}
		all = append(all, fmt.Sprint(c.Protocol, " ", c.State, " ", c.Client, " ", c.ClientPort, " ", c.VIP, " ",
			c.Port, " ", c.Realserver, " ", c.RealserverPort, " ", c.Service))
		return nil
	}); err != nil {
		p.t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// TestSync: connections that one director has made go on at the other, after a kill, and after the first one is back.
func TestSync(t *testing.T) {
	t.Parallel()
	multicast := func(s *site) string {
		group := ""
		if s.VIP.Is6() {
			group = "\ngroup = \"ff02::81\""
		}
		return "interface = \"eth0\"" + group
	}
	for _, c := range []struct {
		name string
		m    method
		ipv6 bool
		sync func(s *site) string
	}{
		{"tun-unicast", tun, false, unicast}, {"tun-unicast-ipv6", tun, true, unicast},
		{"dr-multicast", dr, false, multicast}, {"dr-multicast-ipv6", dr, true, multicast},
		{"nat-unicast", nat, false, unicast},
		{"dr-ipvs", dr, false, func(s *site) string { return multicast(s) + "\nmode = \"ipvs\"" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newSyncPair(t, c.m, c.ipv6, c.sync)
			conns, servers := p.openAll(50)
			mustStay := func(when string) {
				t.Helper()
				for i, conn := range conns {
					if got := mustAnswer(t, conn); got != servers[i] {
						t.Errorf("%s: connection %d is answered by %s, want %s", when, i, got, servers[i])
					}
				}
			}
			p.awaitSame()
			p.directors[0].kill()
			p.switchTo(1)
			mustStay("after a kill")
			p.directors[0].start()
			p.awaitPeer(0)
			p.awaitSame()
			p.directors[1].stop()
			p.switchTo(0)
			mustStay("after the return")
			if st := p.directors[0].balance(); st.Resets != 0 {
				t.Errorf("%d resets", st.Resets)
			}
		})
	}
}

// openAll opens n TCP connections and sends datagrams of n/5 flows.
func (p *syncPair) openAll(n int) (conns []net.Conn, servers []string) {
	p.t.Helper()
	for range n {
		c, server := p.whoAnswers(anyPort(p.Client.Addr), p.at(80))
		conns, servers = append(conns, c), append(servers, server)
	}
	for range n / 5 {
		c := p.dial("udp", 53)
		for range 3 {
			if err := exchange(c, payload(100)); err != nil {
				p.t.Error(err)
			}
		}
	}
	return conns, servers
}

// awaitSame waits until both directors have the same connections.
func (p *syncPair) awaitSame() {
	p.t.Helper()
	var one, two []string
	testkit.Within(p.t, "both directors have the same connections", soon, func() bool {
		one, two = p.directors[0].rows(), p.directors[1].rows()
		return len(one) > 0 && slices.Equal(one, two)
	})
}

// TestSyncUpload: uploads go on, byte-exact, when their director is killed, and when the other one is stopped.
func TestSyncUpload(t *testing.T) {
	t.Parallel()
	p := newSyncPair(t, tun, false, unicast)
	n, done := short(100_000_000, 30_000_000), make(chan string, 4)
	for range cap(done) {
		c := p.dial("tcp", 81)
		if err := c.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		go func() {
			answer, err := put(c, n)
			done <- fmt.Sprint(answer, " ", err)
		}()
	}
	p.awaitSame()
	p.directors[0].kill()
	p.switchTo(1)
	p.directors[0].start()
	p.awaitPeer(0)
	if len(done) > 0 {
		t.Log("an upload has ended before the second switch")
	}
	p.switchTo(0)
	p.directors[1].stop()
	for range cap(done) {
		if got, want := <-done, fmt.Sprintf("%d bytes, all as they should be <nil>", n); got != want {
			t.Errorf("the server answers %q, want %q", got, want)
		}
	}
}

// TestSyncSCTP: an association through nat, which one director has made, goes on at the other one, both ways. The test
// makes all packets: few kernels have SCTP.
func TestSyncSCTP(t *testing.T) {
	t.Parallel()
	const port = 2905
	p := newNATSyncPair(t)
	web := p.Webs[0]
	s := &stage{site: p.site, client: beside(p.Client.Addr), realserver: beside(web.Addr).Next()}
	s.clientEnd = s.openEnd(s.Client, "eth0", s.mac(s.Router, "client"), single(s.client))
	s.webEnd = s.openEnd(web, "eth0", s.mac(s.Director, "eth0"), single(s.realserver))
	s.neighbour(s.Router, "client", s.client, s.Client)
	for _, d := range p.directors {
		s.neighbour(d.host, "eth0", s.realserver, web)
	}
	vip, client := netip.AddrPortFrom(s.VIP, port), netip.AddrPortFrom(s.client, 40000)
	server := netip.AddrPortFrom(s.realserver, s.realPort(port))
	p.start(unicast(p.site), fmt.Sprintf("[[service]]\nname = \"sctp\"\nvip = %q\nprotocol = \"sctp\"\nport = %d\n"+
		"forward = \"nat\"\nrealserver = [ { address = %q, port = %d } ]\n", vip.Addr(), port, server.Addr(),
		server.Port()))
	exchange := func(name string, chunk []byte, reply bool) {
		t.Helper()
		if reply {
			s.webEnd.send(s.sctp(server, client, chunk))
			mustArrive(t, s.clientEnd, name, s.sctp(vip, client, chunk))
			return
		}
		s.clientEnd.send(s.sctp(client, vip, chunk))
		mustArrive(t, s.webEnd, name, s.sctp(client, server, chunk))
	}
	exchange("an INIT", sctpChunk(layers.SCTPChunkTypeInit, make([]byte, 16)), false)
	exchange("its INIT ACK", sctpChunk(layers.SCTPChunkTypeInitAck, make([]byte, 16)), true)
	exchange("a COOKIE ECHO", sctpChunk(layers.SCTPChunkTypeCookieEcho, payload(33)), false)
	exchange("its COOKIE ACK", sctpChunk(layers.SCTPChunkTypeCookieAck, nil), true)
	p.awaitSame()
	if rows := p.directors[1].rows(); len(rows) != 1 || !strings.HasPrefix(rows[0], "sctp ESTABLISHED ") {
		t.Errorf("the second director has %q", rows)
	}
	for i, name := range []string{"kill -9", "the return"} {
		to := 1 - i
		p.directors[i].kill()
		p.switchTo(to)
		s.webEnd.gateway = s.mac(p.directors[to].host, "eth0")
		exchange("a reply after "+name, sctpChunk(layers.SCTPChunkTypeData, payload(77)), true)
		exchange("a request after "+name, sctpChunk(layers.SCTPChunkTypeData, payload(76)), false)
		if p.directors[i].start(); i == 0 {
			p.awaitPeer(0)
			p.awaitSame()
		}
	}
}

// TestSyncPeersCommand prints the peers.
func TestSyncPeersCommand(t *testing.T) {
	t.Parallel()
	p := newSyncPair(t, tun, false, unicast)
	p.openAll(5)
	p.awaitSame()
	got := p.directors[1].command("peers", "--socket", p.directors[1].socket)
	for _, want := range []string{"sync vstun, the peers' connections are complete\n", "\nreceived", "\npeer " +
		p.Director.Addr.String() + "  alive, heard 0s ago  ", "0 lost  table complete "} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s%s", want, got.stdout, got.stderr)
		}
	}
	p.directors[0].kill()
	testkit.Within(t, "the peer is silent", soon,
		func() bool { return p.directors[1].peers().Peers[0].State == "silent" })
	alone := p.prepare(p.Webs[0], "director")
	got = run(t, p.Webs[0], exec.Command(programPath("director"), "peers", "--socket", alone.socket))
	if got.code != 1 || !strings.Contains(got.stderr, "director") {
		t.Errorf("without a director: %+v", got)
	}
}

// TestSyncFaults: the doctor finds that a director is alone, and that two directors have different keys, and peers says
// what to do. A missing key is an error of the configuration.
func TestSyncFaults(t *testing.T) {
	t.Parallel()
	p := newSyncPair(t, tun, false, func(s *site) string {
		return fmt.Sprintf("peers = [%s]", quoted([]netip.Addr{s.Director.Addr, s.Webs[2].Addr}))
	})
	first, second := p.directors[0], p.directors[1]
	p.director = first
	text, err := os.ReadFile(second.config)
	if err != nil {
		t.Fatal(err)
	}
	mustFind := func(what, remark string) {
		t.Helper()
		var found []doctor.Finding
		testkit.Within(t, "the doctor finds: "+what, 2*soon, func() bool {
			found = first.examine().Findings
			return slices.ContainsFunc(found, func(f doctor.Finding) bool {
				return f.Check == "sync" && strings.HasPrefix(f.What, what) && f.Why != "" &&
					strings.Contains(strings.Join(append(f.Remarks, f.Causes...), " "), remark)
			})
		})
	}
	mustFindNone := func(when string) {
		t.Helper()
		for _, f := range first.examine().Findings {
			if f.Check == "sync" {
				t.Errorf("%s: %+v", when, f)
			}
		}
	}
	mustFindNone("at first")

	second.kill()
	mustFind("nothing has come from it for ", "a firewall drops UDP port 8848")

	other := filepath.Join(p.dir, "other.key")
	p.command(second.host, "", "sh", "-c", "head -c 32 /dev/urandom >"+other)
	second.configure(strings.Replace(string(text), filepath.Join(p.dir, "sync.key"), other, 1))
	second.start()
	mustFind("its datagrams are refused: forged", "copy the file key of [sync] to both directors")
	for command, want := range map[string]string{"peers": "refused from " + second.host.Addr.String() + "  ",
		"status": "sync vstun  "} {
		if text := p.ask(command).stdout; !strings.Contains(text, want) {
			t.Errorf("%q is not in %s:\n%s", want, command, text)
		}
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	r := run(t, second.host, exec.Command(programPath("director"), "doctor", "-c", second.config))
	if r.code != 2 || !strings.Contains(r.stderr, "sync: key: ") ||
		!strings.Contains(r.stderr, "want the absolute path") {
		t.Errorf("without the key: %+v", r)
	}

	second.stop()
	second.configure(string(text))
	second.start()
	p.awaitPeer(0)
	testkit.Within(t, "the peer is alive", soon, func() bool {
		return slices.ContainsFunc(first.peers().Peers, func(o api.SyncPeer) bool { return o.State == "alive" })
	})
}

// TestReadyWaitsForPeers: a director tells the service manager that it is ready when it has the table of its peer, and
// without a peer after three seconds.
func TestReadyWaitsForPeers(t *testing.T) {
	t.Parallel()
	p := newSyncPair(t, tun, false, func(s *site) string {
		return fmt.Sprintf("peers = [%s]", quoted([]netip.Addr{s.Director.Addr, s.Webs[2].Addr}))
	})
	p.openAll(20)
	p.awaitSame()
	first, manager := p.directors[0], newServiceManager(t)
	start := func() {
		t.Helper()
		cmd := exec.Command(programPath("director"), "run", "-c", first.config)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.path)
		first.startAs(cmd)
		manager.mustHear("READY=1")
	}
	first.kill()
	start()
	if s := first.peers(); !s.Ready || len(s.Peers) != 1 || s.Peers[0].Bulk == nil {
		t.Errorf("ready without the connections of the peer: %+v", s)
	}
	first.stop()
	manager.mustHear("STOPPING=1")
	p.directors[1].kill()
	begin := time.Now()
	start()
	if took := time.Since(begin); took < 3*time.Second {
		t.Errorf("without a peer it is ready after %v", took)
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// syncPair is a site with two directors that exchange their connections:
//
//	client -- router -- director, web1, web2 (realservers), web3 (the second director)
//
// The router sends the VIP's packets to one of them.
type syncPair struct {
	*site
	directors [2]*program
}

// newSyncPair starts both directors, with TCP port 80 and UDP port 53. sync is the keys of [sync], without the key.
func newSyncPair(t *testing.T, m method, ipv6 bool, sync func(s *site) string) *syncPair {
	t.Helper()
	s := newSiteBy(t, m, 3, nil)
	s.speak(ipv6)
	p := &syncPair{site: s}
	hosts := []*lab.Host{s.Director, s.Webs[2]}
	s.sources = append(s.sources, s.Webs[2].Addr)
	more := ""
	if m == dr {
		more = "encap = []"
	}
	for _, web := range s.Webs[:2] {
		s.startAgent(web, more)
		s.namedEcho(web, 80)
		s.echoUDP(web, 53)
		s.acceptUploads(web, 81)
	}
	text := sync(s)
	if !strings.Contains(text, "ipvs") {
		path := filepath.Join(s.dir, "sync.key")
		s.command(s.Director, "", "sh", "-c", "head -c 32 /dev/urandom >"+path)
		text += fmt.Sprintf("\nkey = %q", path)
	}
	for i, h := range hosts {
		p.directors[i] = s.prepare(h, "director")
		p.directors[i].configure(s.directorTOML(p.directors[i].socket,
			"announce = \"none\"\n[connections]\nmax = 10_000\n[sync]\n"+text,
			service{"tcp", "80", "rr", []int{1, 1, -1}}, service{"udp", "53", "rr", []int{1, 1, -1}},
			service{"tcp", "81", "rr", []int{1, 1, -1}}))
		p.directors[i].start()
	}
	p.switchTo(0)
	for i := range p.directors {
		p.awaitPeer(i)
	}
	return p
}

// switchTo lets the router send the VIP's packets to a director.
func (p *syncPair) switchTo(i int) {
	p.t.Helper()
	p.command(p.Router, fmt.Sprintf("route replace %s via %s\n", p.VIP, p.directors[i].host.Addr), "ip", "-batch", "-")
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
	unicast := func(s *site) string {
		return fmt.Sprintf("peers = [%s]", quoted([]netip.Addr{s.Director.Addr, s.Webs[2].Addr}))
	}
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
	p := newSyncPair(t, tun, false, func(s *site) string {
		return fmt.Sprintf("peers = [%s]", quoted([]netip.Addr{s.Director.Addr, s.Webs[2].Addr}))
	})
	n, done := short(300_000_000, 100_000_000), make(chan string, 4)
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

// TestSyncPeersCommand prints the peers.
func TestSyncPeersCommand(t *testing.T) {
	t.Parallel()
	p := newSyncPair(t, tun, false, func(s *site) string {
		return fmt.Sprintf("peers = [%s]", quoted([]netip.Addr{s.Director.Addr, s.Webs[2].Addr}))
	})
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

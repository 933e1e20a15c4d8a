package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// newLANFor builds the hosts of the network LAN for a forwarding method, with two web servers and a second director,
// without programs. The realservers of nat have an address as gateway that the directors own in turn: see gateway.
func newLANFor(t *testing.T, m method) *site {
	t.Helper()
	needMachine(t)
	prefix := fmt.Sprintf("e2e%d-%s", os.Getpid(), strings.NewReplacer("Test", "", "/", "-").Replace(t.Name()))
	l, err := lab.New(lab.Spec{Prefix: prefix[:min(len(prefix), 40)], Webs: 2, Network: lab.LAN, Backup: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{Lab: l, t: t, dir: t.TempDir(), method: m, vips: []netip.Addr{l.VIP},
		sources: []netip.Addr{l.Director.Addr, l.Backup.Addr}}
	if m == nat {
		for _, web := range s.Webs {
			s.command(web, fmt.Sprintf("route replace default via %s\n", s.gateway()), "ip", "-batch", "-")
		}
	}
	return s
}

// gateway is the address in the VIP's subnet that the realservers of nat have as gateway.
func (s *site) gateway() netip.Addr { return beside(s.VIP) }

// newSyncedPair starts two directors that exchange their connections, and elect the one that has the VIP: the first
// one, if it can. Port 80 of the VIP is named echo servers, port 81 slow downloads. interval is the one of VRRP, more
// are further keys of [[vrrp]].
func newSyncedPair(t *testing.T, m method, interval, more string) *pair {
	t.Helper()
	p := &pair{site: newLANFor(t, m)}
	p.startAgents("")
	for _, web := range p.Webs {
		p.namedEcho(web, 80)
		p.slowDownloads(web, 81)
	}
	key := filepath.Join(p.dir, "sync.key")
	if err := os.WriteFile(key, slices.Repeat([]byte("key "), 8), 0o600); err != nil {
		t.Fatal(err)
	}
	addresses := p.addresses()
	if m == nat {
		addresses = p.addresses(p.gateway().String())
	}
	p.first, p.second = p.prepare(p.Director, "director"), p.prepare(p.Backup, "director")
	for i, d := range []*program{p.first, p.second} {
		d.configure(p.directorTOML(d.socket, fmt.Sprintf(`[[vrrp]]
name = "VI_1"
interface = "eth0"
router_id = 51
interval = %q
priority = %d
%s%s
[sync]
peers = [%s]
key = %q
`, interval, 150-50*i, addresses, more, quoted(p.sources), key),
			service{"tcp", "80", "wlc", []int{1, 1}}, service{"tcp", "81", "wlc", []int{1, 1}}))
		d.start()
	}
	p.director = p.first
	p.role(p.first, "master")
	p.role(p.second, "backup")
	p.exchanges()
	return p
}

// exchanges waits until each director has the table of the other one.
func (p *pair) exchanges() {
	p.t.Helper()
	for _, d := range []*program{p.first, p.second} {
		testkit.Eventually(p.t, d.String()+" has the connections of its peer", func() bool {
			s := d.peers()
			return s.Ready && len(s.Peers) == 1 && s.Peers[0].State == "alive" && s.Peers[0].Bulk != nil
		})
	}
}

// shares waits until the second director has this number of open connections.
func (p *pair) shares(n int) {
	p.t.Helper()
	testkit.Eventually(p.t, fmt.Sprintf("%s has %d connections", p.second, n), func() bool {
		active := 0
		for _, svc := range p.second.balance().Services {
			for _, r := range svc.Realservers {
				active += r.Active
			}
		}
		return active >= n
	})
}

// slowDownloads sends the stream to each client, very slowly: a thousand of them are little work.
func (s *site) slowDownloads(h *lab.Host, port uint16) {
	s.t.Helper()
	s.serveTCP(h, s.behind(h, port), func(c net.Conn) {
		every := time.NewTicker(time.Second)
		defer every.Stop()
		for same := stream(); ; <-every.C {
			if _, err := io.CopyN(c, same, 1024); err != nil {
				return
			}
		}
	})
}

// broken returns how many downloads have broken, or get no more bytes.
func (d *downloads) broken() (n int, why error) {
	before := make([]int64, d.n)
	for i := range before {
		before[i] = d.read[i].Load()
	}
	for end := time.Now().Add(soon); ; time.Sleep(tick) {
		n = 0
		for i := range before {
			if d.read[i].Load() == before[i] {
				n++
			}
		}
		d.mu.Lock()
		if len(d.errs) > 0 {
			why = d.errs[0]
		}
		failed := len(d.errs)
		d.mu.Unlock()
		if n == failed || time.Now().After(end) {
			return n, why
		}
	}
}

// idle is connections to named echo servers that are used rarely.
type idle struct {
	conns   []net.Conn
	servers []string
}

// openIdle opens n connections to port 80 of the VIP, and uses each once.
func (s *site) openIdle(n int) *idle {
	s.t.Helper()
	i := &idle{}
	for range n {
		c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		i.conns, i.servers = append(i.conns, c), append(i.servers, server)
	}
	return i
}

// broken uses each connection, and returns how many have no answer, or one of another server.
func (i *idle) broken() (n int, why error) {
	var mu sync.Mutex
	var asks sync.WaitGroup
	for k, c := range i.conns {
		asks.Go(func() {
			server, err := askName(c, "still there?")
			if err == nil && server != i.servers[k] {
				err = fmt.Errorf("%s answers on a connection to %s", server, i.servers[k])
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				n, why = n+1, err
			}
		})
	}
	asks.Wait()
	return n, why
}

// answerLimit is the time within which a request must be answered.
const answerLimit = 5 * time.Second

// delayed is the time beyond which a request has lost a packet: TCP repeats a SYN after a second, data after 0.2 s.
const delayed = 190 * time.Millisecond

// requests are requests at a steady rate, each on a new connection to port 80 of the VIP.
type requests struct {
	stop func() // ends them; may be called twice

	mu      sync.Mutex
	all     []*exchanged
	slowest time.Duration // since takeSlowest
}

// exchanged is one of requests.
type exchanged struct {
	begin  time.Time
	ended  bool
	took   time.Duration
	failed error
}

// startRequests sends requests at a rate per second. On a machine that is too busy for it, there are fewer.
func (s *site) startRequests(rate int) *requests {
	s.t.Helper()
	if err := s.Client.Sysctl("net.ipv4.ip_local_port_range", "1024 65000"); err != nil {
		s.t.Fatal(err)
	}
	r := &requests{}
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		// All sockets are made on one thread in the client's namespace: entering it takes longer than a request.
		if err := s.Client.Do(func() error { return s.callAll(r, rate, done, &running) }); err != nil {
			s.t.Error(err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
	s.t.Cleanup(r.stop)
	return r
}

// callAll begins the requests of r until done is closed.
func (s *site) callAll(r *requests, rate int, done chan struct{}, running *sync.WaitGroup) error {
	every := time.NewTicker(time.Second / time.Duration(rate))
	defer every.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-every.C:
		}
		e := &exchanged{begin: time.Now()}
		c, err := s.beginConnect(80)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.all = append(r.all, e)
		r.mu.Unlock()
		running.Go(func() {
			defer c.Close()
			err := exchangeOn(c, e.begin.Add(answerLimit))
			r.mu.Lock()
			defer r.mu.Unlock()
			e.ended, e.took, e.failed = true, time.Since(e.begin), err
			r.slowest = max(r.slowest, e.took)
		})
	}
}

// beginConnect begins to connect to a port of the VIP, an IPv4 address, in this thread's namespace. Reads and writes of
// the socket wait for the connection.
func (s *site) beginConnect(port uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := os.NewFile(uintptr(fd), "request")
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: s.VIP.As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", s.at(port), err), c.Close())
	}
	return c, nil
}

// exchangeOn sends a word to a named echo server, and waits for the answer.
func exchangeOn(c *os.File, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasSuffix(line, " hello\n") {
		err = fmt.Errorf("received %q", line)
	}
	return err
}

// await waits until there have been n requests since the last take.
func (r *requests) await(t *testing.T, n int) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("there are %d requests", n), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.all) >= n
	})
}

// taken returns the requests since the last call. It waits for the end of those that have begun.
func (r *requests) taken(t *testing.T) []*exchanged {
	t.Helper()
	r.mu.Lock()
	list := r.all
	r.all = nil
	r.mu.Unlock()
	for _, e := range list {
		testkit.Within(t, "the requests have ended", 2*soon, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return e.ended
		})
	}
	return list
}

// take returns how many requests there were since the last call, how many of them were late, and the errors of those
// that have failed. It waits for the end of those that have begun.
func (r *requests) take(t *testing.T) (all, late int, failed []error) {
	t.Helper()
	list := r.taken(t)
	for _, e := range list {
		switch {
		case e.failed != nil:
			failed = append(failed, fmt.Errorf("begun at %s: %w", e.begin.Format("15:04:05.000"), e.failed))
		case e.took > delayed:
			late++
		}
	}
	return len(list), late, failed
}

// takeSlowest returns how long the slowest request has taken since the last call.
func (r *requests) takeSlowest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	slowest := r.slowest
	r.slowest = 0
	return slowest
}
